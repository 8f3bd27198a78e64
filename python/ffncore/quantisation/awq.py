"""AWQ: inputs that are large get a finer grid, by a scale of each input.

    y = (x / s) (W s)^T        s = m^a / sqrt(max m^a min m^a),  m = the mean magnitude of an input

Of 20 exponents a from 0 to 0.95 the one with the smallest error of the outputs is taken; a = 0 is
rounding to nearest. The division of x by s belongs to what comes before: the gain of a norm, or the
rows of up for the inputs of down. Matrices with the same inputs are searched together.
Tests: tests/quantisation/test_methods.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..arrays.dtypes import FLOAT32
from ..arrays.shapes import Array
from .calibration import Calibration
from .matrix import Task, no_step

EXPONENTS = tuple(i / 20 for i in range(20))

# A smaller magnitude counts as this, so that an input that is always 0 has a scale.
LEAST = 1e-4


def input_scale(
    cases: list[tuple[Task, Array, Calibration]], step: Callable[[], None] = no_step
) -> Array:
    """The scale s [k], float32, for matrices [out, k] with their calibrations."""
    mean = np.mean([known.magnitudes() for _, _, known in cases], axis=0)
    best, found = np.inf, np.ones(len(mean), FLOAT32)
    for a in EXPONENTS:
        s = np.maximum(mean**a, LEAST)
        s = (s / np.sqrt(s.max() * s.min())).astype(FLOAT32)
        error = 0.0
        for task, w, known in cases:
            error += known.error(task.rounded(w * s) / s - w)
            step()
        if error < best:
            best, found = error, s
    return found
