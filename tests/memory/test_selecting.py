"""The n largest of each row, beside a stable sort."""

import numpy as np
import pytest

from ffncore.memory.selecting import largest, order_keys


def sorted_columns(values, n):
    """By Python's stable sort: NaN first, then falling, ties to the lower column."""

    def place(row):
        return sorted(range(len(row)), key=lambda i: (not np.isnan(row[i]), -np.nan_to_num(row[i])))

    return np.array([place(row)[:n] for row in values]).reshape(len(values), n)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 2, 5, 16, 17])
def test_beside_a_stable_sort(dtype, n, rng):
    values = rng.integers(-4, 4, (50, 17)).astype(dtype)
    values[rng.random(values.shape) < 0.1] = np.nan
    values[values == 0] *= -1
    assert np.array_equal(largest(values, n), sorted_columns(values, n))
    assert largest(values[:0], n).shape == (0, n)


def test_infinities_have_their_place():
    row = np.array([[-np.inf, 0.0, np.inf, -0.0, np.nan, 3.0, -np.nan]])
    assert largest(row, 7).tolist() == [[4, 6, 2, 5, 1, 3, 0]]
    assert order_keys(row)[0, 1] == order_keys(row)[0, 3]
