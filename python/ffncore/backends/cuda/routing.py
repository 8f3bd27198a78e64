"""Routing and its backward pass on a GPU.

    logits [..., E] -> experts [..., k] int32, weights [..., k]

Logits, weights and gradients are float32. The results are arrays of the same library as the logits.
Tests: tests/backends/test_device_routing.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...arrays.dtypes import FLOAT32
from ...arrays.places import Made, Place
from ...arrays.rows import row_count
from ...arrays.shapes import Array, MaybeArray
from ...values.routing import DevicePart
from ...values.routing_options import CoreRouter, stored
from .library import Cuda, cuda

INT32 = np.dtype(np.int32)


def route(
    place: Place,
    logits: Made,
    k: int,
    core: CoreRouter,
    bias: MaybeArray,
    experts: Made | None,
) -> tuple[Any, Any, DevicePart]:
    """Return experts [..., k], weights [..., k], and the part for route_backward."""
    library = cuda()
    rows = place.rows(*logits)
    shape = (*logits.ghost.shape[:-1], k)
    ids = place.make(shape, INT32) if experts is None else experts
    weights = place.make(shape, FLOAT32)
    args = library.struct(
        "route_args",
        router=_router(library, core),
        logits=library.matrix(rows.ghost),
        experts=library.address(ids.ghost, "int32_t *"),
        expert_stride=k,
        experts_given=experts is not None,
        weights=library.matrix(_flat(weights.ghost)),
    )
    args.router.e_score_correction_bias = library.vector(bias)
    library.check(library.lib.ffncore_cuda_route(args, library.call(place)))
    kept = Made(place.library.view(logits.array), logits.ghost)
    return ids.array, weights.array, DevicePart(kept, ids, core)


def route_backward(place: Place, part: DevicePart, grad_weights: Made) -> Array:
    """Return grad_logits [..., E]."""
    library = cuda()
    grad = place.rows(*grad_weights)
    logits = place.rows(*part.logits)
    out = place.make(part.logits.ghost.shape, FLOAT32)
    args = library.struct(
        "route_backward_args",
        router=_router(library, part.core),
        logits=library.matrix(logits.ghost),
        experts=library.address(part.experts.ghost, "int32_t *"),
        expert_stride=grad_weights.ghost.shape[-1],
        grad_weights=library.matrix(grad.ghost),
        grad_logits=library.matrix(_flat(out.ghost)),
    )
    library.check(library.lib.ffncore_cuda_route_backward(args, library.call(place)))
    grad_logits: Array = out.array
    return grad_logits


def _flat(array: Array) -> Array:
    return array.reshape(row_count(array.shape), array.shape[-1])


def _router(library: Cuda, core: CoreRouter) -> Any:
    return library.struct("router", **stored(core)._asdict())[0]
