"""The steps that dense layers and mixtures share: choose the backend, call it, wrap its results.

    forward         LayerArguments -> y [..., d]
    forward_saved   LayerArguments -> y and a Saved (or MoESaved)
    backward        grad_y and a Saved -> FFNGrads (or MoEGrads)

The public functions are in functional/dense.py and functional/mixtures.py. Tests:
tests/functional/test_functional.py, tests/functional/test_moe.py, tests/backends/test_device.py.
"""

from __future__ import annotations

from typing import Any

from ..arrays.shapes import Array
from ..values.arguments import LayerArguments
from ..values.gradients import FFNGrads, MoEGrads, mirror
from ..values.request import GradientRequest
from ..values.saved import MoESaved, Saved, keeps_preactivations
from .backend import backend_of


def forward(layer: LayerArguments, out: object) -> Array:
    y = layer.output(out)
    backend_of(layer.place).forward(layer, y, False)
    return y.array  # type: ignore[no-any-return]


def forward_saved(layer: LayerArguments, save: object, out: object) -> tuple[Array, Any]:
    keep = keeps_preactivations(save)
    y = layer.output(out)
    panels = backend_of(layer.place).forward(layer, y, keep)
    return y.array, Saved._make(layer.x, layer, panels)


def backward(
    grad_y: object, saved: object, needs: object, out: object, accumulate: object, of: type[Saved]
) -> Any:
    """FFNGrads, or MoEGrads for a mixture. of: the expected class of saved, Saved or MoESaved."""
    if not isinstance(saved, of) or isinstance(saved, MoESaved) != (of is MoESaved):
        raise TypeError(
            f"saved is of type {type(saved).__name__}; expected the second result of {of._maker}"
        )
    layer = saved._arguments
    request = GradientRequest(grad_y, saved, needs, out, accumulate)
    found = None
    if request.wanted:
        found = backend_of(layer.place).backward(layer, request, saved._panels)
    own, numbers = request.own, request.numbers(found)
    grad_x, grad_factors = own.pop("x", None), own.pop("routing_weights", None)
    weights = mirror(own, layer.weights, out)
    if layer.routing is None:
        return FFNGrads(grad_x, weights, numbers)
    return MoEGrads(grad_x, weights, numbers, grad_factors)
