"""The choice of the backend: the kernels for the CPU, or those for CUDA GPUs.

It follows from where the arrays of a call are (arrays/places.py): a place of None is the CPU. The
CUDA backend is imported by the first call that needs it. Tests: tests/backends/test_device.py.
"""

from __future__ import annotations

from typing import Any, Protocol

from ..arrays.places import Made, Place
from ..arrays.shapes import MaybeArray
from ..backends import cpu
from ..values.arguments import LayerArguments
from ..values.request import GradientRequest
from ..values.routing_options import CoreRouter


class Backend(Protocol):
    """The functions of a backend's package. Their arguments have been checked."""

    def forward(self, layer: LayerArguments, y: Made, keep: bool) -> Any:
        """Write y. Return the saved activations if keep is true, else None."""

    def backward(self, layer: LayerArguments, request: GradientRequest, panels: MaybeArray) -> Any:
        """Write the requested gradients. Return those of xielu's parameters, or None."""

    def route(
        self,
        place: Any,
        logits: Made,
        k: int,
        core: CoreRouter,
        bias: MaybeArray,
        experts: Made | None,
    ) -> tuple[Any, Any, Any]:
        """Return experts [..., k], weights [..., k], and the part for route_backward."""

    def route_backward(self, place: Any, part: Any, grad_weights: Made) -> Any:
        """Return grad_logits [..., E]."""


def backend_of(place: Place | None) -> Backend:
    if place is None:
        return cpu
    from ..backends import cuda

    return cuda
