"""fc.route and its backward pass on a GPU: logits [..., E] -> experts, weights [..., k].

Arguments are checked on ghosts (_device.py) by the functions that check numpy's; the results are
arrays of the logits' library. Tests: tests/test_device_routing.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _core
from ._arrays import FLOAT32, Array, check_same_dtype, check_shape, check_size
from ._copying import Copied
from ._cuda import Cuda, cuda
from ._device import Made, Place
from ._router import Options, check_bias, check_logits
from ._rows import row_count
from .routing import Routing, ids_on_gpu

INT32 = np.dtype(np.int32)


@dataclass(frozen=True)
class DevicePart(Copied):
    """What route_backward needs."""

    logits: Made
    experts: Made  # [..., k], int32 without gaps
    core: _core.RouterTuple


def route(place: Place, logits: Any, k: int, options: Options, bias: Any, experts: Any) -> Routing:
    seen = check_logits(place.ghost("logits", logits))
    if seen.dtype != FLOAT32:
        raise TypeError(f"logits has dtype {seen.dtype.name}; expected float32 on a GPU")
    given = experts is not None
    core = options.core(seen, k, given=given)
    seen_bias = None if bias is None else place.ghost("e_score_correction_bias", bias)
    seen_bias = check_bias(seen_bias, seen, given=given)
    shape = (*seen.shape[:-1], k)
    check_size(row_count(shape), k, "the tokens and top_k")
    if given:
        ids = Made(*ids_on_gpu(place, experts))
        check_shape("experts", ids.ghost, shape, f"to match logits {seen.shape}")

    library = cuda()
    rows = place.rows(logits, seen)
    if not given:
        ids = place.make(shape, INT32)
    weights = place.make(shape, FLOAT32)
    args = library.struct(
        "route_args",
        router=_router(library, core),
        logits=library.matrix(rows.ghost),
        experts=library.address(ids.ghost, "int32_t *"),
        expert_stride=k,
        experts_given=given,
        weights=library.matrix(_flat(weights.ghost)),
    )
    args.router.e_score_correction_bias = library.vector(seen_bias)
    library.check(library.lib.ffncore_cuda_route(args, library.call(place)))
    return Routing._on_gpu(
        ids,
        weights,
        seen.shape[-1],
        place,
        DevicePart(Made(place.library.view(logits), seen), ids, core),
    )


def route_backward(grad_weights: Any, routing: Routing) -> Array:
    place, part = routing._place, routing._saved[0]  # type: ignore[index]
    assert place is not None
    assert isinstance(part, DevicePart)
    seen = place.ghost("grad_weights", grad_weights)
    weights = routing._arrays[1]
    check_same_dtype("grad_weights", seen, FLOAT32, "routing.weights")
    check_shape("grad_weights", seen, weights.shape, "to match routing.weights")
    library = cuda()
    k = seen.shape[-1]
    grad = place.rows(grad_weights, seen)
    logits = place.rows(*part.logits)
    out = place.make(part.logits.ghost.shape, FLOAT32)
    args = library.struct(
        "route_backward_args",
        router=_router(library, part.core),
        logits=library.matrix(logits.ghost),
        experts=library.address(part.experts.ghost, "int32_t *"),
        expert_stride=k,
        grad_weights=library.matrix(grad.ghost),
        grad_logits=library.matrix(_flat(out.ghost)),
    )
    library.check(library.lib.ffncore_cuda_route_backward(args, library.call(place)))
    grad_logits: Array = out.array
    return grad_logits


def _flat(array: Array) -> Array:
    return array.reshape(row_count(array.shape), array.shape[-1])


def _router(library: Cuda, core: _core.RouterTuple) -> Any:
    score_fn, on_logits, normalize, eps, least, factor, groups, best, group_score, mask = core
    return library.struct(
        "router",
        score_fn=score_fn,
        select_on_logits=on_logits,
        norm_topk_prob=normalize,
        group_score=group_score,
        n_group=groups,
        topk_group=best,
        group_mask_value=mask,
        norm_eps=eps,
        norm_min=least,
        routed_scaling_factor=factor,
    )[0]
