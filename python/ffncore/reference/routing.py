"""The specification of routing in plain numpy: fc.route, the other routers, and the losses.

    s = softmax(z), sigmoid(z) or sqrt(softplus(z))      w_S = c s_S / max(sum s_S + eps, min)

If all chosen scores are so small that their sum underflows, and eps and min are 0, the weights are
computed from the logits instead: softmax(z_S), or softmax(z_S / 2) for sqrt(softplus(z)).

Part of ffncore.reference, whose docstring explains `dtype`. For fixed experts (experts=) the
weights are analytic in the logits, so that tests can use the complex step.
Tests: tests/reference/test_reference_routing.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..arrays.shapes import Array


class Routed(NamedTuple):
    """The result of a router: experts [..., k] int32 and weights [..., k]."""

    experts: Array
    weights: Array


def softmax(z: Array) -> Array:
    """The softmax along the last axis; the largest entry is subtracted, against overflow."""
    e = np.exp(z - z.real.max(axis=-1, keepdims=True, initial=-np.inf))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def scores(z: Array, score_fn: str) -> Array:
    """The scores [..., E] of all experts, for a score_fn other than softmax_topk."""
    if score_fn == "softmax":
        return softmax(z)
    if score_fn == "sigmoid":
        return np.asarray(1 / (1 + np.exp(-z)))
    # sqrt(log(1 + e^z)) is e^(z / 2) if e^z is negligible compared with 1.
    small = z.real < -40
    rest = np.where(small, 0, z)
    root = np.sqrt(np.where(rest.real > 0, rest, 0) + np.log1p(np.exp(-rest * np.sign(rest.real))))
    return np.where(small, np.exp(z / 2), root)


def largest(values: Array, k: int) -> Array:
    """Indices of the k largest along the last axis: NaN first, ties to the lower index."""
    values = values.real
    # lexsort is stable, so equal values stay in order; its last key counts most.
    order = np.lexsort((-np.where(np.isnan(values), 0, values), ~np.isnan(values)), axis=-1)
    return order[..., :k].astype(np.int32)


def route(
    logits: npt.ArrayLike,
    top_k: int,
    *,
    score_fn: str = "softmax",
    select_on: str = "scores",
    norm_topk_prob: bool = True,
    norm_eps: float = 0.0,
    norm_min: float = 0.0,
    routed_scaling_factor: float = 1.0,
    e_score_correction_bias: npt.ArrayLike | None = None,
    n_group: int = 1,
    topk_group: int = 1,
    group_score: str = "top2_sum",
    group_mask_value: float = -np.inf,
    experts: npt.ArrayLike | None = None,
    dtype: npt.DTypeLike = np.float64,
) -> Routed:
    """Compute fc.route in numpy, with the same arguments and `dtype`.

    Returns Routed: experts [..., top_k] int32 and weights [..., top_k].

    >>> routed = fc.reference.route(logits, 2)
    """
    with np.errstate(all="ignore"):
        z = np.asarray(logits, dtype)
        on_logits = score_fn == "softmax_topk"
        s = z if on_logits else scores(z, score_fn)
        if experts is None:
            v = z if on_logits or select_on == "logits" else s
            if e_score_correction_bias is not None:
                v = v + np.asarray(e_score_correction_bias, dtype)
            if topk_group < n_group:
                v = masked_groups(v, n_group, topk_group, group_score, group_mask_value)
            experts = largest(v, top_k)
        ids = np.asarray(experts, np.int32)
        here = ids >= 0
        picked = np.take_along_axis(s, np.where(here, ids, 0).astype(np.intp), axis=-1)
        if on_logits:
            weights = softmax(np.where(here, picked, -np.inf))
        else:
            picked = np.where(here, picked, 0)
            weights = picked / divisor(picked, norm_topk_prob, norm_eps, norm_min)[0]
            if norm_topk_prob and norm_eps == norm_min == 0:
                weights = np.where(faint(picked), shares_of_logits(z, ids, score_fn), weights)
        weights = np.where(here, weights * routed_scaling_factor, 0)
    return Routed(ids, np.asarray(weights, dtype))


def masked_groups(v: Array, n_group: int, topk_group: int, score: str, value: float) -> Array:
    """v [..., E], with `value` for all experts outside the best groups."""
    grouped = v.reshape(*v.shape[:-1], n_group, -1)
    two = np.take_along_axis(grouped, largest(grouped, 2).astype(np.intp), axis=-1)
    best = largest(two[..., 0] if score == "max" else two.sum(axis=-1), topk_group)
    keep = (np.arange(n_group) == best[..., None]).any(axis=-2)
    return np.asarray(np.where(keep[..., None], grouped, value).reshape(v.shape))


def divisor(picked: Array, normalize: bool, eps: float, least: float) -> tuple[Any, Any]:
    """The divisor of the scores, [..., 1], and whether it is a constant, without a gradient."""
    if not normalize:
        return 1.0, True
    total = picked.sum(axis=-1, keepdims=True) + eps
    constant = total.real < least
    return np.where(constant, least, total), constant


def faint(picked: Array) -> Array:
    """[..., 1]: whether the sum of the chosen scores is too small to divide by its square."""
    return np.asarray(picked.real.sum(axis=-1, keepdims=True) < 1e-140)


def shares_of_logits(z: Array, ids: Array, score_fn: str) -> Array:
    """The chosen scores divided by their sum, [..., k], if the scores of a token are proportional
    to e^z, or to e^(z / 2) for sqrtsoftplus.
    """
    picked = np.take_along_axis(z, np.where(ids >= 0, ids, 0).astype(np.intp), axis=-1)
    exponent = picked / 2 if score_fn == "sqrtsoftplus" else picked
    return softmax(np.where(ids >= 0, exponent, -np.inf))


def route_backward(
    grad_weights: npt.ArrayLike,
    logits: npt.ArrayLike,
    experts: npt.ArrayLike,
    *,
    score_fn: str = "softmax",
    norm_topk_prob: bool = True,
    norm_eps: float = 0.0,
    norm_min: float = 0.0,
    routed_scaling_factor: float = 1.0,
    dtype: npt.DTypeLike = np.float64,
) -> Array:
    """Compute fc.route_backward in numpy, by the chain rule.

    grad_weights  [..., k], the gradient of the weights
    logits        [..., n_experts]
    experts       [..., k], the chosen experts

    The options are those of fc.route. Those that select experts (select_on, the bias, groups) have
    no influence on the gradient, and are not arguments.

    Returns grad_logits [..., n_experts].

    >>> grad_logits = fc.reference.route_backward(routing.weights, logits, routing.experts)
    """
    with np.errstate(all="ignore"):
        z, ids = np.asarray(logits, dtype), np.asarray(experts, np.int32)
        here = ids >= 0
        at = np.where(here, ids, 0).astype(np.intp)
        g = np.where(here, np.asarray(grad_weights, dtype), 0) * routed_scaling_factor
        # [..., k, E]: whether slot j has expert e.
        slots = here[..., None] & (at[..., None] == np.arange(z.shape[-1]))

        def to_experts(by_slot: Array) -> Array:
            return np.asarray(np.where(slots, by_slot[..., None], 0).sum(axis=-2))

        q = shares_of_logits(z, ids, score_fn)
        of_shares = to_experts(np.where(here, q * (g - (q * g).sum(axis=-1, keepdims=True)), 0))
        if score_fn == "softmax_topk":
            return of_shares
        s = scores(z, score_fn)
        picked = np.where(here, np.take_along_axis(s, at, axis=-1), 0)
        d, constant = divisor(picked, norm_topk_prob, norm_eps, norm_min)
        total = (g * picked).sum(axis=-1, keepdims=True)
        grad_scores = to_experts(g / d - np.where(constant, 0, total / d**2))
        if score_fn == "softmax":
            grad_logits = s * (grad_scores - (s * grad_scores).sum(axis=-1, keepdims=True))
        elif score_fn == "sigmoid":
            grad_logits = grad_scores * s * (1 - s)
        else:
            # sigmoid(z) / (2 s); for very small z, s is e^(z / 2) and sigmoid(z) is e^z.
            slope = np.where(z < -40, np.exp(z / 2) / 2, 1 / (1 + np.exp(-z)) / (2 * s))
            grad_logits = np.where(slots.any(axis=-2), grad_scores * slope, 0)
        if norm_topk_prob and norm_eps == norm_min == 0:
            c = 0.5 if score_fn == "sqrtsoftplus" else 1
            grad_logits = np.where(faint(picked), c * of_shares, grad_logits)
        return np.asarray(grad_logits)


def sparsemixer(
    logits: npt.ArrayLike, *, jitter_eps: float, dtype: npt.DTypeLike = np.float64
) -> Routed:
    """Compute fc.sparsemixer in numpy, without random numbers.

    Returns Routed: experts [..., 2] int32 and weights [..., 2].
    """
    z = np.asarray(logits, dtype)
    left, experts, weights = z, [], []
    with np.errstate(all="ignore"):
        for _ in range(2):
            expert = largest(left, 1)
            m = np.take_along_axis(left, expert.astype(np.intp), axis=-1)
            far = (m - z) / np.maximum(np.abs(z), m) > 2 * jitter_eps
            p = softmax(np.where(far, -np.inf, left))
            experts.append(expert)
            weights.append(np.take_along_axis(p, expert.astype(np.intp), axis=-1))
            left = np.where(np.arange(z.shape[-1]) == expert, -np.inf, left)
    return Routed(np.concatenate(experts, axis=-1), np.concatenate(weights, axis=-1))


def switch_capacity(
    logits: npt.ArrayLike, *, capacity: int, top_k: int = 1, dtype: npt.DTypeLike = np.float64
) -> Routed:
    """Compute fc.switch_capacity in numpy, one token after the other.

    Returns Routed: experts [..., top_k] int32 and weights [..., top_k].
    """
    z = np.asarray(logits, dtype)
    p = softmax(z)
    experts = largest(p, top_k)
    for row in np.ndindex(z.shape[:-2]):
        taken = np.zeros(z.shape[-1], np.int64)
        for slot in range(top_k):
            for token in range(z.shape[-2]):
                place = (*row, token, slot)
                expert = experts[place]
                taken[expert] += 1
                if taken[expert] > capacity:
                    experts[place] = -1
    here = experts >= 0
    picked = np.take_along_axis(p, np.where(here, experts, 0).astype(np.intp), axis=-1)
    weights = np.where(here, picked, 0)
    if top_k == 2:
        least = np.finfo(np.asarray(logits).dtype).eps
        weights = weights / np.maximum(weights.sum(axis=-1, keepdims=True), least)
    return Routed(experts, weights)


def load_balancing_loss(
    logits: npt.ArrayLike,
    experts: npt.ArrayLike,
    *,
    convention: str = "hf",
    from_logits: bool = True,
    dtype: npt.DTypeLike = np.float64,
) -> Any:
    """Compute fc.load_balancing_loss in numpy; experts [..., k] are those that are counted.

    Returns a number.
    """
    z, ids = np.asarray(logits, dtype), np.asarray(experts)
    n, k = z.shape[-1], ids.shape[-1]
    if not z.size:
        return 0.0
    if convention == "switch":
        rows, row_ids = z.reshape(-1, *z.shape[-2:]), ids.reshape(-1, *ids.shape[-2:])
        options: Any = {"convention": "megatron", "from_logits": from_logits, "dtype": dtype}
        losses = [
            load_balancing_loss(row, i, **options) for row, i in zip(rows, row_ids, strict=True)
        ]
        return sum(losses) / len(losses)
    p = (softmax(z) if from_logits else z).reshape(-1, n)
    count = (ids.reshape(-1, 1) == np.arange(n)).sum(axis=0)
    share = count / (len(p) if convention == "hf" else len(p) * k)
    return n * (share * p.mean(axis=0)).sum()


def router_z_loss(logits: npt.ArrayLike, *, dtype: npt.DTypeLike = np.float64) -> Any:
    """Compute fc.router_z_loss in numpy. Returns a number."""
    z = np.asarray(logits, dtype)
    if not z.size:
        return 0.0
    top = z.real.max(axis=-1, keepdims=True)
    log_sum = top[..., 0] + np.log(np.exp(z - top).sum(axis=-1))
    return (log_sum**2).mean()
