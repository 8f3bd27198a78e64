"""The quantiser of a checkpoint's matrices, and the sums for the summary at the end.

    error of a field = sqrt(sum (w_hat - w)^2 / sum w^2)       over all its weights

Tests: tests/models/writing/test_rounding.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ...arrays.dtypes import FLOAT32, FLOAT64, rounded
from ...arrays.shapes import Array
from ...encodings.tensor import QuantizedTensor
from ...quantisation.matrix import check_task, no_step
from ...quantisation.quantize import METHODS, tensor_of

MATRICES = ("gate", "up", "down")
# The methods that need no inputs of the layer.
FREE = tuple(name for name, method in METHODS.items() if not method.needs_inputs)


@dataclass
class Sums:
    """Sums over the weights of one field: their number, bytes, and squares."""

    weights: int = 0
    nbytes: int = 0
    error2: float = 0.0
    norm2: float = 0.0

    def add(self, other: Sums) -> None:
        self.weights += other.weights
        self.nbytes += other.nbytes
        self.error2 += other.error2
        self.norm2 += other.norm2

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / max(1, self.weights)

    @property
    def error(self) -> float:
        """The root of the mean square of the deviation, relative to that of the weights."""
        return math.sqrt(self.error2 / self.norm2) if self.norm2 else 0.0


@dataclass
class Rounding:
    """What to make of each field, and the sums so far.

    formats  from gate, up and down to formats; a field without one stays as it is
    method   "rtn" or "hqq"
    """

    formats: Mapping[str, str]
    method: str = "rtn"
    sums: dict[str, Sums] = field(default_factory=dict)

    def format_of(self, fields: tuple[str, ...], name: str) -> str | None:
        """The format of a stored tensor; ValueError if its fields have different ones."""
        found = {self.formats.get(f) for f in fields}
        if len(found) > 1:
            told = " and ".join(f"{f} {self.formats.get(f, 'as it is')}" for f in fields)
            raise ValueError(f"{name} has {told} in one tensor; expected one format for both")
        return found.pop()

    def check(self, name: str, k: int, format: str) -> None:
        """Raise ValueError if rows of k weights cannot have the format."""
        task = check_task(name, format, "group", None)
        METHODS[self.method].choose(task, np.zeros((1, k), FLOAT32), None, no_step)

    def tensor(self, name: str, w: Array, format: str, fields: tuple[str, ...]) -> QuantizedTensor:
        """Quantise a stored tensor [out, in] or [E, out, in]."""
        q = tensor_of(w, check_task(name, format, "group", None), METHODS[self.method])
        own = Sums(w.size, q.nbytes)
        for e in range(len(w)) if w.ndim == 3 else (None,):
            wide = rounded(w if e is None else w[e], FLOAT32)
            off = (q if e is None else q[e]).dequantize()
            off -= wide
            own.error2 += float(np.einsum("ij,ij->", off, off, dtype=FLOAT64))
            own.norm2 += float(np.einsum("ij,ij->", wide, wide, dtype=FLOAT64))
        self.sums.setdefault(" and ".join(fields), Sums()).add(own)
        return q


def check_formats(formats: str | Mapping[str, str], method: str) -> Rounding:
    """A Rounding; ValueError for names of fields, formats and methods that there are not."""
    told = dict.fromkeys(MATRICES, formats) if isinstance(formats, str) else dict(formats)
    for name, format in told.items():
        if name not in MATRICES:
            raise ValueError(f"format has a field {name!r}; expected {', '.join(MATRICES)}")
        check_task(name, format, "group", None)
    if method not in FREE:
        raise ValueError(f"method is {method!r}; expected {' or '.join(FREE)}")
    return Rounding(told, method)
