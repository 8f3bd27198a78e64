"""The passes of a layer, dense or a mixture: arguments are checked, and a backend computes.

dense.py and mixtures.py are what users call. Tests: tests/functional/test_functional.py,
tests/functional/test_moe.py, tests/backends/test_device.py.
"""

from __future__ import annotations

from typing import Any

from ..arrays.shapes import Array
from ..values.arguments import LayerArguments
from ..values.asked import Asked
from ..values.gradients import FFNGrads, MoEGrads, mirror
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
    """FFNGrads, or MoEGrads of a mixture. of: what saved has to be, Saved or MoESaved."""
    if not isinstance(saved, of) or isinstance(saved, MoESaved) != (of is MoESaved):
        raise TypeError(
            f"saved is of type {type(saved).__name__}; expected what {of._maker} returned"
        )
    layer = saved._arguments
    asked = Asked(grad_y, saved, needs, out, accumulate)
    found = None
    if asked.wanted:
        found = backend_of(layer.place).backward(layer, asked, saved._panels)
    own, numbers = asked.own, asked.numbers(found)
    grad_x, grad_factors = own.pop("x", None), own.pop("routing_weights", None)
    weights = mirror(own, layer.weights, out)
    if layer.routing is None:
        return FFNGrads(grad_x, weights, numbers)
    return MoEGrads(grad_x, weights, numbers, grad_factors)
