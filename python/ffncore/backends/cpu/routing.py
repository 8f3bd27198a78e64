"""Routing and its backward pass on the CPU.

    logits [..., E] -> experts [..., k] int32, weights [..., k] with the dtype of logits

The formulas are in csrc/kernels/route.inl and reference.route. Tests:
tests/functional/test_routing.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import _core
from ...arrays.places import Made, Place
from ...arrays.rows import over_rows
from ...arrays.shapes import Array, MaybeArray
from ...values.routing import Part
from ...values.routing_options import CoreRouter


def route(
    place: Place | None,  # noqa: ARG001 (for GPUs)
    logits: Made,
    k: int,
    core: CoreRouter,
    bias: MaybeArray,
    experts: Made | None,
) -> tuple[Array, Array, Part]:
    """Return experts [..., k], weights [..., k], and the part for route_backward."""
    given = None if experts is None else experts.ghost
    ids, weights = weigh(logits.ghost, k, core, bias, given)
    return ids, weights, Part(logits.ghost.view(), ids, core)


def weigh(
    logits: Array,
    k: int,
    core: CoreRouter,
    bias: MaybeArray = None,
    experts: MaybeArray = None,
    log_sum_exp: MaybeArray = None,
) -> tuple[Array, Array]:
    """Return (experts, weights); log_sum_exp [...], if any, is filled."""
    shape = (*logits.shape[:-1], k)
    ids = np.empty(shape, np.int32) if experts is None else experts
    weights = np.empty(shape, logits.dtype)

    def run(logits: Array, given: MaybeArray, out: MaybeArray, *rest: Any) -> None:
        weights, sums = rest
        ids: Any = given if out is None else out
        line = None if sums is None else sums.reshape(-1)
        _core.route(logits, ids, out is None, weights, line, core, bias)

    sums = None if log_sum_exp is None else log_sum_exp[..., None]
    out = ids if experts is None else None
    over_rows(run, (logits, experts), (out, weights, sums), cut=logits.ndim - 1)
    return ids, weights


def route_backward(
    place: Place | None,  # noqa: ARG001 (for GPUs)
    part: Part,
    grad_weights: Made,
) -> Array:
    """Return grad_logits [..., E]."""
    grad_logits = np.empty(part.logits.shape, part.logits.dtype)

    def run(grad: Array, experts: Array, logits: Array, out: Array) -> None:
        _core.route_backward(grad, experts, logits, out, part.core)

    arrays = (grad_weights.ghost, part.experts, part.logits)
    over_rows(run, arrays, (grad_logits,), cut=part.logits.ndim - 1)
    return grad_logits
