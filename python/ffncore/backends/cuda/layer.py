"""The forward and the backward pass of a layer on a GPU, dense or a mixture of experts.

The C ABI has one function for both, in which a dense layer is a mixture with one expert. A call
allocates memory from the array library, which releases it in the order of the stream, so that
nothing waits for the GPU. If the leading dimensions of x or grad_y cannot be merged, the array is
copied; an output is then written by way of a new array. Arrays are described by their ghosts
(arrays/places.py). Tests: tests/backends/test_device.py, tests/backends/test_device_moe.py.
"""

from __future__ import annotations

from typing import Any

from ...arrays.dtypes import FLOAT64
from ...arrays.places import Made, Place
from ...arrays.rows import merges, row_count
from ...arrays.shapes import MaybeArray
from ...values.activation import NUMBERS, CoreActivation
from ...values.arguments import LayerArguments
from ...values.request import GradientRequest
from ...values.weights import NAMES
from .library import Cuda, cuda
from .weights import experts_struct


def forward(layer: LayerArguments, y: Made, keep: bool) -> Made | None:
    """Write y. Return the saved activations if keep is true, else None."""
    place, library, w = _place(layer), cuda(), layer.weights
    panels = None
    if keep:
        rows = row_count(layer.seen.shape) * (layer.routing.top_k if layer.routing else 1)
        panels = place.make((2 if w.gated else 1, rows, w.d_ff), layer.seen.dtype)
    written = _Output(place, y, keep=False)
    args, held = _arguments(layer, library, "forward")
    args.y = library.matrix(written.rows)
    args.saved = library.address(panels.ghost if panels else None)
    _run(library, place, "forward", args)
    written.finish()
    del held
    return panels


def backward(
    layer: LayerArguments, request: GradientRequest, panels: MaybeArray
) -> tuple[Any, Any] | None:
    """Write the requested gradients. Return those of xielu's parameters, on the GPU, or None."""
    place, library, grads = _place(layer), cuda(), request.arrays
    numbers = place.make((2,), FLOAT64, zero=True) if request.xielu else None
    args, held = _arguments(layer, library, "backward")
    rows = place.rows(request.grad_y, request.grad)
    args.grad_y = library.matrix(rows.ghost)
    args.saved = library.address(panels)
    args.accumulate = request.accumulate
    by_name = {name: grads[name] for name in NAMES if name in grads}
    args.grad_experts = library.gradients(by_name, layer.routing is None)
    outputs = []
    for name in ("x", "routing_weights"):
        if name in grads:
            output = _Output(place, Made(request.own[name], grads[name]), request.accumulate)
            outputs.append(output)
            setattr(args, f"grad_{name}", library.matrix(output.rows))
    if numbers:
        args.grad_alpha_p = library.address(numbers.ghost[:1], "double *")
        args.grad_alpha_n = library.address(numbers.ghost[1:], "double *")
    _run(library, place, "backward", args)
    for output in outputs:
        output.finish()
    del held, rows
    return (numbers.array[0], numbers.array[1]) if numbers else None


def _place(layer: LayerArguments) -> Place:
    assert layer.place is not None
    return layer.place


def _arguments(layer: LayerArguments, library: Cuda, which: str) -> tuple[Any, Any]:
    """The struct for the C function, and the arrays that have to live until it has returned."""
    place = _place(layer)
    x = place.rows(layer.x, layer.seen)
    args = library.struct(
        f"moe_{which}_args",
        x=library.matrix(x.ghost),
        experts=experts_struct(library, layer.weights),
        activation=_activation(library, layer.core),
        weight_on_input=layer.on_input,
    )
    factors = None
    if layer.routing:
        ids, weights = layer.routing._arrays
        factors = place.rows(layer.routing._kept[1], weights)
        args.expert_ids = library.address(ids, "int32_t *")
        args.routing_weights = library.matrix(factors.ghost)
    return args, (x, factors)


def _run(library: Cuda, place: Place, which: str, args: Any) -> None:
    ask = getattr(library.lib, f"ffncore_cuda_{which}_workspace")
    run = getattr(library.lib, f"ffncore_cuda_{which}")
    call = library.call(place)
    nbytes = ask(args, call)
    if nbytes < 0:
        library.fail(library.lib.FFNCORE_INVALID_ARGUMENT)
    memory = place.library
    workspace = memory.empty((nbytes,), "uint8", place.device)
    call.workspace = library.ffi.cast("void *", memory.describe(workspace)[0])
    call.workspace_bytes = nbytes
    library.check(run(args, call))


class _Output:
    """An output [..., d] as rows [T, d], which a pass writes, or adds to with keep.

    If the leading dimensions cannot be merged, the rows are those of a temporary array, which
    finish copies to the output.
    """

    def __init__(self, place: Place, output: Made, keep: bool) -> None:
        array, seen = output
        self._library, self._output = place.library, array
        self._between: Any = None
        if not merges(seen):
            # The copy has the old values, so that their sums with the new ones are rounded once.
            self._between, seen = place.copy(array) if keep else place.make(seen.shape, seen.dtype)
        self.rows = seen.reshape(row_count(seen.shape), seen.shape[-1])

    def finish(self) -> None:
        if self._between is not None:
            self._library.write(self._output, self._between)


def _activation(library: Cuda, core: CoreActivation) -> Any:
    fields = {name: getattr(core, name) for name in ("kind", "clamp", *NUMBERS)}
    return library.struct("activation", **fields)[0]
