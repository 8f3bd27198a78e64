"""HQQ: zeros that are fractions, chosen without any inputs.

The scales stay; the zero z of a group, the mean of c - (w - e) / s, and the codes c = round(w / s +
z) change in turns. e is the part of the error r = w - s (c - z) that counts as an outlier, by the
shrinkage of the p-norm with p = 0.7:

    e = sign(r) max(|r| - |r|^(p - 1) / beta, 0)        beta = 10, times 1.01 in each of 20 turns

Turns end when the mean error no longer falls. Tests: tests/quantisation/test_methods.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays.dtypes import FLOAT32
from ..arrays.shapes import Array
from ..encodings.format import Parts
from .calibration import Calibration
from .matrix import Task

NORM, BETA, GROWTH, TURNS = 0.7, 10.0, 1.01, 20


@np.errstate(all="ignore")
def hqq(task: Task, w: Array, known: Calibration | None) -> tuple[Parts, Array]:  # noqa: ARG001
    if "zeros" not in task.format.takes or task.format.name != "int4":
        raise ValueError(
            f"method 'hqq' chooses zeros, which {task.format.name} has not; expected int4"
        )
    choice = task.fit(w)
    rows, k = w.shape
    groups = w.reshape(rows, -1, task.span(k))
    scales = choice["scales"].astype(FLOAT32)[..., None]
    unit = np.where(scales == 0, np.inf, scales).astype(FLOAT32)
    zeros: Any = choice["zeros"].astype(FLOAT32)[..., None]
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
    choice = {"scales": choice["scales"], "zeros": best[..., 0].astype(np.float16)}
    return choice, task.round(w, choice)
