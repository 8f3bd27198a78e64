"""Systems of equations with a symmetric matrix, in float64, by its Cholesky factor.

    A = L L^T        L y = b        L^T z = y

No inverse is formed. numpy has the factorisation but no triangular solve, so substitution goes by
blocks: a small dense system on the diagonal, and a product for all rows below it.

Tests: tests/memory/test_solving.py.
"""

from __future__ import annotations

import numpy as np

from ..arrays.shapes import Array

# Rows of a diagonal block: its dense solve costs little beside the products at d_ff of 1024 and up.
_BLOCK = 64
# A pivot below this share of its diagonal entry counts as 0: float64 has 2e-16, and the
# products of some thousand terms before it lose up to four digits.
_DEPENDENT = 1e-11


def factor(matrix: Array, problem: str) -> Array:
    """L [n, n]. Raises ValueError with the text `problem` if the matrix is singular."""
    try:
        return np.asarray(np.linalg.cholesky(matrix))
    except np.linalg.LinAlgError:
        raise ValueError(problem) from None


def solve(lower: Array, right: Array) -> Array:
    """A^-1 right for A = lower lower^T [n, n] and right [n, m]: [n, m]."""
    z = np.array(right, dtype=np.float64, copy=True)
    starts = range(0, len(lower), _BLOCK)
    for start in starts:
        own, below = slice(start, start + _BLOCK), slice(start + _BLOCK, None)
        z[own] = np.linalg.solve(lower[own, own], z[own])
        z[below] -= lower[below, own] @ z[own]
    for start in reversed(starts):
        own, above = slice(start, start + _BLOCK), slice(0, start)
        z[own] = np.linalg.solve(lower[own, own].T, z[own])
        z[above] -= lower[own, above].T @ z[own]
    return z


def dependent_rows(gram: Array) -> list[int]:
    """The rows of G [n, n] (symmetric, not negative) that are sums of multiples of earlier rows."""
    rest, diagonal, found = gram.copy(), np.diagonal(gram).copy(), []
    for j in range(len(gram)):
        pivot = rest[j, j]
        if pivot <= _DEPENDENT * max(diagonal[j], 0.0):
            found.append(j)
            continue
        column = rest[j + 1 :, j] / np.sqrt(pivot)
        rest[j + 1 :, j + 1 :] -= np.outer(column, column)
    return found
