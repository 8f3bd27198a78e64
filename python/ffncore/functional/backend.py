"""The one place that chooses what computes a call: a CPU's kernels or a GPU's.

Arguments say where they are (arrays/places.py): place None is a CPU. The CUDA part is imported by
the first call that needs it. Tests: tests/backends/test_device.py.
"""

from __future__ import annotations

from typing import Any, Protocol

from ..arrays.places import Made, Place
from ..arrays.shapes import MaybeArray
from ..backends import cpu
from ..values.arguments import LayerArguments
from ..values.asked import Asked
from ..values.routing_options import RouterCore


class Backend(Protocol):
    """What a backend has, as functions of its package, over checked arguments."""

    def forward(self, layer: LayerArguments, y: Made, keep: bool) -> Any:
        """Writes y; returns what the backward pass needs where it is to be kept."""

    def backward(self, layer: LayerArguments, asked: Asked, panels: MaybeArray) -> Any:
        """Writes what is asked for; returns xielu's two numbers where they are."""

    def route(
        self,
        place: Any,
        logits: Made,
        k: int,
        core: RouterCore,
        bias: MaybeArray,
        experts: Made | None,
    ) -> tuple[Any, Any, Any]:
        """experts and weights [..., k], and what the backward pass needs."""

    def route_backward(self, place: Any, part: Any, grad_weights: Made) -> Any:
        """grad_logits [..., E]"""


def backend_of(place: Place | None) -> Backend:
    if place is None:
        return cpu
    from ..backends import cuda

    return cuda
