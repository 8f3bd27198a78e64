"""Both passes of a layer on a GPU, dense or a mixture: one code, because the C ABI has one.

    x, y [..., d]; weights, experts and routing as in functional.py and moe.py

Arguments are checked on ghosts (_device.py) by the functions that check numpy's. What a call
allocates is its library's, and is released in the order of the stream: so nobody waits. An x or
grad_y whose leading dimensions cannot be merged is copied, an output is written by way of a copy.
Tests: tests/test_device.py, tests/test_device_moe.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from . import _core
from ._arrays import FLOAT64, Array, check_apart, check_out
from ._cuda import Cuda, cuda
from ._device import Made, Place
from ._device_weights import experts_struct, place_of_weights
from ._grads import Asked, FFNGrads, mirror, routing_inputs, weights_inputs
from ._rows import merges, row_count
from ._saved import DeviceMoESaved, DeviceSaved, keeps_preactivations
from .activations import to_tuple
from .functional import _check_x
from .moe import MoEGrads, _Call
from .packed import check_block
from .routing import Routing
from .weights import NAMES, FFNWeights


def ffn(x: Any, weights: Any, activation: Any, out: Any) -> Array:
    return _Layer(x, weights, activation).forward(out).array  # type: ignore[no-any-return]


def ffn_forward(
    x: Any, weights: Any, activation: Any, save: str, out: Any
) -> tuple[Array, DeviceSaved]:
    return _Layer(x, weights, activation).forward_saved(save, out)  # type: ignore[no-any-return]


def moe(x: Any, routing: Any, weights: Any, activation: Any, on_input: Any, out: Any) -> Array:
    return _Layer(x, weights, activation, (routing, on_input)).forward(out).array  # type: ignore[no-any-return]


def moe_forward(
    x: Any, routing: Any, weights: Any, activation: Any, on_input: Any, save: str, out: Any
) -> tuple[Array, DeviceMoESaved]:
    return _Layer(x, weights, activation, (routing, on_input)).forward_saved(save, out)  # type: ignore[no-any-return]


def ffn_backward(
    grad_y: Any, saved: DeviceSaved, needs: Any, out: Any, accumulate: Any
) -> FFNGrads:
    layer = _Layer(saved._kept_x, saved.weights, saved.activation)
    return layer.backward(grad_y, saved, needs, out, accumulate)  # type: ignore[no-any-return]


def moe_backward(
    grad_y: Any, saved: DeviceMoESaved, needs: Any, out: Any, accumulate: Any
) -> MoEGrads:
    mixture = (saved.routing, saved.apply_router_weight_on_input)
    layer = _Layer(saved._kept_x, saved.weights, saved.activation, mixture)
    return layer.backward(grad_y, saved, needs, out, accumulate)  # type: ignore[no-any-return]


class _Layer:
    """A call's arguments, tested. mixture: the routing, and whether weights are on the input."""

    def __init__(
        self, x: Any, weights: Any, activation: Any, mixture: tuple[Any, Any] | None = None
    ) -> None:
        self.place = place_of_weights(weights, x)
        self.x, seen = x, self.place.ghost("x", x)
        self.activation: Any = activation
        self.routing: Routing | None = None
        self.on_input = False
        if mixture is None:
            self.weights: FFNWeights = check_block(weights)  # type: ignore[assignment]
            self.seen = _check_x(seen, self.weights)
            self.core = to_tuple(activation, self.weights.gated, self.weights.dtype)
        else:
            self.routing = _check_routing(mixture[0], self.place)
            call = _Call(seen, self.routing, weights, activation, mixture[1])
            self.weights, self.seen = call.weights, call.x  # type: ignore[assignment]
            self.core, self.on_input = call.activation, call.on_input
        self.library = cuda()

    @property
    def slots(self) -> int:
        """Rows that go through experts."""
        return row_count(self.seen.shape) * (self.routing.top_k if self.routing else 1)

    # ---- forward

    def forward(self, out: Any, saved: Array | None = None) -> Made:
        """y; saved: the ghost of what is filled."""
        if out is None:
            y = self.place.make(self.seen.shape, self.seen.dtype)
        else:
            y = Made(out, self.place.ghost("out", out))
            check_out("out", y.ghost, self.seen.shape, self.seen.dtype, "to match x")
            check_apart("out", y.ghost, [("x", self.seen), *weights_inputs(self.weights)])
            if self.routing:
                check_apart("out", y.ghost, routing_inputs(self.routing))
        written = _Output(self.place, y, keep=False)
        args, held = self._args("forward")
        args.y = self.library.matrix(written.rows)
        args.saved = self.library.address(saved)
        self._run("forward", args)
        written.finish()
        del held
        return y

    def forward_saved(self, save: str, out: Any) -> Any:
        panels = None
        if keeps_preactivations(save):
            sides = 2 if self.weights.gated else 1
            panels = self.place.make((sides, self.slots, self.weights.d_ff), self.seen.dtype)
        y = self.forward(out, panels.ghost if panels else None).array
        own: dict[str, Any] = {
            "_own_x": self.seen,
            "_kept_x": self.place.library.view(self.x),
            "_place": self.place,
            "_memory": panels.array if panels else None,
        }
        kind: Any = DeviceSaved
        if self.routing:
            kind = DeviceMoESaved
            own["routing"] = self.routing
            own["apply_router_weight_on_input"] = self.on_input
            own["_ids"] = self.routing._arrays[0]
        panels_seen = panels.ghost if panels else None
        return y, kind._make(self.x, self.weights, self.activation, panels_seen, **own)

    # ---- backward

    def backward(self, grad_y: Any, saved: Any, needs: Any, out: Any, accumulate: Any) -> Any:
        place, library = self.place, self.library
        arrays: dict[int, Any] = {}  # of ghosts, by id

        def ghost(name: str, array: Any) -> Array:
            seen = place.ghost(name, array)
            arrays[id(seen)] = array
            return seen

        def make(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
            made = place.make(shape, dtype, zero=bool(accumulate))
            arrays[id(made.ghost)] = made.array
            return made.ghost

        seen_grad = place.ghost("grad_y", grad_y)
        asked = Asked(seen_grad, saved, needs, _seen_out(out, ghost), accumulate, make)
        grads = asked.arrays
        # xielu's two, as numbers of the device. What is added to is added by its library.
        numbers = place.make((2,), FLOAT64, zero=True) if asked.xielu else None
        if asked.wanted:
            args, held = self._args("backward")
            rows = place.rows(grad_y, seen_grad)
            args.grad_y = library.matrix(rows.ghost)
            args.saved = library.address(saved._panels)
            args.accumulate = asked.accumulate
            dense = self.routing is None
            by_name = {name: grads[name] for name in NAMES if name in grads}
            args.grad_experts = library.gradients(by_name, dense)
            outputs = []
            for name in ("x", "routing_weights"):
                if name in grads:
                    given = Made(arrays[id(grads[name])], grads[name])
                    outputs.append(_Output(place, given, asked.accumulate))
                    setattr(args, f"grad_{name}", library.matrix(outputs[-1].rows))
            if numbers:
                args.grad_alpha_p = library.address(numbers.ghost[:1], "double *")
                args.grad_alpha_n = library.address(numbers.ghost[1:], "double *")
            self._run("backward", args)
            for output in outputs:
                output.finish()
            del held, rows
        own = {name: arrays[id(seen)] for name, seen in grads.items()}
        grad_x, grad_routing = own.pop("x", None), own.pop("routing_weights", None)
        found: Any = [(numbers.array[0], numbers.array[1])] if numbers else []
        parts = (grad_x, mirror(own, self.weights, out), asked.numbers(found, place.library.sum))
        return FFNGrads(*parts) if self.routing is None else MoEGrads(*parts, grad_routing)

    # ---- the C ABI

    def _args(self, which: str) -> tuple[Any, Any]:
        """The struct that both passes share, and what has to live until the call has returned."""
        library = self.library
        x = self.place.rows(self.x, self.seen)
        args = library.struct(
            f"moe_{which}_args",
            x=library.matrix(x.ghost),
            experts=experts_struct(library, self.weights),
            activation=_activation(library, self.core),
            weight_on_input=self.on_input,
        )
        factors = None
        if self.routing:
            ids, weights = self.routing._arrays
            factors = self.place.rows(self.routing._kept[1], weights)
            args.expert_ids = library.address(ids, "int32_t *")
            args.routing_weights = library.matrix(factors.ghost)
        return args, (x, factors)

    def _run(self, which: str, args: Any) -> None:
        library = self.library
        ask = getattr(library.lib, f"ffncore_cuda_{which}_workspace")
        run = getattr(library.lib, f"ffncore_cuda_{which}")
        call = library.call(self.place)
        nbytes = ask(args, call)
        if nbytes < 0:
            library.fail(library.lib.FFNCORE_INVALID_ARGUMENT)
        memory = self.place.library
        workspace = memory.empty((nbytes,), "uint8", self.place.device)
        call.workspace = library.ffi.cast("void *", memory.describe(workspace)[0])
        call.workspace_bytes = nbytes
        library.check(run(args, call))


class _Output:
    """An output [..., d] as the rows that a pass writes, or (keep) adds to.

    Where leading dimensions cannot be merged, an array between has such rows: finish brings its
    numbers over.
    """

    def __init__(self, place: Place, output: Made, keep: bool) -> None:
        array, seen = output
        self._library, self._output = place.library, array
        self._between: Any = None
        if not merges(seen):
            # With the old numbers, so that sums are rounded once.
            self._between, seen = place.copy(array) if keep else place.make(seen.shape, seen.dtype)
        self.rows = seen.reshape(row_count(seen.shape), seen.shape[-1])

    def finish(self) -> None:
        if self._between is not None:
            self._library.write(self._output, self._between)


def _check_routing(routing: object, place: Place) -> Routing:
    if not isinstance(routing, Routing):
        raise TypeError(f"routing is of type {type(routing).__name__}; expected Routing")
    if routing._place is None:
        raise TypeError(f"routing is of numpy arrays; expected {place}, as the weights")
    if routing._place != place:
        error = ValueError if routing._place.library is place.library else TypeError
        raise error(f"routing.experts is {routing._place}; expected {place}, as the weights")
    return routing


def _seen_out(out: Any, ghost: Any) -> Any:
    """out= with ghosts for arrays; what is no mapping is left to whoever says so."""
    if isinstance(out, FFNGrads):
        entries = {**out.arrays(), "activation": out.activation}
    elif isinstance(out, Mapping):
        entries = dict(out)
    else:
        return out
    return {
        name: value if value is None or name == "activation" else ghost(f"out.{name}", value)
        for name, value in entries.items()
    }


def _activation(library: Cuda, core: _core.ActivationTuple) -> Any:
    return [library.ffi.sizeof("ffncore_activation"), *core]
