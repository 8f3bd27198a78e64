"""What this folder needs of a layer's weights: values, sizes, and checks of arrays beside them.

    values  down [d, f]: column i is the value of neuron i; of experts one such matrix each

Tests: tests/memory/test_layer.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays.dtypes import FLOAT32, FLOAT64, check_dtype
from ..arrays.shapes import Array, as_array
from ..values.packed import PackedWeights, check_weights
from ..values.weights import FFNWeights


def raw_weights(weights: object) -> FFNWeights:
    """The weights as FFNWeights of numpy arrays: packed ones unpacked, quantised ones expanded."""
    w = check_weights(weights)
    if isinstance(w, PackedWeights):
        return w.unpack()
    if w._place is not None:
        raise TypeError(f"the weights are {w._place}; expected numpy arrays here")
    return w.dequantize()


def single(weights: object, name: str = "weights") -> FFNWeights:
    """raw_weights of one layer."""
    if check_weights(weights).n_experts is not None:
        raise ValueError(
            f"{name} are those of experts; expected those of a single layer (weights.expert(e))"
        )
    return raw_weights(weights)


def wide_dtype(weights: FFNWeights | PackedWeights) -> np.dtype[Any]:
    """The dtype of coefficients: float64 for a float64 layer, else float32."""
    return FLOAT64 if weights.dtype == FLOAT64 else FLOAT32


def values_of(raw: FFNWeights, expert: int, dtype: np.dtype[Any]) -> Array:
    """down of an expert, or of the layer: [d, f]."""
    down: Array = raw.down if raw.n_experts is None else raw.down[expert]
    return down.astype(dtype, copy=False)


def check_finite_rows(name: str, value: object, width: int) -> Array:
    """value [n, width], or one row [width], as float64 [n, width] of finite numbers."""
    array = as_array(name, value)
    check_dtype(name, array)
    rows = array[None] if array.ndim == 1 else array
    if rows.ndim != 2 or rows.shape[1] != width:
        raise ValueError(f"{name} has shape {array.shape}; expected [n, {width}] or [{width}]")
    wide = rows.astype(FLOAT64)
    if not np.isfinite(wide).all():
        raise ValueError(f"{name} has numbers that are infinite or NaN; expected finite numbers")
    return wide


def check_number(name: str, value: object, least: float, *, above: bool = False) -> float:
    """A finite number that is at least `least`, or with `above` greater than it."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise TypeError(f"{name} is of type {type(value).__name__}; expected a number")
    number = float(value)
    if not np.isfinite(number) or number < least or (above and number == least):
        bound = f"greater than {least:g}" if above else f"of at least {least:g}"
        raise ValueError(f"{name} is {number:g}; expected a finite number {bound}")
    return number


def one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, known))}")
