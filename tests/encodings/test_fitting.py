"""The choice of scales: least squares, and no turn makes the error larger."""

import itertools

import numpy as np
import pytest
from support import normal

from ffncore.encodings.fitting import (
    half,
    largest,
    line_by_least_squares,
    magnitude,
    scale_by_least_squares,
)
from ffncore.encodings.grid import Grid, in_units, integers

NIBBLES, TERNARY = integers(4, 8, -8, 7), integers(2, 1, -1, 1)


def error(w, scale, offset, levels):
    t = in_units(w, Grid(scale, None, offset))
    v = levels.of(levels.nearest(t)) * scale + (0 if offset is None else offset)
    return float(((v - w).astype("f8") ** 2).sum())


@pytest.mark.parametrize("levels", [NIBBLES, TERNARY])
def test_turns_make_the_error_smaller(rng, levels):
    w = normal(rng, 50, 32, dtype=np.float32)
    start = largest(w) / np.float32(levels.low)
    errors = [
        error(w, scale_by_least_squares(w, start, levels, turns), None, levels)
        for turns in range(6)
    ]
    assert all(b <= a * (1 + 1e-6) for a, b in itertools.pairwise(errors))
    assert errors[-1] < 0.96 * errors[0]


@pytest.mark.parametrize("most", [0.0, np.inf])
def test_lines(rng, most):
    w = normal(rng, 50, 32, dtype=np.float32) + np.float32(0.5)
    levels = integers(4, 0, 0, 15)
    errors = [error(w, *line_by_least_squares(w, 15, turns, most), levels) for turns in range(5)]
    assert errors[4] < 0.95 * errors[0]
    scale, low = line_by_least_squares(w + 9, 15, 4, most)
    assert (scale > 0).all()
    assert (low <= most).all()


@pytest.mark.parametrize("number", [0.0, 0.7, -0.7])
def test_equal_weights(number):
    w = np.full((2, 32), number, "f4")
    scale, low = line_by_least_squares(w, 15, 4, 0.0)
    assert error(w, scale, low, integers(4, 0, 0, 15)) < 1e-12
    assert error(w, scale_by_least_squares(w, largest(w) / -8, NIBBLES, 4), None, NIBBLES) < 1e-12


def test_largest_has_its_sign():
    w = np.array([[1, -3, 2], [1, 3, -2]], "f4")
    np.testing.assert_array_equal(largest(w), [[-3], [3]])
    np.testing.assert_array_equal(magnitude(w), [[3], [3]])


def test_scales_as_float16():
    assert half(np.array([65504.0], "f4")).dtype == np.float16
    with pytest.raises(ValueError, match="needs a scale of 65536; expected at most 65504"):
        half(np.array([65536.0], "f4"))
