"""A mixture of experts as functions: forward, forward that saves, backward.

    y[t] = sum over slots s of w[t, s] FFN_e(x[t]),  e = experts[t, s]      weight on the output
    y[t] = sum over slots s of FFN_e(w[t, s] x[t])                          weight on the input

x is [..., d], a Routing holds experts and weights [..., k], the experts' FFNWeights have a leading
E on every array. Rows go through experts without copies of x and without a [T, k, d] array. The
slots of a token are added in fp32, in order; an expert's rows have the bits of fc.ffn with its
weights. Expert -1 is none: the slot adds nothing, and its weight gets gradient 0.

Gradients (dy_s: what a slot's output gets, w dy or dy):

    d_w[t, s] = <dy[t], FFN_e(x[t])>, or <d(w x), x[t]>         experts as fc.ffn_backward's
    dx[t]     = sum over the slots' experts in rising order     0 for experts that no token chose

Tests: tests/test_moe.py, tests/test_moe_backward.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _core
from ._arrays import (
    FLOAT32,
    FLOAT64,
    Array,
    MaybeArray,
    as_array,
    check_apart,
    check_out,
    check_same_dtype,
    check_size,
)
from ._grads import (
    Asked,
    FFNGrads,
    mirror,
    routing_inputs,
    weights_inputs,
)
from ._memory import reusable
from ._rows import over_rows, row_count
from ._saved import DeviceMoESaved, MoESaved, keeps_preactivations
from .activations import Activation, to_tuple
from .functional import on_gpu
from .packed import PackedWeights, check_experts
from .routing import Routing
from .weights import NAMES, FFNWeights


@dataclass(frozen=True, eq=False, repr=False)
class MoEGrads(FFNGrads):
    """Gradients of a mixture; None is what was not asked for.

    weights is an FFNWeights that mirrors the experts, routing_weights is [..., k] as in the
    routing, activation holds xielu's two parameters.
    """

    routing_weights: MaybeArray = None

    def arrays(self) -> dict[str, Array]:
        own = {} if self.routing_weights is None else {"routing_weights": self.routing_weights}
        return {**super().arrays(), **own}


def moe(
    x: Array,
    routing: Routing,
    weights: FFNWeights | PackedWeights,
    *,
    activation: str | Activation,
    apply_router_weight_on_input: bool = False,
    out: MaybeArray = None,
) -> Array:
    """y [..., d] of x [..., d]; out: an array to write y to, which is returned.

    routing  experts [..., k] from 0 to E - 1, or -1 for none; weights [..., k] float32, or float64
             beside float64 x. An expert may be there twice within a token.
    weights  of the experts: FFNWeights with a leading E, or packed ones

    x, routing, weights and out may also be torch CUDA tensors, or CuPy arrays, of one device, as
    for fc.ffn. There expert ids are not looked at: one that does not exist counts as -1, or is an
    error with FFNCORE_CUDA_DEBUG=1 in the environment, where each call waits for the GPU.

    >>> y = fc.moe(x, fc.route(logits, 8), experts, activation="silu")
    """
    if on_gpu(x, weights, routing):
        from . import _device_layer

        return _device_layer.moe(x, routing, weights, activation, apply_router_weight_on_input, out)
    call = _Call(x, routing, weights, activation, apply_router_weight_on_input)
    return call.forward(call.output(out), None)


def moe_forward(
    x: Array,
    routing: Routing,
    weights: FFNWeights | PackedWeights,
    *,
    activation: str | Activation,
    apply_router_weight_on_input: bool = False,
    save: str = "preactivations",
    out: MaybeArray = None,
) -> tuple[Array, MoESaved]:
    """y and what the backward pass needs; arguments as for moe.

    save="preactivations" keeps gate and up of every slot that has an expert; save="input" keeps
    references alone, and the backward pass computes them again. The results are the same bits.
    Arrays on a GPU as for moe.

    >>> y, saved = fc.moe_forward(x, routing, experts, activation="silu")
    """
    if on_gpu(x, weights, routing):
        from . import _device_layer

        return _device_layer.moe_forward(
            x, routing, weights, activation, apply_router_weight_on_input, save, out
        )
    call = _Call(x, routing, weights, activation, apply_router_weight_on_input)
    keep = keeps_preactivations(save)
    y = call.output(out)
    w = call.weights
    panels = None
    if keep:
        size = _core.moe_saved_bytes(call.x, call.ids, call.n_experts, w.d_ff, w.gated)
        panels = reusable(size).view(call.x.dtype)
    call.forward(y, panels)
    saved = MoESaved._make(
        call.x,
        w,
        activation,
        panels,
        routing=call.routing,
        apply_router_weight_on_input=call.on_input,
        _ids=call.ids.copy(),
    )
    return y, saved


def moe_backward(
    grad_y: Array,
    saved: MoESaved,
    *,
    needs: Iterable[str] | None = None,
    out: MoEGrads | Mapping[str, Any] | None = None,
    accumulate: bool = False,
) -> MoEGrads:
    """Gradients of x, the routing weights, the experts and xielu's parameters.

    grads.x is the gradient along the experts alone. Where the routing was made of logits = x r^T by
    a router r [E, d], the logits depend on x, too, and the whole gradient is

        grad_logits = fc.route_backward(grads.routing_weights, routing)
        grad_r = grad_logits^T x
        grad_x = grads.x + grad_logits r

    An expert without tokens has gradients of zero (routing.counts tells how many each has).

    needs       names of what is wanted: "x", "routing_weights", "gate", "up", "down", "b_gate",
                "b_up", "b_down", "activation"; what is not needed is not computed. Default: all
                that exist (through packed weights: x and routing_weights).
    out         arrays to fill: a MoEGrads, or a mapping of the names of needs
    accumulate  add into out instead; experts that no token chose are not touched

    Dtypes as for fc.ffn_backward, and arrays on a GPU, too; the gradient of routing weights has
    their dtype.

    >>> grads = fc.moe_backward(grad_y, saved)
    >>> grad_logits = fc.route_backward(grads.routing_weights, saved.routing)
    """
    if isinstance(saved, DeviceMoESaved):
        from . import _device_layer

        return _device_layer.moe_backward(grad_y, saved, needs, out, accumulate)
    if not isinstance(saved, MoESaved):
        raise TypeError(
            f"saved is of type {type(saved).__name__}; expected what moe_forward returned"
        )
    call = _Call(
        saved._own_x,
        saved.routing,
        saved.weights,
        saved.activation,
        saved.apply_router_weight_on_input,
    )
    call.ids = saved._ids  # what was saved lies in their order
    asked = Asked(grad_y, saved, needs, out, accumulate)
    grads = asked.arrays
    results = []
    if asked.wanted:
        results = over_rows(
            call.backward(asked, saved._panels),
            (call.x, asked.grad),
            (grads.get("x"), grads.get("routing_weights")),
            cut=0,
            keep=asked.accumulate,
        )
    grad_x, grad_routing = grads.pop("x", None), grads.pop("routing_weights", None)
    weights = mirror(grads, saved.weights, out)
    return MoEGrads(grad_x, weights, asked.numbers(results), grad_routing)


class _Call:
    """The arguments that both passes share, tested, as _core takes them."""

    def __init__(
        self, x: object, routing: object, weights: object, activation: object, on_input: object
    ) -> None:
        w = check_experts(weights)
        self.weights, self.n_experts = w, int(w.n_experts or 0)
        self.activation = to_tuple(activation, w.gated, w.dtype)
        self.x = as_array("x", x)
        check_same_dtype("x", self.x, w.dtype, "the weights", or_float32=True)
        if self.x.ndim == 0 or self.x.shape[-1] != w.d_model:
            raise ValueError(
                f"x has shape {self.x.shape}; expected a last dimension of {w.d_model} "
                f"to match w.up {(self.n_experts, *w.shape)}"
            )
        self.routing = _check_routing(routing, self.x, self.n_experts)
        ids, factors = self.routing._arrays
        k = ids.shape[-1]
        tokens = row_count(self.x.shape)
        check_size(tokens * k, max(w.shape), "the routed rows of x and the sizes of an expert")
        self.ids = ids.reshape(tokens, k)
        self.factors = factors
        self.on_input = bool(on_input)

    def output(self, out: object) -> Array:
        if out is None:
            return np.empty(self.x.shape, self.x.dtype)
        y = check_out("out", out, self.x.shape, self.x.dtype, "to match x")
        check_apart("out", y, [("x", self.x), *weights_inputs(self.weights)])
        check_apart("out", y, routing_inputs(self.routing))
        return y

    def _mixture(self) -> _core.MixtureTuple:
        core = self.weights._core_arrays()
        factors = np.ascontiguousarray(self.factors).reshape(self.ids.shape)
        return core, self.n_experts, self.activation, self.ids, factors, self.on_input

    def forward(self, y: Array, panels: MaybeArray) -> Array:
        mixture = self._mixture()

        def run(rows: Array, y_rows: Array) -> None:
            _core.moe_forward(rows, y_rows, mixture, panels)

        over_rows(run, (self.x,), (y,), cut=0)
        return y

    def backward(self, asked: Asked, panels: MaybeArray) -> Any:
        mixture = self._mixture()

        def run(
            rows: Array, grad_rows: Array, grad_x: MaybeArray, grad_factors: MaybeArray
        ) -> tuple[float, float] | None:
            return _core.moe_backward(
                rows,
                grad_rows,
                mixture,
                panels,
                asked.accumulate,
                grad_x,
                grad_factors,
                tuple(asked.arrays.get(name) for name in NAMES),  # type: ignore[arg-type]
                asked.xielu,
            )

        return run


def _check_routing(routing: object, x: Array, n_experts: int) -> Routing:
    if not isinstance(routing, Routing):
        raise TypeError(f"routing is of type {type(routing).__name__}; expected Routing")
    ids, factors = routing._arrays
    shape = ids.shape
    if shape[:-1] != x.shape[:-1]:
        raise ValueError(
            f"routing.experts has shape {shape}; expected {(*x.shape[:-1], shape[-1])} to match x"
        )
    expected = FLOAT64 if x.dtype == FLOAT64 else FLOAT32
    if factors.dtype != expected:
        raise TypeError(
            f"routing.weights has dtype {factors.dtype.name}; expected {expected.name} "
            f"beside {x.dtype.name} x"
        )
    if routing.n_experts is not None and routing.n_experts != n_experts:
        raise ValueError(
            f"routing.n_experts is {routing.n_experts}; expected {n_experts}, the experts of the "
            f"weights (a routing has as many as the logits that it was made of)"
        )
    if ids.size and routing._place is None:
        highest, lowest = int(ids.max()), int(ids.min())
        if highest >= n_experts or lowest < -1:
            worst = highest if highest >= n_experts else lowest
            raise ValueError(
                f"routing.experts has {worst}; expected -1 (no expert) to {n_experts - 1}"
            )
    return routing
