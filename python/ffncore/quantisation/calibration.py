"""What quantisers know about the inputs of a matrix: rows of inputs, or their second moment.

    inputs         X [tokens, k]
    second_moment  C [k, k] = X^T X, or a multiple of it, such as a mean over tokens

GPTQ needs C, and AWQ the mean magnitude of each input and the error of the outputs,

    |X D^T|^2 = sum of (D C) * D        for a difference D of weights

Tests: tests/quantisation/test_calibration.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays.dtypes import FLOAT32, FLOAT64, check_dtype, rounded
from ..arrays.shapes import Array, MaybeArray, as_array


class Calibration:
    """The inputs of one matrix [out, k]: rows, or a second moment."""

    def __init__(self, rows: MaybeArray, moment: MaybeArray) -> None:
        self.rows, self._moment = rows, moment

    def moment(self) -> Array:
        """C, float64 [k, k]."""
        if self._moment is None:
            assert self.rows is not None
            wide = self.rows.astype(FLOAT64)
            self._moment = wide.T @ wide
        return self._moment

    def magnitudes(self) -> Array:
        """The mean magnitude of each input, or with a second moment its root: float64 [k]."""
        if self.rows is not None:
            return np.asarray(np.abs(self.rows).mean(axis=0, dtype=FLOAT64))
        return np.asarray(np.sqrt(np.diagonal(self.moment())))

    def error(self, difference: Array) -> float:
        """The squared error of the outputs for a difference of weights [out, k]."""
        if self.rows is not None:
            outputs = self.rows @ difference.T
            return float(np.einsum("ij,ij->", outputs, outputs, dtype=FLOAT64))
        wide = difference.astype(FLOAT64)
        return float(np.einsum("ij,ij->", wide @ self.moment(), wide))


def check_calibration(
    method: str, inputs: Any, second_moment: Any, needed: bool
) -> tuple[str, Any] | None:
    """Which of the two arguments is given, and its value; None if the method takes neither."""
    given = {"inputs": inputs, "second_moment": second_moment}
    given = {name: value for name, value in given.items() if value is not None}
    if needed and len(given) != 1:
        found = "both given" if given else "None"
        raise ValueError(
            f"inputs and second_moment are {found}; expected one of them for method {method!r}"
        )
    if not needed and given:
        raise ValueError(f"{next(iter(given))} is given; expected None for method {method!r}")
    return next(iter(given.items())) if needed else None


def calibrations(kind: str, name: str, value: Any, k: int, n: int | None) -> list[Calibration]:
    """A Calibration for each of n experts, or one for a single matrix, from one argument.

    kind   "inputs" or "second_moment"
    name   of the argument, for errors
    value  inputs [tokens, k] or second moment [k, k]; of experts also with a leading dimension
    """
    array = as_array(name, value)
    check_dtype(name, array)
    lead = array.ndim - 2
    meaning = f"[tokens, {k}]" if kind == "inputs" else f"[{k}, {k}]"
    square = kind == "inputs" or array.shape[-2:] == (k, k)
    fits = lead == 0 or (lead == 1 and n is not None and array.shape[0] == n)
    if not fits or array.shape[-1] != k or not square or not array.size:
        also = "" if n is None else f" or [{n}, ...]"
        raise ValueError(f"{name} has shape {array.shape}; expected {meaning}{also}")
    dtype = FLOAT32 if kind == "inputs" else FLOAT64
    wide = np.ascontiguousarray(rounded(array, dtype))
    if not np.isfinite(wide).all():
        raise ValueError(f"{name} has numbers that are infinite or NaN; expected finite numbers")
    if kind != "inputs" and (np.diagonal(wide, axis1=-2, axis2=-1) < 0).any():
        raise ValueError(f"{name} has a negative diagonal entry; expected X^T X of inputs X")

    def one(own: Array) -> Calibration:
        return Calibration(own, None) if kind == "inputs" else Calibration(None, own)

    if lead:
        return [one(own) for own in wide]
    return [one(wide)] * (1 if n is None else n)
