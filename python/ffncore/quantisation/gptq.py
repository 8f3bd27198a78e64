"""GPTQ: columns are rounded one after the other, and later columns make up for their error.

    H = X^T X + 1 % of its mean diagonal        U upper, U^T U = H^-1

    for each column j:   e = (w_j - w_hat_j) / U_jj      w_i -= e U_ji for all later columns i

Scales are chosen when the first column of their group comes up, from the weights as they are then.
Errors within a block of columns are passed on one by one, those to later blocks in one product.
With inputs whose directions are of very different size this takes a third off the error; with
independent inputs it is no better than rounding. Tests: tests/quantisation/test_methods.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..arrays.dtypes import FLOAT32, FLOAT64
from ..arrays.shapes import Array
from ..encodings.fitting import Misfit
from ..encodings.format import Parts
from .calibration import Calibration
from .matrix import Task, no_step

# The damping that the authors chose.
DAMPING = 0.01

# Columns whose errors are passed on one by one: few, because the product with the rest is faster.
BLOCK = 32

# The size from which a triangle is inverted in two halves and products.
SMALL = 128


def gptq_steps(task: Task, rows: int, k: int) -> int:  # noqa: ARG001
    try:
        span = task.span(k)
    except Misfit:
        return 1  # gptq says what is wrong
    return sum(-(-min(span, k - first) // BLOCK) for first in range(0, k, span))


def gptq(
    task: Task, w: Array, known: Calibration | None, step: Callable[[], None] = no_step
) -> tuple[Parts, Array]:
    assert known is not None
    rows, k = w.shape
    u = _factor(task, known.moment())
    left = np.ascontiguousarray(w.T, FLOAT64)  # what is left to round, columns as rows
    codes = np.empty((rows, k), np.uint8)
    choices: list[Parts] = []
    values, nearest = task.format.levels.values.astype(FLOAT64), task.format.levels.nearest
    span = task.span(k)
    for first in range(0, k, span):
        end = min(first + span, k)
        choice = task.fit(np.ascontiguousarray(left[first:end].T, FLOAT32))
        choices.append(choice)
        grid, group = task.format.grid(choice, rows, end - first)
        scales, zeros, offsets = (
            None if a is None else a.astype(FLOAT64) for a in grid.spread(group, end - first)
        )
        assert scales is not None
        for start in range(first, end, BLOCK):
            stop = min(start + BLOCK, end)
            errors = np.empty((stop - start, rows))
            for j in range(start, stop):
                at = min(j - first, scales.shape[1] - 1)
                s = scales[:, at]
                o = 0.0 if offsets is None else offsets[:, at]
                z = 0.0 if zeros is None else zeros[:, at]
                t = (left[j] - o) / np.where(s == 0, np.inf, s) + z
                codes[:, j] = nearest(t.astype(FLOAT32))
                found = (values[codes[:, j]] - z) * s + o
                errors[j - start] = error = (left[j] - found) / u[j, j]
                left[j:stop] -= u[j, j:stop, None] * error
            left[stop:] -= u[start:stop, stop:].T @ errors
            step()
    joined = {n: np.concatenate([c[n] for c in choices], axis=1) for n in choices[0]}
    return joined, codes


def _factor(task: Task, moment: Array) -> Array:
    """U with U^T U = H^-1: the inverse of the upper R with R R^T = H."""
    diagonal = np.diagonal(moment)
    damping = DAMPING * float(diagonal.mean()) or 1.0
    h = moment + damping * np.eye(len(moment))
    try:
        r = np.linalg.cholesky(h[::-1, ::-1])[::-1, ::-1]
    except np.linalg.LinAlgError:
        raise ValueError(
            f"the second moment for {task.name} is not positive; expected X^T X of inputs X"
        ) from None
    return _inverse(r)


def _inverse(r: Array) -> Array:
    """The inverse of an upper triangle: [[A, B], [0, D]] has [[A', -A' B D'], [0, D']]."""
    n = len(r)
    if n <= SMALL:
        return np.asarray(np.linalg.inv(r))
    half = n // 2
    found = np.zeros((n, n))
    first, last = _inverse(r[:half, :half]), _inverse(r[half:, half:])
    found[:half, :half], found[half:, half:] = first, last
    found[:half, half:] = -(first @ (r[:half, half:] @ last))
    return found
