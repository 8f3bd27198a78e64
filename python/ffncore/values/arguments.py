"""The arguments of a layer's call, checked once, whatever computes it.

    dense      x [..., d] and the weights of one block
    mixture    x [..., d], the weights of experts [E, ...], a routing [..., k] of the same tokens

A backend takes a LayerArguments as it is. A forward pass that saves keeps it for the backward pass
(saved.py), and so does whoever reads a saved value from a pickle.
Tests: tests/values/test_errors.py, tests/values/test_moe_errors.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _core
from ..arrays.dtypes import FLOAT32, FLOAT64, check_same_dtype
from ..arrays.libraries import library_of
from ..arrays.overlap import check_apart, check_out
from ..arrays.places import Made, Place, no_gpu_array, place_of, see
from ..arrays.rows import row_count
from ..arrays.shapes import Array, check_size, check_width
from .activation import Activation, ActivationCore, as_activation, as_core
from .packed import PackedWeights, check_block, check_experts, check_weights, weights_inputs
from .routing import Routing, routing_inputs
from .weights import FFNWeights


class LayerArguments:
    """What a call computes with.

    place       None: a CPU; else the GPU of all its arrays
    x, seen     x as it was given, and as checks see it: x itself, or a ghost (arrays/places.py)
    weights     of a block, or of experts
    activation  and core, which is what kernels take for it
    routing     None: dense. ids [T, k] and factors [..., k] are its experts and weights as checks
                see them; on_input says which side of an expert a factor multiplies
    """

    __slots__ = (
        *("activation", "core", "factors", "ids", "on_input"),
        *("place", "routing", "seen", "weights", "x"),
    )

    activation: Activation
    core: ActivationCore
    factors: Array
    ids: Array
    on_input: bool
    place: Place | None
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
        """mixture: the routing, and whether its weights are on the input."""
        self.place = place = _place_of(x, weights, None if mixture is None else mixture[0])
        w = check_block(weights) if mixture is None else check_experts(weights)
        self.weights = w
        self.activation = as_activation(activation)
        self.core = as_core(self.activation, w.gated, w.dtype)
        self.seen = seen = see(place, "x", x)
        self.x = seen if place is None else x
        check_same_dtype("x", seen, w.dtype, "the weights", or_float32=True)
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
        """out, checked, or a new array for y."""
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
        """From here on the arguments of a backward pass, too.

        The caller may give x another shape in place, or write other ids into the routing.
        """
        if self.place is not None:
            self.x = self.place.library.view(self.x)
            return
        self.x = self.seen = self.seen.view()
        if self.routing is not None:
            self.ids = self.ids.copy()

    def saved_bytes(self) -> int:
        """Of what a forward pass saves on a CPU: gate and up of every row."""
        w = self.weights
        if self.routing is None:
            return _core.saved_bytes(self.seen, row_count(self.seen.shape), w.d_ff, w.gated)
        return _core.moe_saved_bytes(self.seen, self.ids, w.n_experts or 0, w.d_ff, w.gated)


def _place_of(x: object, weights: object, routing: object) -> Place | None:
    """Where a call is computed: on a GPU if any of its arguments is there."""
    if type(x) is np.ndarray or library_of(x) is None:
        if type(x) is not np.ndarray:
            no_gpu_array("x", x)
        if getattr(weights, "_place", None) is None and getattr(routing, "_place", None) is None:
            return None
    checked = check_weights(weights)
    if isinstance(checked, PackedWeights):
        raise TypeError("weights are packed for a CPU; expected FFNWeights of arrays of a GPU")
    if checked._place is None:
        place_of("x", x)  # that a tensor is on the CPU is what its owner wants to know first
        raise TypeError("weights are of numpy arrays; expected arrays of a GPU, as the others")
    if checked.dtype == FLOAT64:
        raise TypeError("w.up has dtype float64; expected float32, bfloat16 or float16 on a GPU")
    return checked._place


def _check_routing(routing: object, x: Array, n_experts: int, place: Place | None) -> Routing:
    if not isinstance(routing, Routing):
        raise TypeError(f"routing is of type {type(routing).__name__}; expected Routing")
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
            f"beside {x.dtype.name} x"
        )
    if routing.n_experts is not None and routing.n_experts != n_experts:
        raise ValueError(
            f"routing.n_experts is {routing.n_experts}; expected {n_experts}, the experts of the "
            f"weights (a routing has as many as the logits that it was made of)"
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
        raise TypeError(f"routing is of numpy arrays; expected {place}, as the weights")
    if found != place:
        error = ValueError if found.library is place.library else TypeError
        raise error(f"routing.experts is {found}; expected {place}, as the weights")
