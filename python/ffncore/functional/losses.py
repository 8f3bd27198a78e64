"""Auxiliary losses of a router, each with its gradient: load balancing, and the z-loss.

    P_e = mean over tokens of p_te,  p = softmax(z)      count_e = tokens that expert e has
    "hf"        E sum_e (count_e / T) P_e                k where the load is uniform
    "megatron"  E / (k T) sum_e count_e P_e              1 where the load is uniform
    "switch"    megatron's in each batch row, [..., T, E]; then the mean over the rows
    z-loss      mean over tokens of log(sum_e exp(z_te))^2

Counts are constants. Sums over tokens are in float64, and no tokens give 0 (transformers: NaN).
Tests: tests/conformance/test_losses.py.
"""

from __future__ import annotations

import math

import numpy as np

from ..arrays.dtypes import FLOAT64
from ..arrays.shapes import Array, check_shape
from ..arrays.words import known, number
from ..values.routing import Part, Routing
from ..values.routing_options import Options, RouterCore, check_logits
from .routing import backward_of_part, weigh

CONVENTIONS = {"hf": 0, "megatron": 1, "switch": 2}


def load_balancing_loss(
    logits: Array, routing: Routing, *, convention: str = "hf", from_logits: bool = True
) -> float:
    """How uneven the load of the experts is: logits [..., E], routing of the same tokens.

    convention   "hf" (transformers, all families of its shared function), "megatron" (also
                 MegaBlocks), "switch" (Switch Transformers; batch rows are the leading dimensions)
    from_logits  False: logits are probabilities already, whatever made them

    The experts of `routing` are counted; empty slots (-1) are not. Two models count something else:
    transformers takes the top k of the softmax, without the bias of a selection, and Switch also
    counts tokens that were dropped. For their numbers pass a routing of the same logits without
    bias or capacity.

    >>> loss = fc.load_balancing_loss(logits, fc.route(logits, 2))
    """
    rows, factors = _factors(logits, routing, convention)
    if not rows.size:
        return 0.0
    sums = (_softmax(rows) if from_logits else rows).sum(axis=1, dtype=FLOAT64)
    return float((factors * sums).sum())


def load_balancing_loss_backward(
    grad: float,
    logits: Array,
    routing: Routing,
    *,
    convention: str = "hf",
    from_logits: bool = True,
) -> Array:
    """Gradient of the loss by logits (or by probabilities), [..., E]; grad is that of the loss.

    >>> grad_logits = fc.load_balancing_loss_backward(0.01, logits, routing)
    """
    scale = number("grad", grad)
    rows, factors = _factors(logits, routing, convention)
    by_p = np.broadcast_to((scale * factors).astype(rows.dtype)[:, None, :], rows.shape)
    if from_logits:
        by_p = backward_of_part(Part(rows, _every_expert(rows), _softmax_core(rows)), by_p)
    return np.asarray(np.array(by_p).reshape(logits.shape))


def _factors(logits: object, routing: object, convention: str) -> tuple[Array, Array]:
    """logits as [rows, T, E]; [rows, E]: the loss by each row's sum of p over its tokens."""
    kind = known("convention", convention, CONVENTIONS)
    z = check_logits(logits, rank=2 if convention == "switch" else 1)
    if not isinstance(routing, Routing):
        raise TypeError(f"routing is of type {type(routing).__name__}; expected a Routing")
    n, k = z.shape[-1], routing.top_k
    expected = (*z.shape[:-1], k)
    check_shape("routing.experts", routing.experts, expected, f"to match logits {z.shape}")
    if routing.n_experts not in (None, n):
        raise ValueError(f"routing has {routing.n_experts} experts; expected {n}, as in logits")
    if routing.experts.max(initial=-1) >= n:
        raise ValueError(f"routing has an expert {routing.experts.max()}; expected -1 to {n - 1}")
    by_row = kind == CONVENTIONS["switch"]
    tokens = z.shape[-2] if by_row else math.prod(z.shape[:-1])
    count = math.prod(z.shape[:-2]) if by_row else 1
    rows = z.reshape(count, tokens, n)
    # One bin for each row and expert, the first of a row for what was dropped.
    bins = routing.experts.reshape(count, tokens * k) + 1 + (n + 1) * np.arange(count)[:, None]
    counts = np.bincount(bins.reshape(-1), minlength=count * (n + 1)).reshape(count, n + 1)[:, 1:]
    shared = tokens if kind == CONVENTIONS["hf"] else tokens * k
    return rows, counts * (n / max(1, shared * tokens * count))


def router_z_loss(logits: Array) -> float:
    """Mean over the tokens of the squared log-sum-exp of logits [..., E] (ST-MoE's z-loss).

    >>> loss = 1e-3 * fc.router_z_loss(logits)
    """
    logits = check_logits(logits)
    if not logits.size:
        return 0.0
    return float(np.square(_log_sum_exp(logits), dtype=FLOAT64).mean())


def router_z_loss_backward(grad: float, logits: Array) -> Array:
    """Gradient of the z-loss by logits, [..., E]; grad is that of the loss.

    >>> grad_logits = fc.router_z_loss_backward(1e-3, logits)
    """
    scale = number("grad", grad)
    logits = check_logits(logits)
    slope = _log_sum_exp(logits)
    slope *= slope.dtype.type(2 * scale / max(1, slope.size))
    return np.asarray(_softmax(logits) * slope[..., None])


def _softmax_core(logits: Array) -> RouterCore:
    return Options(norm_topk_prob=False).core(logits, 1, given=True)


def _every_expert(logits: Array) -> Array:
    """[..., E], for each token all of them in order."""
    return np.broadcast_to(np.arange(logits.shape[-1], dtype=np.int32), logits.shape)


def _softmax(logits: Array) -> Array:
    """As the kernels compute it: the weights of all experts."""
    ids = _every_expert(logits)
    return weigh(logits, logits.shape[-1], _softmax_core(logits), experts=ids)[1]


def _log_sum_exp(logits: Array) -> Array:
    """[...]"""
    sums = np.empty(logits.shape[:-1], logits.dtype)
    first = np.zeros((*logits.shape[:-1], 1), np.int32)
    weigh(logits, 1, _softmax_core(logits), experts=first, log_sum_exp=sums)
    return sums
