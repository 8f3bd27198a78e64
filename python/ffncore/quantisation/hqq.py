"""HQQ: zeros that are fractions, chosen without any inputs.

The scales stay; the zero z of a group, the mean of c - (w - e) / s, and the codes c = round(w / s +
z) change in turns. e is the part of the error r = w - s (c - z) that counts as an outlier, by the
shrinkage of the p-norm with p = 0.7:

    e = sign(r) max(|r| - |r|^(p - 1) / beta, 0)        beta = 10, times 1.01 in each of 20 turns

Turns end when the mean error no longer falls. Tests: tests/quantisation/test_methods.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..arrays.dtypes import FLOAT32
from ..arrays.shapes import Array
from ..encodings.format import Parts
from ..encodings.grid import row_chunks
from .calibration import Calibration
from .matrix import Task, no_step

NORM, BETA, GROWTH, TURNS = 0.7, 10.0, 1.01, 20


def hqq_steps(task: Task, rows: int, k: int) -> int:  # noqa: ARG001
    return len(list(row_chunks(rows, k)))


def hqq(
    task: Task,
    w: Array,
    known: Calibration | None,  # noqa: ARG001
    step: Callable[[], None] = no_step,
) -> tuple[Parts, Array]:
    if "zeros" not in task.format.takes or task.format.name != "int4":
        raise ValueError(
            f"method 'hqq' chooses zeros, which {task.format.name} has not; expected int4"
        )
    choice = task.fit(w)
    zeros = np.empty(choice["zeros"].shape, np.float16)
    for part in row_chunks(*w.shape):
        groups = w[part].reshape(*zeros[part].shape, -1)
        zeros[part] = _zeros(groups, choice["scales"][part], choice["zeros"][part])
        step()
    choice = {"scales": choice["scales"], "zeros": zeros}
    return choice, task.round(w, choice)


@np.errstate(all="ignore")
def _zeros(groups: Array, scales: Array, first: Array) -> Array:
    """The zeros [rows, groups] of weights [rows, groups, n]."""
    scales = scales.astype(FLOAT32)[..., None]
    unit = np.where(scales == 0, np.inf, scales).astype(FLOAT32)
    zeros: Any = first.astype(FLOAT32)[..., None]
    best, least, beta = zeros, np.inf, BETA
    for _ in range(TURNS):
        codes = np.clip(np.rint(groups / unit + zeros), 0, 15)
        rest = groups - scales * (codes - zeros)
        error = float(np.abs(rest).mean())
        if error >= least:
            break
        best, least = zeros, error
        size = np.abs(rest)
        outlier = np.sign(rest) * np.maximum(size - size ** (NORM - 1) / FLOAT32.type(beta), 0)
        outlier = np.where(size == 0, 0, outlier)
        zeros = (codes - (groups - outlier) / unit).mean(axis=2, keepdims=True)
        beta *= GROWTH
    return np.asarray(best[..., 0])
