"""The arguments of a layer's forward pass, checked once, for every backend.

    dense      x [..., d] and the weights of one layer
    mixture    x [..., d], the weights of experts [E, ...], a routing [..., k] of the same tokens

The result is a LayerArguments; a backend relies on its checks. Saved activations keep it for the
backward pass (saved.py), and build it again, with all checks, when they are read from a pickle.
Tests: tests/values/test_errors.py, tests/values/test_moe_errors.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _core
from ..arrays.dtypes import FLOAT32, FLOAT64, check_dtype, check_same_dtype
from ..arrays.libraries import library_of
from ..arrays.overlap import check_apart, check_out
from ..arrays.places import Made, Place, no_gpu_array, place_of, see
from ..arrays.rows import row_count
from ..arrays.shapes import Array, check_size, check_width
from .activation import Activation, CoreActivation, as_activation, as_core
from .packed import PackedWeights, check_block, check_experts, check_weights, weights_inputs
from .routing import Routing, routing_inputs
from .weights import FFNWeights


class LayerArguments:
    """The checked arguments of a layer's forward pass.

    place       the GPU that all arrays are on, or None for the CPU
    x           x as the caller passed it
    seen        the same for checks: x itself, or its ghost on a GPU (arrays/places.py)
    weights     of one layer, or of experts
    activation  the Activation
    core        the activation as the kernels take it
    routing     the Routing; None for a dense layer, which has no ids and factors either
    ids         [T, k], its experts, for checks and kernels
    factors     [..., k], its weights, likewise
    on_input    whether factors multiply the input of an expert instead of its output
    quantized   whether weights have a QuantizedTensor: then all is computed in float32
    dtype       of the computation's x, h and saved activations
    """

    __slots__ = (
        *("activation", "core", "dtype", "factors", "ids", "on_input"),
        *("place", "quantized", "routing", "seen", "weights", "x"),
    )

    activation: Activation
    core: CoreActivation
    dtype: np.dtype[Any]
    factors: Array
    ids: Array
    on_input: bool
    place: Place | None
    quantized: bool
    routing: Routing | None
    seen: Array
    weights: FFNWeights | PackedWeights
    x: Any

    def __init__(
        self,
        x: object,
        weights: object,
        activation: object,
        mixture: tuple[object, object] | None = None,
    ) -> None:
        """mixture: the routing and apply_router_weight_on_input; None for a dense layer."""
        self.place = place = _place_of(x, weights, None if mixture is None else mixture[0])
        w = check_block(weights) if mixture is None else check_experts(weights)
        self.weights = w
        self.activation = as_activation(activation)
        self.core = as_core(self.activation, w.gated, w.dtype)
        self.seen = seen = see(place, "x", x)
        self.x = seen if place is None else x
        self.quantized = check_x_dtype(seen, w, "the weights")
        self.dtype = FLOAT32 if self.quantized else seen.dtype
        check_width(seen, "w.up", w._up_shape)
        tokens = row_count(seen.shape)
        if mixture is None:
            self.routing, self.on_input = None, False
            check_size(tokens, w.d_ff, "the tokens of x and the rows of w.up")
            check_size(tokens, w.d_model, "the dimensions of x")
            return
        self.routing = _check_routing(mixture[0], seen, w.n_experts or 0, place)
        ids, self.factors = self.routing._arrays
        k = ids.shape[-1]
        check_size(tokens * k, max(w.shape), "the routed rows of x and the sizes of an expert")
        self.ids = ids.reshape(tokens, k)
        self.on_input = bool(mixture[1])

    def output(self, out: object) -> Made:
        """The array for y: out, checked, or a new one."""
        x, place = self.seen, self.place
        if out is None:
            if place is not None:
                return place.make(x.shape, x.dtype)
            y: Array = np.empty(x.shape, x.dtype)
            return Made(y, y)
        y = check_out("out", see(place, "out", out), x.shape, x.dtype, "to match x")
        check_apart("out", y, [("x", x), *weights_inputs(self.weights)])
        if self.routing is not None:
            check_apart("out", y, routing_inputs(self.routing))
        return Made(y if place is None else out, y)

    def keep(self) -> None:
        """Prepare for the backward pass: take what the caller may change in the meantime.

        That is the shape of x, which can be set in place, and the ids in the routing's array.
        """
        if self.place is not None:
            self.x = self.place.library.view(self.x)
            return
        self.x = self.seen = self.seen.view()
        if self.routing is not None:
            self.ids = self.ids.copy()

    def saved_bytes(self) -> int:
        """The bytes that a forward pass on a CPU saves: gate and up of every row."""
        w, x = self.weights, self.seen
        if x.dtype != self.dtype:  # only the dtype counts
            x = np.broadcast_to(self.dtype.type(0), x.shape)
        if self.routing is None:
            return _core.saved_bytes(x, row_count(x.shape), w.d_ff, w.gated)
        return _core.moe_saved_bytes(x, self.ids, w.n_experts or 0, w.d_ff, w.gated)


def check_x_dtype(x: Array, weights: FFNWeights | PackedWeights, name: str) -> bool:
    """Check the dtype of x beside weights, and return whether these are quantised."""
    if not weights.quantized:
        check_same_dtype("x", x, weights.dtype, name, or_float32=True)
        return False
    if check_dtype("x", x) is FLOAT64:
        raise TypeError("x has dtype float64; expected float32 or 16 bits beside quantised weights")
    return True


def _place_of(x: object, weights: object, routing: object) -> Place | None:
    """Where a call is to run: on a GPU if any of its arguments is there, else None."""
    if type(x) is np.ndarray or library_of(x) is None:
        if type(x) is not np.ndarray:
            no_gpu_array("x", x)
        if getattr(weights, "_place", None) is None and getattr(routing, "_place", None) is None:
            return None
    checked = check_weights(weights)
    if isinstance(checked, PackedWeights):
        raise TypeError("weights are packed for a CPU; expected FFNWeights of arrays on the GPU")
    if checked._place is None:
        place_of("x", x)  # for a torch tensor on the CPU this raises the more useful error
        raise TypeError(
            "weights are FFNWeights of numpy arrays; expected arrays on the GPU, as the other "
            "arguments are"
        )
    if checked.dtype == FLOAT64:
        raise TypeError("w.up has dtype float64; expected float32, bfloat16 or float16 on a GPU")
    return checked._place


def _check_routing(routing: object, x: Array, n_experts: int, place: Place | None) -> Routing:
    if not isinstance(routing, Routing):
        raise TypeError(
            f"routing is of type {type(routing).__name__}; expected Routing (fc.route(logits, "
            f"top_k) makes one)"
        )
    if place is not None:
        _check_place(routing._place, place)
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
            f"for x of dtype {x.dtype.name}"
        )
    if routing.n_experts is not None and routing.n_experts != n_experts:
        raise ValueError(
            f"routing.n_experts is {routing.n_experts}; expected {n_experts}, the number of "
            f"experts in weights"
        )
    if ids.size and place is None:
        highest, lowest = int(ids.max()), int(ids.min())
        if highest >= n_experts or lowest < -1:
            worst = highest if highest >= n_experts else lowest
            raise ValueError(
                f"routing.experts has {worst}; expected -1 (no expert) to {n_experts - 1}"
            )
    return routing


def _check_place(found: Place | None, place: Place) -> None:
    if found is None:
        raise TypeError(f"routing is made of numpy arrays; expected {place}, as the weights are")
    if found != place:
        error = ValueError if found.library is place.library else TypeError
        raise error(f"routing.experts is {found}; expected {place}, as the weights are")
