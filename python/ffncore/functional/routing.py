"""Which experts a token goes to, and with what weights: fc.route and its backward pass.

    s = softmax(z), sigmoid(z) or sqrt(softplus(z))       logits z [..., E]
    S = the k largest of s (or z), + bias, within the best groups
    w_S = c s_S / max(sum s_S + eps, min)                 experts, weights [..., k]

Slots are in falling order of what was selected by; ties go to the lowest index, as in JAX (torch
leaves them open). NaN counts as larger than any number, as in torch's topk: a token with a NaN
logit keeps k different experts and shows the NaN in its weights. Other routers: model_routers.py.
Formulas: csrc/kernels/route.inl and reference.route. Tests: tests/functional/test_routing.py.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..arrays.dtypes import FLOAT32, check_same_dtype
from ..arrays.places import Made, place_of, see
from ..arrays.rows import row_count
from ..arrays.shapes import Array, MaybeArray, check_shape, check_size
from ..arrays.words import integer
from ..backends.cpu import routing as kernels
from ..values.routing import Part as Part
from ..values.routing import Routing, see_ids
from ..values.routing_options import (
    Options,
    RouterCore,
    check_bias,
    check_logits,
    check_logits_dtype,
)
from .backend import backend_of


def route(
    logits: Array,
    top_k: int,
    *,
    score_fn: str = "softmax",
    select_on: str = "scores",
    norm_topk_prob: bool = True,
    norm_eps: float = 0.0,
    norm_min: float = 0.0,
    routed_scaling_factor: float = 1.0,
    e_score_correction_bias: MaybeArray = None,
    n_group: int = 1,
    topk_group: int = 1,
    group_score: str = "top2_sum",
    group_mask_value: float = -math.inf,
    experts: MaybeArray = None,
) -> Routing:
    """Chooses top_k of E experts for each token: logits [..., E] -> experts, weights [..., top_k].

    logits   float32 or float64, any strides; weights have the same dtype. On a GPU (torch CUDA
             tensors, CuPy arrays) float32, every other array is on it, too, and nothing waits
    score_fn                 "softmax", "sigmoid", "sqrtsoftplus" (sqrt(log(1 + e^z))), all over E;
                             "softmax_topk": softmax over the chosen logits alone
    select_on                "scores" or "logits"; softmax_topk selects on logits either way
    norm_topk_prob           weights are divided by max(their sum + norm_eps, norm_min)
    routed_scaling_factor    multiplies the weights, at the end
    e_score_correction_bias  [E], added to what is selected by; not in the weights, no gradient
    n_group, topk_group      experts in n_group equal groups: only those of the topk_group best can
                             be chosen; the others count as group_mask_value, -inf or 0. A group
                             is as good as its two best (group_score "top2_sum") or its best ("max")
    experts                  [..., top_k], any integer dtype: chosen already (different ones of a
                             token, or -1 for none), only their weights are computed

    A NaN logit counts as the largest: its expert is chosen, and the token's weights are NaN, so
    that the fault shows in the layer's output.

    ValueError where the options do not fit each other or E; TypeError for dtypes. Weights follow
    Mixtral (softmax), DeepSeek-V2 (softmax, groups by max), DeepSeek-V3 (sigmoid, bias, groups),
    gpt-oss (softmax_topk) and DeepSeek-V4 (sqrtsoftplus).

    >>> routing = fc.route(logits, 8, score_fn="sigmoid", e_score_correction_bias=bias,
    ...                    n_group=8, topk_group=4, norm_eps=1e-20, routed_scaling_factor=2.5)
    """
    k = integer("top_k", top_k)
    if k < 1:
        raise ValueError(f"top_k is {k}; expected at least 1")
    options = Options(
        score_fn,
        select_on,
        norm_topk_prob,
        norm_eps,
        norm_min,
        routed_scaling_factor,
        n_group,
        topk_group,
        group_score,
        group_mask_value,
    )
    place = place_of("logits", logits)
    seen = check_logits(see(place, "logits", logits))
    if place is not None and seen.dtype != FLOAT32:
        raise TypeError(f"logits has dtype {seen.dtype.name}; expected float32 on a GPU")
    given = experts is not None
    core = options.core(seen, k, given=given)
    bias = e_score_correction_bias
    if bias is not None and place is not None:
        bias = place.ghost("e_score_correction_bias", bias)
    bias = check_bias(bias, seen, given=given)
    shape = (*seen.shape[:-1], k)
    check_size(row_count(shape), k, "the tokens and top_k")
    ids = None
    if given:
        ids = see_ids(place, experts, seen.shape[-1])
        check_shape("experts", ids.ghost, shape, f"to match logits {seen.shape}")
    z = Made(seen if place is None else logits, seen)
    ids, weights, part = backend_of(place).route(place, z, k, core, bias, ids)
    return Routing._make(place, ids, weights, seen.shape[-1], part)


def weigh(
    logits: Array,
    k: int,
    core: RouterCore,
    experts: MaybeArray = None,
    log_sum_exp: MaybeArray = None,
) -> tuple[Array, Array]:
    """(experts, weights) of numpy arrays; log_sum_exp [...] is filled where it is given."""
    check_size(row_count((*logits.shape[:-1], k)), k, "the tokens and top_k")
    return kernels.weigh(logits, k, core, None, experts, log_sum_exp)


def backward_of_part(part: Part, grad: Array) -> Array:
    """grad_logits of numpy arrays."""
    return kernels.route_backward(None, part, Made(grad, grad))


def route_backward(grad_weights: Array, routing: Routing) -> Array:
    """grad_logits [..., E] from grad_weights [..., k], for a routing that this package made.

    Nothing flows through the choice itself, the bias or the groups. With softmax and without
    normalization every logit has a gradient; otherwise only those of the chosen experts (and with
    norm_eps, or where norm_min is reached, softmax gives the others one, too). Where norm_min is
    reached, the divisor is a constant. The logits are those of the forward pass: changing them in
    between is the caller's error. For a routing on a GPU both arrays are of its library, in float32
    and with any strides, and nothing waits.

    >>> grad_logits = fc.route_backward(grads.routing_weights, routing)
    """
    if not isinstance(routing, Routing):
        raise TypeError(f"routing is of type {type(routing).__name__}; expected a Routing")
    if routing._saved is None:
        raise ValueError(
            "routing was made of experts and weights; expected one that a router made of logits"
        )
    place, weights = routing._place, routing._arrays[1]
    seen = see(place, "grad_weights", grad_weights)
    dtype = check_logits_dtype("routing.weights", weights)
    check_same_dtype("grad_weights", seen, dtype, "routing.weights")
    check_shape("grad_weights", seen, weights.shape, "to match routing.weights")
    if len(routing._saved) == 1:
        grad = Made(seen if place is None else grad_weights, seen)
        return backend_of(place).route_backward(place, routing._saved[0], grad)  # type: ignore[no-any-return]
    total: Any = None
    slot = 0
    for part in routing._saved:
        end = slot + part.experts.shape[-1]
        found = backward_of_part(part, seen[..., slot:end])
        total = found if total is None else np.add(total, found, out=total)
        slot = end
    return np.asarray(total)
