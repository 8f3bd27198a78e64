"""w = scales * (values - zeros) + offsets, and the nearest codes."""

import numpy as np
import pytest
from support import normal

from ffncore.encodings.grid import (
    CHUNK,
    Grid,
    Planes,
    dequantized,
    floats,
    in_units,
    integers,
    nearest_codes,
    signs,
)

LEVELS = {
    "four bits": integers(4, 8, -8, 7),
    "no center": integers(4, 0, 0, 15),
    "eight bits": integers(8, 0, -127, 127),
    "ternary": integers(2, 1, -1, 1),
    "one bit": signs(),
    "floats": floats(np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], "f4")),
}


@pytest.mark.parametrize("name", LEVELS)
def test_codes_are_the_nearest(rng, name):
    levels = LEVELS[name]
    t = (normal(rng, 500) * 5).astype("f4")
    codes = levels.nearest(t.copy())
    assert codes.dtype == np.uint8
    allowed = [v for v in levels.values if levels.low <= v <= levels.high]
    best = np.abs(t[:, None] - np.array(allowed, "f4")).min(axis=1)
    np.testing.assert_array_equal(np.abs(t - levels.of(codes)), best)


@pytest.mark.parametrize("name", LEVELS)
def test_every_value_is_its_own_code(name):
    levels = LEVELS[name]
    for code, value in enumerate(levels.values):
        if levels.low <= value <= levels.high and (value or not code):
            assert levels.of(levels.nearest(np.array([value], "f4"))) == value


def test_ties_go_to_the_even_code():
    t = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.25, -0.75, -5.0], "f4")
    found = LEVELS["floats"].of(LEVELS["floats"].nearest(t.copy()))
    np.testing.assert_array_equal(found, [0, 1, 1, 2, 2, 4, 4, -0.0, -1, -4])


@pytest.mark.parametrize("k, group", [(12, 4), (12, 12), (11, 4), (8, 1)])
@pytest.mark.parametrize("extra", ["", "zeros", "offsets", "both"])
def test_the_formula(rng, k, group, extra):
    groups = -(-k // group)

    def numbers():
        return normal(rng, 5, groups, dtype=np.float32)

    zeros = numbers() if extra in ("zeros", "both") else None
    offsets = numbers() if extra in ("offsets", "both") else None
    grid, levels = Grid(numbers(), zeros, offsets), LEVELS["four bits"]
    codes = rng.integers(0, 16, (5, k), dtype=np.uint8)
    found = dequantized(Planes(codes, levels, grid, group))
    for row in range(5):
        for i in range(k):
            w = levels.values[codes[row, i]].astype("f4")
            if zeros is not None:
                w = w - zeros[row, i // group]
            w = w * grid.scales[row, i // group]
            if offsets is not None:
                w = w + offsets[row, i // group]
            assert found[row, i] == w
    np.testing.assert_array_equal(nearest_codes(found, levels, grid, group), codes)


def test_many_rows_are_cut_without_a_seam(rng):
    k = 64
    rows = 2 * CHUNK // k + 3
    codes = rng.integers(0, 256, (rows, k), dtype=np.uint8)
    grid = Grid(np.abs(normal(rng, rows, 2, dtype=np.float32)) + 1)
    planes = Planes(codes, LEVELS["eight bits"], grid, 32)
    whole = codes.view(np.int8).astype("f4") * np.repeat(grid.scales, 32, axis=1)
    np.testing.assert_array_equal(dequantized(planes), whole)


def test_groups_in_any_order(rng):
    codes = rng.integers(0, 16, (3, 6), dtype=np.uint8)
    grid = Grid(normal(rng, 3, 2, dtype=np.float32))
    g_idx = np.array([1, 0, 0, 1, 1, 0])
    levels = LEVELS["four bits"]
    found = dequantized(Planes(codes, levels, grid, 1, g_idx))
    np.testing.assert_array_equal(found, levels.of(codes) * grid.scales[:, g_idx])


def test_a_scale_of_zero_gives_units_of_zero():
    t = in_units(np.array([[3.0, -2.0]], "f4"), Grid(np.zeros((1, 1), "f4")))
    np.testing.assert_array_equal(t, [[0, 0]])
