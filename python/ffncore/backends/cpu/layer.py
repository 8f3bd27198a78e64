"""The forward and the backward pass of a layer on the CPU, dense or a mixture of experts.

Leading dimensions are merged to rows: in place if the strides allow it, else copied in blocks
(arrays/rows.py). A forward pass that saves, a backward pass with gradients of weights, and every
mixture run as one block, because they sum over all tokens or fill one array for all of them.
With quantised weights x and all results are float32 for the kernels: arrays of 16 bits are widened,
and results rounded once. Tests: tests/functional/test_functional.py, tests/functional/test_moe.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import _core
from ...arrays.memory import reusable
from ...arrays.places import Made
from ...arrays.rows import over_rows
from ...arrays.shapes import Array, MaybeArray
from ...values.arguments import LayerArguments
from ...values.request import GradientRequest


def forward(layer: LayerArguments, y: Made, keep: bool) -> MaybeArray:
    """Write y. Return the saved activations if keep is true, else None."""
    weights, activation = layer.weights._core_weights(), layer.core
    panels = reusable(layer.saved_bytes()).view(layer.dtype) if keep else None
    x, out = _as(layer.dtype, layer.seen), y.ghost
    if out.dtype != layer.dtype:
        out = np.empty(out.shape, layer.dtype)
    if layer.routing is None:

        def run(x: Array, y: Array) -> None:
            _core.ffn_forward(x, y, weights, activation, panels)

        cut = 0 if keep else layer.seen.ndim - 1
    else:
        ids, factors, on_input = layer.ids, _factors(layer), layer.on_input

        def run(x: Array, y: Array) -> None:
            _core.moe_forward(x, y, weights, activation, ids, factors, on_input, panels)

        cut = 0
    over_rows(run, (x,), (out,), cut=cut)
    if out is not y.ghost:
        _round_into(y.ghost, out)
    return panels


def backward(
    layer: LayerArguments, request: GradientRequest, panels: MaybeArray
) -> tuple[float, float] | None:
    """Write the requested gradients. Return those of xielu's parameters, or None."""
    weights, activation = layer.weights._core_weights(), layer.core
    add, xielu = request.accumulate, request.xielu
    grads = request.arrays
    if layer.quantized:
        grads = {n: _as(layer.dtype, a) for n, a in grads.items()}
    outputs = [grads.get("x")]
    cut = 0
    if layer.routing is None:

        def run(x: Array, dy: Array, dx: MaybeArray, *_: MaybeArray) -> tuple[float, float] | None:
            return _core.ffn_backward(x, dy, weights, activation, panels, add, dx, grads, xielu)

        if request.wanted == ("x",) and panels is None:
            cut = layer.seen.ndim - 1
    else:
        ids, factors, on_input = layer.ids, _factors(layer), layer.on_input

        def run(x: Array, dy: Array, dx: MaybeArray, *dp: MaybeArray) -> tuple[float, float] | None:
            return _core.moe_backward(
                *(x, dy, weights, activation, ids, factors, on_input),
                *(panels, add, dx, dp[0], grads, xielu),
            )

        outputs.append(grads.get("routing_weights"))
    inputs = _as(layer.dtype, layer.seen), _as(layer.dtype, request.grad)
    found = over_rows(run, inputs, outputs, cut=cut, keep=add)
    for name, array in request.arrays.items():
        if grads[name] is not array:
            _round_into(array, grads[name])
    return found[0] if found else None


def _as(dtype: np.dtype[Any], array: Array) -> Array:
    return array.astype(dtype, copy=False)


def _round_into(narrow: Array, wide: Array) -> None:
    with np.errstate(over="ignore"):
        narrow[...] = wide.astype(narrow.dtype)


def _factors(layer: LayerArguments) -> Array:
    """The routing weights [T, k], without gaps."""
    factors: Array = np.ascontiguousarray(layer.factors).reshape(layer.ids.shape)
    return factors
