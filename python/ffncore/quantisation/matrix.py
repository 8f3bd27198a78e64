"""One matrix at a time: the choice of scales and codes by a quantiser, and the tensor of both.

A quantiser gets a Task and a matrix. It returns a choice of scales, as the format stores them
(encodings/format.py), and the codes, and calls step() as it goes on, for a progress bar. Here is
the simplest one, rounding to nearest; gptq.py and hqq.py have others, and awq.py scales the inputs
before rounding.

    rtn   scales from the weights alone, and the nearest code of each weight

Tests: tests/quantisation/test_quantize.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..arrays.dtypes import FLOAT32, check_dtype, rounded
from ..arrays.shapes import Array, as_array, check_size
from ..encodings.fitting import Misfit
from ..encodings.format import Format, Parts
from ..encodings.grid import Planes, dequantized, nearest_codes
from ..encodings.table import format_of
from .calibration import Calibration


@dataclass(frozen=True)
class Task:
    """What to make of a matrix: its name for errors, a format, and where its scales are."""

    name: str
    format: Format
    scale: str
    group: int | None

    def fit(self, w: Array) -> Parts:
        try:
            return self.format.fit(w, self.scale, self.group)
        except Misfit as misfit:
            raise ValueError(f"{self.name} {misfit}") from None

    def span(self, k: int) -> int:
        return self.format.span(k, self.scale, self.group)

    def round(self, w: Array, choice: Parts) -> Array:
        """The nearest codes of w [rows, k]."""
        grid, group = self.format.grid(choice, *w.shape)
        return nearest_codes(w, self.format.levels, grid, group)

    def numbers(self, choice: Parts, codes: Array) -> Array:
        """What codes stand for, float32 [rows, k]."""
        grid, group = self.format.grid(choice, *codes.shape)
        return dequantized(Planes(codes, self.format.levels, grid, group))

    def rounded(self, w: Array) -> Array:
        """The numbers that w becomes by rounding to nearest."""
        choice = self.fit(w)
        return self.numbers(choice, self.round(w, choice))


def no_step() -> None:
    """For quantisers whose progress nobody looks at."""


def rtn(
    task: Task,
    w: Array,
    known: Calibration | None,  # noqa: ARG001
    step: Callable[[], None] = no_step,
) -> tuple[Parts, Array]:
    choice = task.fit(w)
    codes = task.round(w, choice)
    step()
    return choice, codes


def check_task(name: str, format: object, scale: object, group: object) -> Task:
    found = format_of(format)
    if not found.info.can_quantize:
        raise ValueError(f"format {format!r} is read only; expected one that can be made")
    if scale not in found.scales:
        raise ValueError(
            f"scale is {scale!r}; expected {' or '.join(map(repr, found.scales))} for {format}"
        )
    if group is not None and (isinstance(group, bool) or not isinstance(group, (int, np.integer))):
        raise TypeError(f"group is of type {type(group).__name__}; expected a number of weights")
    if group is not None and group < 1:
        raise ValueError(f"group is {group}; expected at least 1")
    return Task(name, found, str(scale), None if group is None else int(group))


def check_matrix(name: str, value: object) -> Array:
    """Weights [out, in] or [n_experts, out, in], with finite numbers, as they were given."""
    w = as_array(name, value)
    check_dtype(name, w)
    if w.ndim not in (2, 3) or 0 in w.shape:
        raise ValueError(
            f"{name} has shape {w.shape}; expected [out, in] or [n_experts, out, in] of at least 1"
        )
    check_size(w.size, 1, f"the dimensions of {name}")
    return w


def as_float32(name: str, w: Array) -> Array:
    """One matrix as float32 without gaps; ValueError if it has numbers that are not finite."""
    with np.errstate(over="ignore"):
        wide = np.ascontiguousarray(rounded(w, FLOAT32))
    # A sum is finite only if its terms are, and needs no array of its own.
    if not np.isfinite(wide.sum(dtype=np.float64)) and not np.isfinite(wide).all():
        at = tuple(int(i) for i in np.argwhere(~np.isfinite(wide))[0])
        raise ValueError(f"{name} has {wide[at]} at {at}; expected finite numbers of float32")
    return wide
