"""More routers: fc.sparsemixer (Phi-3.5-MoE), fc.switch_capacity (Switch, NLLB-MoE), and that of
Inkling, which is for fc.load.

Experts are chosen here, in numpy, by comparisons alone, so that all machines choose the same ones.
Weights and gradients are computed by the kernels of fc.route, for experts that are chosen already.
Tests: tests/functional/test_routers.py.
"""

from __future__ import annotations

import numpy as np

from ..arrays.dtypes import check_same_dtype
from ..arrays.scalars import integer, number
from ..arrays.shapes import Array, MaybeArray, as_array, check_shape
from ..values.routing import Part, Routing
from ..values.routing_options import Options, check_logits, check_logits_dtype
from .routing import route, weigh


def sparsemixer(
    logits: Array,
    *,
    jitter_eps: float,
    gumbel: MaybeArray = None,
    uniform: MaybeArray = None,
) -> Routing:
    """Choose two experts for each token with SparseMixer, the router of Phi-3.5-MoE.

        expert 1 = argmax z      m = max z      masked: (m - z) / max(|z|, m) > 2 jitter_eps
        expert 2 = the same without expert 1
        weight i = entry of expert i in the softmax over the experts that are not masked

    The two weights are not divided by their sum. In training the experts are sampled instead; for
    that pass random numbers as gumbel and uniform.

    logits      [..., n_experts] with at least two experts, float32 or float64
    jitter_eps  half the relative distance from the largest logit at which experts are masked
    gumbel      [..., 2, n_experts], with the dtype of logits: expert i is the argmax of the logits
                that are not masked + gumbel[..., i, :]. Only together with uniform
    uniform     [..., 2] in [0, 1), with the dtype of logits: the weight of an expert that does not
                have the largest logit is divided by 3, unless its number is above 3/4

    Returns a Routing with two slots. In fc.route_backward the gradient of a weight is that before
    the division by 3, as in SparseMixer's estimator (Liu et al., 2023).

    Raises ValueError for shapes and values, and TypeError for types and dtypes.

    >>> routing = fc.sparsemixer(logits, jitter_eps=0.01)
    """
    logits = check_logits(logits)
    n = logits.shape[-1]
    if n < 2:
        raise ValueError(f"logits has shape {logits.shape}; expected two experts or more")
    width = 2 * number("jitter_eps", jitter_eps)
    if width < 0:
        raise ValueError(f"jitter_eps is {jitter_eps}; expected a number not below 0")
    draws = _draws(logits, gumbel, uniform)
    core = Options(norm_topk_prob=False).core(logits, 1, given=True)

    parts, weights = [], []
    left, first = logits, np.array(-1, np.int32)
    for i in range(2):
        largest, masked = _masked(logits, left, first, width)
        chosen = largest
        if draws is not None:
            sampled = np.where(np.isneginf(masked), masked, masked + draws[0][..., i, :])
            chosen = _other_than(first, _argmax(sampled))
        weight = weigh(masked, 1, core, experts=chosen)[1]
        if draws is not None:
            full = (chosen == largest) | (draws[1][..., i : i + 1] > 0.75)
            weight = np.where(full, weight, weight / 3)
        parts.append(Part(masked, chosen, core))
        weights.append(weight)
        first = chosen
        left = logits.copy()
        np.put_along_axis(left, first.astype(np.intp), -np.inf, axis=-1)
    experts = np.concatenate([part.experts for part in parts], axis=-1)
    return _made(experts, np.concatenate(weights, axis=-1), n, *parts)


def _draws(logits: Array, gumbel: object, uniform: object) -> tuple[Array, Array] | None:
    if gumbel is None and uniform is None:
        return None
    if gumbel is None or uniform is None:
        raise ValueError("one of gumbel and uniform is given; expected both or neither")
    leading = logits.shape[:-1]
    checked = []
    for name, value, shape in (
        ("gumbel", gumbel, (*leading, 2, logits.shape[-1])),
        ("uniform", uniform, (*leading, 2)),
    ):
        array = as_array(name, value)
        check_same_dtype(name, array, check_logits_dtype("logits", logits), "logits")
        check_shape(name, array, shape, f"to match logits {logits.shape}")
        checked.append(array)
    return checked[0], checked[1]


@np.errstate(invalid="ignore", divide="ignore", over="ignore")
def _masked(logits: Array, left: Array, first: Array, width: float) -> tuple[Array, Array]:
    """The index of the largest logit in `left`, [..., 1], and `left` with -inf for every logit
    that is too far below it.
    """
    largest = _other_than(first, _argmax(left))
    m = np.take_along_axis(left, largest.astype(np.intp), axis=-1)
    far = (m - logits) / np.maximum(np.abs(logits), m) > logits.dtype.type(width)
    return largest, np.asarray(np.where(far, logits.dtype.type(-np.inf), left))


