"""Routing: fc.route chooses experts and their weights for each token; fc.route_backward.

    s = softmax(z), sigmoid(z) or sqrt(softplus(z))       logits z [..., E]
    S = the k experts with the largest s (or z) + bias, within the best groups
    w_S = c s_S / max(sum of s_S + eps, min)              experts, weights [..., k]

The experts of a token are sorted by falling selection value. Ties go to the lower index, as in JAX;
torch does not define them. NaN counts as larger than any number, as in torch's topk. So a token
with a NaN logit still has k different experts, and its weights are NaN.

model_routers.py has other routers. The kernels are in csrc/kernels/route.inl, the same formulas in
numpy in reference.route. Tests: tests/functional/test_routing.py.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..arrays.dtypes import FLOAT32, check_same_dtype
from ..arrays.places import Made, place_of, see
from ..arrays.rows import row_count
from ..arrays.scalars import integer
from ..arrays.shapes import Array, MaybeArray, check_shape, check_size
from ..backends.cpu import routing as kernels
from ..passes.backend import backend_of
from ..values.routing import Part as Part
from ..values.routing import Routing, see_ids
from ..values.routing_options import (
    CoreRouter,
    Options,
    check_bias,
    check_logits,
    check_logits_dtype,
)


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
    """Choose top_k of n_experts experts for each token, and compute their weights.

    Each token's logits z become scores s = score_fn(z). The experts with the top_k largest
    selection values, s + e_score_correction_bias, are chosen. Their weights are

        routed_scaling_factor * s / max(sum of the chosen s + norm_eps, norm_min)

    logits                   [..., n_experts], float32 or float64, any strides
    top_k                    the number of experts of each token
    score_fn                 "softmax", "sigmoid" or "sqrtsoftplus", sqrt(log(1 + e^z)), over all
                             experts; "softmax_topk": softmax over the chosen logits only
    select_on                "scores"; "logits": selection values are z + bias. softmax_topk selects
                             on logits either way
    norm_topk_prob           False: the weights are not divided by their sum
    norm_eps                 added to that sum
    norm_min                 a lower bound of the divisor
    routed_scaling_factor    multiplies the weights
    e_score_correction_bias  [n_experts], with the dtype of logits: a bias of the selection, which
                             is not part of the weights and gets no gradient
    n_group                  the experts form n_group groups of equal size, in their order
    topk_group               only experts of the topk_group best groups keep their selection values
    group_score              how good a group is: "top2_sum", the sum of its two largest selection
                             values, or "max", the largest
    group_mask_value         the selection value of experts in other groups: -inf or 0
    experts                  [..., top_k], any integer dtype: experts that are chosen already, those
                             of a token all different, or -1 for none. Then only their weights are
                             computed

    Returns a Routing: experts [..., top_k] int32, in falling order of selection values, where ties
    go to the lower index, and weights [..., top_k] with the dtype of logits.

    Raises ValueError for shapes, for options out of range and for options that have no effect
    together with the others; TypeError for types and dtypes.

    A NaN logit counts as the largest: its expert is chosen, and the weights of the token are NaN,
    so that the fault shows in the output of the layer.

    logits may be a torch CUDA tensor or a CuPy array, float32; then the other arrays are on the
    same GPU, too, and the call does not wait for it.

    These are the routers of Mixtral (softmax), DeepSeek-V2 (softmax, groups by "max"), DeepSeek-V3
    (sigmoid, bias, groups), gpt-oss (softmax_topk) and DeepSeek-V4 (sqrtsoftplus).

    See also: fc.moe, fc.route_backward, fc.sparsemixer, fc.switch_capacity.

    >>> routing = fc.route(logits, 4, score_fn="sigmoid", e_score_correction_bias=bias,
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
    core: CoreRouter,
    experts: MaybeArray = None,
    log_sum_exp: MaybeArray = None,
) -> tuple[Array, Array]:
    """Return (experts, weights) for numpy arrays; log_sum_exp [...], if any, is filled."""
    check_size(row_count((*logits.shape[:-1], k)), k, "the tokens and top_k")
    return kernels.weigh(logits, k, core, None, experts, log_sum_exp)


def backward_of_part(part: Part, grad: Array) -> Array:
    """Return grad_logits [..., E] for numpy arrays."""
    return kernels.route_backward(None, part, Made(grad, grad))


def route_backward(grad_weights: Array, routing: Routing) -> Array:
    """Compute the gradient of the logits from the gradient of the routing weights.

    grad_weights  [..., k], with the shape and dtype of routing.weights
    routing       a Routing that fc.route, fc.sparsemixer or fc.switch_capacity made, whose logits
                  have not been changed since

    Returns grad_logits [..., n_experts], with the dtype of the logits.

    No gradient flows through the selection, the bias or the groups, and none through the divisor of
    the weights if it is norm_min. With "sigmoid", "sqrtsoftplus" and "softmax_topk" only logits of
    the chosen experts have a gradient; with "softmax" that also holds if the weights are divided by
    exactly their sum, and otherwise all logits have one.

    Raises ValueError for shapes and for a Routing that was made of arrays of experts and weights;
    TypeError for types and dtypes.

    If the routing is on a GPU, so are grad_weights (float32, any strides) and the result, and the
    call does not wait for the GPU.

    >>> grads = fc.moe_backward(grad_y, moe_saved)
    >>> grad_logits = fc.route_backward(grads.routing_weights, moe_saved.routing)
    """
    if not isinstance(routing, Routing):
        raise TypeError(f"routing is of type {type(routing).__name__}; expected a Routing")
    if routing._saved is None:
        raise ValueError(
            "routing was made from experts and weights; expected a routing that fc.route or "
            "another router made from logits"
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
