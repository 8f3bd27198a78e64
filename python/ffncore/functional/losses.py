"""Auxiliary losses of a router, each with its gradient: the load-balancing loss and the z-loss.

    P_e = mean over tokens of p_te,  p = softmax(z)      count_e = the number of tokens of expert e
    "hf"        E sum_e (count_e / T) P_e                k for a uniform load
    "megatron"  E / (k T) sum_e count_e P_e              1 for a uniform load
    "switch"    that of "megatron" for each batch row of [..., T, E], averaged over the rows
    z-loss      mean over tokens of log(sum_e exp(z_te))^2

Counts are constants, without a gradient. Sums over tokens are computed in float64. Without tokens
the losses are 0 (in transformers: NaN). Tests: tests/functional/test_losses.py,
tests/conformance/test_losses.py.
"""

from __future__ import annotations

import math

import numpy as np

from ..arrays.dtypes import FLOAT64
from ..arrays.scalars import known, number
from ..arrays.shapes import Array, check_shape
from ..values.routing import Part, Routing
from ..values.routing_options import CoreRouter, Options, check_logits
from .routing import backward_of_part, weigh

CONVENTIONS = {"hf": 0, "megatron": 1, "switch": 2}


def load_balancing_loss(
    logits: Array, routing: Routing, *, convention: str = "hf", from_logits: bool = True
) -> float:
    """Compute the load-balancing loss, which is smallest if all experts get as many tokens.

    It is E sum over experts e of f_e P_e. Here E is the number of experts, P_e the mean over all
    tokens of the softmax of logits, and f_e the number of tokens of expert e, divided as the
    convention says.

    logits       [..., n_experts], float32 or float64; for "switch" [..., tokens, n_experts]
    routing      a Routing of the same tokens, whose experts are counted; slots of -1 are not
    convention   "hf", as in transformers: f_e is divided by the number of tokens T; "megatron", as
                 in Megatron and MegaBlocks: by k T; "switch", as in Switch Transformers: "megatron"
                 for each batch row, and then the mean over the rows
    from_logits  False: logits are probabilities already, and no softmax is applied

    Returns a float: for a uniform load it is k with "hf" and 1 with the other two, and it is 0
    without tokens.

    Raises ValueError for shapes and values, and TypeError for types and dtypes.

    Two models count other experts than those that tokens go to. transformers counts the top k of
    the softmax also where the selection has a bias, and Switch Transformers also counts tokens that
    were dropped. To get their numbers, pass a routing that fc.route made of the same logits without
    a bias or a capacity.

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
    """Compute the gradient of the load-balancing loss with respect to the logits.

    grad  the gradient of the loss: its coefficient in the total loss

    logits, routing, convention and from_logits are those of fc.load_balancing_loss.

    Returns an array with the shape and dtype of logits. With from_logits=False it is the gradient
    with respect to the probabilities.

    Raises ValueError and TypeError as fc.load_balancing_loss does.

    >>> grad_logits = fc.load_balancing_loss_backward(0.01, logits, routing)
    """
    scale = number("grad", grad)
    rows, factors = _factors(logits, routing, convention)
    by_p = np.broadcast_to((scale * factors).astype(rows.dtype)[:, None, :], rows.shape)
    if from_logits:
        by_p = backward_of_part(Part(rows, _every_expert(rows), _softmax_core(rows)), by_p)
    return np.asarray(np.array(by_p).reshape(logits.shape))


def _factors(logits: object, routing: object, convention: str) -> tuple[Array, Array]:
    """The logits as [rows, T, E], and factors [rows, E]: the loss is the sum of factors times
    the sums over tokens of p.
    """
    kind = known("convention", convention, CONVENTIONS)
    z = check_logits(logits, rank=2 if convention == "switch" else 1)
    if not isinstance(routing, Routing):
        raise TypeError(f"routing is of type {type(routing).__name__}; expected a Routing")
    n, k = z.shape[-1], routing.top_k
    expected = (*z.shape[:-1], k)
    check_shape("routing.experts", routing.experts, expected, f"to match logits {z.shape}")
    if routing.n_experts not in (None, n):
        raise ValueError(
            f"routing.n_experts is {routing.n_experts}; expected {n} to match logits {z.shape}"
        )
    if routing.experts.max(initial=-1) >= n:
        raise ValueError(
            f"routing.experts has an entry {routing.experts.max()}; expected -1 to {n - 1}"
        )
    by_row = kind == CONVENTIONS["switch"]
    tokens = z.shape[-2] if by_row else math.prod(z.shape[:-1])
    count = math.prod(z.shape[:-2]) if by_row else 1
    rows = z.reshape(count, tokens, n)
    # Each row has one bin per expert, and before them one for the slots without an expert.
    bins = routing.experts.reshape(count, tokens * k) + 1 + (n + 1) * np.arange(count)[:, None]
    counts = np.bincount(bins.reshape(-1), minlength=count * (n + 1)).reshape(count, n + 1)[:, 1:]
    shared = tokens if kind == CONVENTIONS["hf"] else tokens * k
    return rows, counts * (n / max(1, shared * tokens * count))


def router_z_loss(logits: Array) -> float:
    """Compute the router z-loss: the mean over tokens of log(sum over experts of exp(z))^2.

    logits  [..., n_experts], float32 or float64

    Returns a float, which is 0 without tokens.

    Raises ValueError for shapes and TypeError for types and dtypes. The loss is that of ST-MoE
    (Zoph et al., 2022); it keeps logits from growing.

    >>> loss = 1e-3 * fc.router_z_loss(logits)
    """
    logits = check_logits(logits)
    if not logits.size:
        return 0.0
    return float(np.square(_log_sum_exp(logits), dtype=FLOAT64).mean())


def router_z_loss_backward(grad: float, logits: Array) -> Array:
    """Compute the gradient of the router z-loss with respect to the logits.

    grad    the gradient of the loss: its coefficient in the total loss
    logits  as passed to fc.router_z_loss

    Returns an array with the shape and dtype of logits.

    Raises ValueError for shapes and values, and TypeError for types and dtypes.

    >>> grad_logits = fc.router_z_loss_backward(1e-3, logits)
    """
    scale = number("grad", grad)
    logits = check_logits(logits)
    slope = _log_sum_exp(logits)
    slope *= slope.dtype.type(2 * scale / max(1, slope.size))
    return np.asarray(_softmax(logits) * slope[..., None])


def _softmax_core(logits: Array) -> CoreRouter:
    return Options(norm_topk_prob=False).core(logits, 1, given=True)


def _every_expert(logits: Array) -> Array:
    """Expert ids [..., E]: for each token 0 to E - 1."""
    return np.broadcast_to(np.arange(logits.shape[-1], dtype=np.int32), logits.shape)


def _softmax(logits: Array) -> Array:
    """The softmax over the experts, computed by the kernels as the weights of all of them."""
    ids = _every_expert(logits)
    return weigh(logits, logits.shape[-1], _softmax_core(logits), experts=ids)[1]


def _log_sum_exp(logits: Array) -> Array:
    """log(sum over experts of exp(z)), [...]."""
    sums = np.empty(logits.shape[:-1], logits.dtype)
    first = np.zeros((*logits.shape[:-1], 1), np.int32)
    weigh(logits, 1, _softmax_core(logits), experts=first, log_sum_exp=sums)
    return sums
