"""Solves by a Cholesky factor, and dependent rows."""

import numpy as np
import pytest

from ffncore.memory.solving import dependent_rows, factor, solve


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 131])
def test_solve(n, rng):
    root = rng.standard_normal((n, n))
    matrix = root @ root.T + np.eye(n)
    right = rng.standard_normal((n, 3))
    kept = right.copy()
    found = solve(factor(matrix, "singular"), right)
    assert np.abs(matrix @ found - right).max() < 1e-10 * n
    assert np.array_equal(right, kept)


def test_a_singular_matrix_is_an_error_with_the_given_text():
    with pytest.raises(ValueError, match="what is singular"):
        factor(np.zeros((2, 2)), "what is singular")


def test_dependent_rows(rng):
    k = rng.standard_normal((5, 9))
    k[2] = 2 * k[0]
    k[4] = k[1] - k[3]
    assert dependent_rows(k @ k.T) == [2, 4]
    assert dependent_rows(rng.standard_normal((3, 2)) @ np.eye(2, 9) @ np.eye(9, 3)) != []
    assert dependent_rows(np.zeros((1, 1))) == [0]
