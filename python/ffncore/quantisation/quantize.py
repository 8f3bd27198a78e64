"""fc.quantize: quantised weights from numbers, for one matrix or all matrices of a layer.

    w [out, in] or [n_experts, out, in]   ->  QuantizedTensor
    FFNWeights                            ->  FFNWeights whose matrices are QuantizedTensors

Each matrix, and each expert, is quantised by itself. Tests: tests/quantisation/test_quantize.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..arrays.scalars import nearest
from ..arrays.shapes import Array
from ..encodings.format import Parts
from ..encodings.tensor import QuantizedTensor
from ..values.packed import PackedWeights
from ..values.weights import FFNWeights
from .layer import check_layer, with_matrices
from .matrix import Task, as_float32, check_matrix, check_task, rtn

METHODS = {"rtn": rtn}


def quantize(
    w: Array | FFNWeights,
    format: str | Mapping[str, str],
    *,
    method: str = "rtn",
    scale: str = "group",
    group: int | None = None,
) -> Any:
    """Quantise weights: a matrix, or the matrices of a layer.

    w        [out, in] or [n_experts, out, in], of any supported dtype; or FFNWeights
    format   a name of fc.formats(). For FFNWeights also a mapping from field names to formats, such
             as {"up": "q4_k", "down": "q6_k"}; a field that it leaves out stays as it is
    method   "rtn": each weight becomes the nearest code of its group, whose scale minimises the
             squared error of the weights
    scale    "group": the format's own groups; "channel": one scale for each output (int4 and
             fp8_e4m3); "tensor": one for the matrix (fp8_e4m3, int8, and the formats of one bit and
             ternary weights, where it is the mean magnitude, as in BitNet b1.58)
    group    the number of weights that share a scale of int4; None: 128

    Returns a QuantizedTensor, or FFNWeights whose matrices are QuantizedTensors. Biases stay as
    they are.

    Raises ValueError for shapes, names and options that the format does not have, for rows that do
    not consist of whole groups, and for numbers that are not finite; TypeError for types.

    See also: fc.formats, fc.QuantizedTensor.

    >>> q = fc.quantize(np.ones((8, 64), "f4"), "q4_0")
    >>> wq = fc.quantize(weights, {"up": "int8", "down": "fp8_e4m3"})
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r} is not known; {nearest(str(method), METHODS)}")
    if isinstance(w, (FFNWeights, PackedWeights)):
        layer, formats = check_layer(w, format)
        tasks = {name: check_task(f"w.{name}", f, scale, group) for name, f in formats.items()}
        made = {n: tensor_of(getattr(layer, n), task, method) for n, task in tasks.items()}
        return with_matrices(layer, made)
    return tensor_of(check_matrix("w", w), check_task("w", format, scale, group), method)


def tensor_of(w: Array, task: Task, method: str) -> QuantizedTensor:
    made: list[Parts] = []
    for e, matrix in enumerate(w if w.ndim == 3 else w[None]):
        own = replace(task, name=f"{task.name}[{e}]") if w.ndim == 3 else task
        choice, codes = METHODS[method](own, as_float32(own.name, matrix))
        made.append(task.format.build(matrix.shape, choice, codes))
    parts = {n: np.stack([m[n] for m in made]) if w.ndim == 3 else made[0][n] for n in made[0]}
    return QuantizedTensor._make(task.format, w.shape, parts)
