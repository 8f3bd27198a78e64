"""y = x W^T + b of a layer object's small matrices, in plain numpy: router, shared gate, latents.

    x [..., in]    W [out, in]    b [out]    y [..., out]

Computed in a type of the caller's choice, a bounded block of rows at a time. A router computes in
float64 and rounds once, so that a float32 logit has the same bits whatever rows stand beside it,
but for a case in some 10^8 (BLAS chooses its order of summation by shape). The choice of experts
then does not depend on the batch.

Tests: tests/layers/test_moe_layer.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays.dtypes import FLOAT32, FLOAT64
from ..arrays.rows import BLOCK_BYTES
from ..arrays.shapes import Array, MaybeArray


@np.errstate(all="ignore")
def linear(x: Array, weight: Array, bias: MaybeArray, compute: npt.DTypeLike) -> Array:
    """y of type `compute`."""
    rows = _rows(x)
    w = weight.astype(compute, copy=False).T
    y = np.empty((len(rows), weight.shape[0]), compute)
    for block in _blocks(rows):
        np.matmul(rows[block].astype(compute, copy=False), w, out=y[block])
    if bias is not None:
        y += bias.astype(compute, copy=False)
    return (
        y.reshape(*x.shape[:-1], -1) if y.size else np.zeros((*x.shape[:-1], y.shape[1]), compute)
    )


@np.errstate(all="ignore")
def linear_backward(
    grad: Array, x: Array, weight: Array, compute: npt.DTypeLike
) -> tuple[Array, Array, Array]:
    """Gradients of x, weight and bias, of type `compute`."""
    rows, grads = _rows(x), _rows(grad)
    w = weight.astype(compute, copy=False)
    dx, dw = np.empty(rows.shape, compute), np.zeros(w.shape, compute)
    for block in _blocks(rows):
        dy = grads[block].astype(compute, copy=False)
        np.matmul(dy, w, out=dx[block])
        dw += dy.T @ rows[block].astype(compute, copy=False)
    return dx.reshape(x.shape), dw, grads.sum(axis=0, dtype=compute)


def work_dtype(x: Array) -> np.dtype[Any]:
    """What a layer's sums are computed in."""
    return FLOAT64 if x.dtype == FLOAT64 else FLOAT32


def _rows(x: Array) -> Array:
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _blocks(rows: Array) -> Iterator[slice]:
    # float64 is the widest that they are converted to.
    step = max(1, BLOCK_BYTES // (8 * max(1, rows.shape[1])))
    for start in range(0, len(rows), step):
        yield slice(start, start + step)
