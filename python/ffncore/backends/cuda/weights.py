"""The C struct of weights on a GPU, which is filled once for all calls with an FFNWeights.

    gate, up [(E,) f, d], down [(E,) d, f]

The rows or the columns of each matrix have to be contiguous, and gate and up have to agree in this.
Gradients, which are FFNWeights, too, may have any strides. So this is checked when weights are
first used, not when an FFNWeights is made. Tests: tests/backends/test_device.py,
tests/backends/test_device_errors.py.
"""

from __future__ import annotations

from typing import Any

from ...arrays.shapes import Array
from ...values.packed import PackedWeights
from ...values.weights import FFNWeights
from .library import Cuda

MATRICES = ("gate", "up", "down")


def experts_struct(library: Cuda, weights: FFNWeights | PackedWeights) -> Any:
    """The struct of these weights, made by the first call."""
    assert isinstance(weights, FFNWeights)  # packed weights are for the CPU
    made = weights._struct
    if made is None:
        _check_lines(weights._views)
        made = library.experts(weights._views)
        weights._set(_struct=made)
    return made


def _check_lines(arrays: dict[str, Array]) -> None:
    """Check that rows or columns are contiguous, as kernels read them; gate and up alike."""
    lines = {name: _lines(arrays[name]) for name in MATRICES if name in arrays}
    for name, found in lines.items():
        if not found:
            array = arrays[name]
            strides = tuple(stride // array.itemsize for stride in array.strides)
            raise ValueError(
                f"w.{name} has strides of {strides} elements; expected 1 in one of the last two "
                f"dimensions on a GPU"
            )
    if "gate" in lines and not lines["gate"] & lines["up"]:
        gate, up = ("".join(lines[name]) for name in ("gate", "up"))
        raise ValueError(
            f"w.gate has contiguous {gate} and w.up has contiguous {up}; expected the same of both "
            f"on a GPU"
        )


def _lines(matrix: Array) -> set[str]:
    """Which of "rows" and "columns" are contiguous in a matrix [..., rows, columns]."""
    (rows, columns), (by_row, by_column) = matrix.shape[-2:], matrix.strides[-2:]
    found = set()
    if columns == 1 or by_column == matrix.itemsize:
        found.add("rows")
    if rows == 1 or by_row == matrix.itemsize:
        found.add("columns")
    return found
