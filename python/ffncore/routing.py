"""Which experts a token goes to, and with what weights: fc.Routing, fc.route, its backward pass.

    s = softmax(z), sigmoid(z) or sqrt(softplus(z))       logits z [..., E]
    S = the k largest of s (or z), + bias, within the best groups
    w_S = c s_S / max(sum s_S + eps, min)                 experts, weights [..., k]

Slots are in falling order of what was selected by; ties go to the lowest index, as in JAX (torch
leaves them open). NaN counts as larger than any number, as in torch's topk: a token with a NaN
logit keeps k different experts and shows the NaN in its weights. Other routers: routers.py.
Formulas: csrc/kernels/route.inl and reference.route. Tests: tests/test_routing.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _core
from ._arrays import (
    Array,
    MaybeArray,
    as_array,
    check_same_dtype,
    check_shape,
    check_size,
    dtype_name,
)
from ._copying import Copied
from ._device import Made, Place, place_of
from ._router import (
    MOST_EXPERTS,
    Options,
    check_bias,
    check_core,
    check_logits,
    check_logits_dtype,
    integer,
)
from ._rows import over_rows, row_count


@dataclass(frozen=True)
class Part(Copied):
    """Slots whose weights are made of one array of logits."""

    logits: Array
    experts: Array  # [..., k]
    core: _core.RouterTuple

    @classmethod
    def _remade(cls, logits: Array, experts: Array, core: Any) -> Part:
        z = check_logits(logits)
        ids = check_ids(experts, z.shape[-1])
        check_shape("experts", ids, (*z.shape[:-1], *ids.shape[-1:]), f"to match logits {z.shape}")
        return cls(z, ids, check_core(core, z))

    def backward(self, grad: Array) -> Array:
        grad_logits = np.empty(self.logits.shape, self.logits.dtype)

        def run(grad: Array, experts: Array, logits: Array, out: Array) -> None:
            _core.route_backward(grad, experts, logits, out, self.core)

        over_rows(run, (grad, self.experts, self.logits), (grad_logits,), cut=self.logits.ndim - 1)
        return grad_logits


class Routing(Copied):
    """Experts of each token and their weights; as fc.route makes it, or your own.

    experts    [..., k], any integer dtype; kept as int32. -1: no expert, which contributes nothing
    weights    [..., k], float32 or float64
    n_experts  E; None where nobody said it

    It is not changed after it is made, and holds the arrays given, not copies (experts of another
    dtype or layout are copied). TypeError for dtypes, ValueError for shapes and for ids that are
    not -1 to E - 1. torch CUDA tensors and CuPy arrays of one device will do, too, with weights of
    float32; then ids are not looked at (see fc.moe).

    >>> routing = fc.Routing(experts=ids, weights=weights, n_experts=64)
    """

    __slots__ = ("_arrays", "_kept", "_place", "_saved", "experts", "n_experts", "weights")

    experts: Array
    weights: Array
    n_experts: int | None
    _saved: tuple[Part, ...] | None  # what route_backward needs; the weights in their order
    _arrays: tuple[Array, Array]  # experts and weights to check against: on a GPU, their ghosts
    _place: Place | None
    _kept: tuple[Any, ...]  # what keeps a GPU's memory: experts and weights

    def __init__(self, *, experts: object, weights: object, n_experts: int | None = None) -> None:
        if n_experts is not None:
            n_experts = integer("n_experts", n_experts)
            if not 1 <= n_experts <= MOST_EXPERTS:
                raise ValueError(f"n_experts is {n_experts}; expected 1 to {MOST_EXPERTS}")
        place = place_of("experts", experts)
        kept: tuple[Any, ...] = ()
        if place is None:
            ids = seen = check_ids(experts, n_experts)
            weights = factors = as_array("weights", weights)
        else:
            ids, seen = ids_on_gpu(place, experts)
            factors = place.ghost("weights", weights)
            kept = (place.library.view(ids), place.library.view(weights))
        check_logits_dtype("weights", factors)
        check_shape("weights", factors, seen.shape, "to match experts")
        self._set(experts=ids, weights=weights, n_experts=n_experts)
        self._set(_saved=None, _arrays=(seen, factors), _place=place, _kept=kept)

    @classmethod
    def _make(cls, experts: Array, weights: Array, n_experts: int, *saved: Part) -> Routing:
        routing = object.__new__(cls)
        routing._set(experts=experts, weights=weights, n_experts=n_experts, _saved=saved)
        routing._set(_arrays=(experts, weights), _place=None, _kept=())
        return routing

    @classmethod
    def _on_gpu(
        cls, experts: Made, weights: Made, n_experts: int, place: Place, saved: Any
    ) -> Routing:
        routing = object.__new__(cls)
        kept = (place.library.view(experts.array), place.library.view(weights.array))
        routing._set(experts=experts.array, weights=weights.array, n_experts=n_experts)
        routing._set(_saved=(saved,), _arrays=(experts.ghost, weights.ghost))
        routing._set(_place=place, _kept=kept)
        return routing

    def _set(self, **attributes: object) -> None:
        for name, value in attributes.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"Routing cannot be changed; {name} was assigned to")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"Routing cannot be changed; {name} was deleted")

    def _state(self) -> dict[str, Any]:
        own = {"experts": self.experts, "weights": self.weights, "n_experts": self.n_experts}
        return own | {"parts": self._saved}

    @classmethod
    def _remade(
        cls, experts: Array, weights: Array, n_experts: int | None, parts: tuple[Part, ...] | None
    ) -> Routing:
        routing = cls(experts=experts, weights=weights, n_experts=n_experts)
        for part in parts or ():
            expected = (*weights.shape[:-1], n_experts)
            check_shape("logits", part.logits, expected, "to match routing.weights")
            check_same_dtype("logits", part.logits, weights.dtype, "routing.weights")
        slots = routing.top_k if parts is None else sum(p.experts.shape[-1] for p in parts)
        if slots != routing.top_k:
            raise ValueError(f"routing has logits of {slots} slots; expected {routing.top_k}")
        routing._set(_saved=parts)
        return routing

    @property
    def top_k(self) -> int:
        """Slots of a token."""
        return int(self.experts.shape[-1])

    @property
    def counts(self) -> Array:
        """How many tokens each expert has: [E], int64; empty slots (-1) are not counted."""
        if self.n_experts is None:
            raise ValueError("routing.n_experts is None; expected a number to count up to")
        if self._place is not None:
            counts: Array = self._place.library.counts(self._kept[0].reshape(-1), self.n_experts)
            return counts
        return np.bincount(self.experts.reshape(-1) + 1, minlength=self.n_experts + 1)[1:]

    def __repr__(self) -> str:
        return (
            f"Routing(experts={self._arrays[0].shape}, "
            f"weights={dtype_name(self._arrays[1].dtype)}, "
            f"n_experts={self.n_experts})"
        )


def check_ids_shape(ids: Array) -> None:
    if ids.dtype.kind not in "iu":
        raise TypeError(f"experts has dtype {dtype_name(ids.dtype)}; expected an integer dtype")
    if ids.ndim < 1 or ids.shape[-1] < 1:
        raise ValueError(f"experts has shape {ids.shape}; expected [..., k] with k at least 1")


def ids_on_gpu(place: Place, value: Any) -> tuple[Any, Array]:
    """[..., k] expert ids as int32, C-contiguous, and their ghost."""
    ids = place.ghost("experts", value)
    check_ids_shape(ids)
    if ids.dtype == np.int32 and ids.flags.c_contiguous:
        return value, ids
    converted = place.library.as_int32(value)
    return converted, place.ghost("experts", converted)


def check_ids(value: object, n_experts: int | None) -> Array:
    """[..., k] expert ids as int32, C-contiguous."""
    ids = as_array("experts", value)
    check_ids_shape(ids)
    end = MOST_EXPERTS if n_experts is None else n_experts
    if ids.size:
        for wrong in (int(ids.min()), int(ids.max())):
            if not -1 <= wrong < end:
                of = "" if n_experts is None else f", of {n_experts} experts"
                raise ValueError(f"experts has an entry {wrong}; expected -1 to {end - 1}{of}")
    # Not by numpy alone: it makes another array where int32 is not the same object, as of a pickle.
    if ids.dtype == np.int32 and ids.flags.c_contiguous:
        return ids
    return np.ascontiguousarray(ids, np.int32)


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
    if place is not None:
        from . import _device_routing

        return _device_routing.route(place, logits, k, options, e_score_correction_bias, experts)
    logits = check_logits(logits)
    given = experts is not None
    core = options.core(logits, k, given=given)
    bias = check_bias(e_score_correction_bias, logits, given=given)
    ids = None
    if experts is not None:
        ids = check_ids(experts, logits.shape[-1])
        check_shape("experts", ids, (*logits.shape[:-1], k), f"to match logits {logits.shape}")
    ids, weights = weigh(logits, k, core, bias, ids)
    return Routing._make(ids, weights, logits.shape[-1], Part(logits.view(), ids, core))


def weigh(
    logits: Array,
    k: int,
    core: _core.RouterTuple,
    bias: MaybeArray = None,
    experts: MaybeArray = None,
    log_sum_exp: MaybeArray = None,
) -> tuple[Array, Array]:
    """(experts, weights) of checked arguments; log_sum_exp [...] is filled where it is given."""
    shape = (*logits.shape[:-1], k)
    check_size(row_count(shape), k, "the tokens and top_k")
    ids = np.empty(shape, np.int32) if experts is None else experts
    weights = np.empty(shape, logits.dtype)

    def run(logits: Array, given: MaybeArray, out: MaybeArray, *rest: Any) -> None:
        weights, sums = rest
        ids: Any = given if out is None else out
        line = None if sums is None else sums.reshape(-1)
        _core.route(logits, ids, out is None, weights, line, core, bias)

    sums = None if log_sum_exp is None else log_sum_exp[..., None]
    out = ids if experts is None else None
    over_rows(run, (logits, experts), (out, weights, sums), cut=logits.ndim - 1)
    return ids, weights


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
    if routing._place is not None:
        from . import _device_routing

        return _device_routing.route_backward(grad_weights, routing)
    grad = as_array("grad_weights", grad_weights)
    dtype = check_logits_dtype("routing.weights", routing.weights)
    check_same_dtype("grad_weights", grad, dtype, "routing.weights")
    check_shape("grad_weights", grad, routing.weights.shape, "to match routing.weights")
    total: Any = None
    slot = 0
    for part in routing._saved:
        end = slot + part.experts.shape[-1]
        found = part.backward(grad[..., slot:end])
        total = found if total is None else np.add(total, found, out=total)
        slot = end
    return np.asarray(total)