def _argmax(values: Array) -> Array:
    """The lowest index of the largest value, [..., 1]; NaN is larger than any number."""
    return np.asarray(values.argmax(axis=-1, keepdims=True).astype(np.int32))


def _other_than(first: Array, expert: Array) -> Array:
    """`expert`, but where it is `first` (all others are -inf), the lowest index that is not."""
    return np.asarray(np.where(expert == first, (first == 0).astype(np.int32), expert))


def switch_capacity(logits: Array, *, capacity: int, top_k: int = 1) -> Routing:
    """Choose one or two experts for each token by softmax, at most `capacity` tokens per expert.

    Tokens are served in their order. A slot whose expert is full is dropped: it has expert -1 and
    weight 0, and contributes nothing to results and gradients.

    logits    [..., tokens, n_experts], float32 or float64. Leading dimensions are batch rows, and
              the capacity holds for each row
    capacity  the largest number of tokens of an expert in a batch row
    top_k     1, as in Switch Transformers: the weight is the largest probability. 2, as in
              NLLB-MoE: all first choices are served before all second choices, and weights are
              probabilities divided by max(sum of those kept, finfo(dtype).eps)

    Returns a Routing with top_k slots.

    Raises ValueError for shapes and values, and TypeError for types and dtypes.

    NLLB-MoE counts the capacity over all tokens of a batch: pass logits as [all tokens, n_experts].

    >>> routing = fc.switch_capacity(logits, capacity=4)
    """
    logits = check_logits(logits, rank=2)
    limit = integer("capacity", capacity)
    if limit < 0:
        raise ValueError(f"capacity is {limit}; expected at least 0")
    k = integer("top_k", top_k)
    if k not in (1, 2):
        raise ValueError(f"top_k is {k}; expected 1 or 2")
    wanted, _ = weigh(logits, k, Options().core(logits, k))
    experts = np.where(_places(wanted, logits.shape[-1]) < limit, wanted, np.int32(-1))
    least = float(np.finfo(logits.dtype).eps)
    options = Options(norm_min=least) if k == 2 else Options(norm_topk_prob=False)
    core = options.core(logits, k, given=True)
    _, weights = weigh(logits, k, core, experts=experts)
    return _made(experts, weights, logits.shape[-1], Part(logits.view(), experts, core))


def _places(wanted: Array, n_experts: int) -> Array:
    """For each slot, [..., T, k], how many slots of its batch row chose its expert before it."""
    if not wanted.size:
        return np.zeros(wanted.shape, np.int64)
    rows = wanted.reshape(-1, *wanted.shape[-2:])
    # All first choices of a row, then its second choices. A stable sort then puts those with equal
    # row and expert side by side, in order.
    queue = rows.swapaxes(1, 2).reshape(len(rows), -1).astype(np.int64)
    keys = (queue + n_experts * np.arange(len(rows))[:, None]).reshape(-1)
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    start = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    position = np.arange(len(keys))
    place = np.empty_like(position)
    place[order] = position - np.maximum.accumulate(np.where(start, position, 0))
    by_slot = place.reshape(len(rows), wanted.shape[-1], -1)
    return np.asarray(by_slot.swapaxes(1, 2).reshape(wanted.shape))


def with_shared(
    logits: Array,
    *,
    top_k: int,
    n_shared: int,
    e_score_correction_bias: MaybeArray = None,
    routed_scaling_factor: float = 1.0,
) -> Routing:
    """Choose top_k experts by sigmoid and bias, and the last n_shared experts for every token.

        weights = routed_scaling_factor * sigmoid(z) / sum of sigmoid(z)    over all of them

    logits                   [..., experts and shared experts], float32 or float64
    e_score_correction_bias  [experts], as for fc.route
    routed_scaling_factor    multiplies the weights

    Returns a Routing with top_k + n_shared slots, the shared experts last.

    Raises ValueError and TypeError as fc.route does.
    """
    logits = check_logits(logits)
    n = logits.shape[-1] - n_shared
    chosen = route(
        logits[..., :n],
        top_k,
        score_fn="sigmoid",
        e_score_correction_bias=e_score_correction_bias,
    ).experts
    always = np.arange(n, n + n_shared, dtype=np.int32)
    always = np.broadcast_to(always, (*chosen.shape[:-1], n_shared))
    return route(
        logits,
        top_k + n_shared,
        score_fn="sigmoid",
        experts=np.concatenate([chosen, always], axis=-1),
        routed_scaling_factor=routed_scaling_factor,
    )


def _made(experts: Array, weights: Array, n_experts: int, *parts: Part) -> Routing:
    return Routing._make(None, experts, weights, n_experts, *parts)
