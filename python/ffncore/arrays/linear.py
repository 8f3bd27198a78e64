"""y = x W^T + b in plain numpy, for the small matrices of layers: router, shared gate, latent ones.

    x [..., in]    W [out, in]    b [out]    y [..., out]

The caller chooses the dtype of the computation. Rows are computed in blocks of bounded size. Logits
are computed in float64 and rounded to float32 once, so that the choice of experts does not depend
on the batch: BLAS chooses its order of summation by the shape, but in float64 this changes a
rounded logit in only about one case in 10^8.

Tests: tests/layers/test_moe_layer.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from .dtypes import FLOAT32, FLOAT64
from .rows import BLOCK_BYTES
from .shapes import Array, MaybeArray


@np.errstate(all="ignore")
def linear(x: Array, weight: Array, bias: MaybeArray, compute: npt.DTypeLike) -> Array:
    """Return y, of dtype `compute`."""
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
    """Return the gradients of x, weight and bias, of dtype `compute`."""
    rows, grads = _rows(x), _rows(grad)
    w = weight.astype(compute, copy=False)
    dx, dw = np.empty(rows.shape, compute), np.zeros(w.shape, compute)
    for block in _blocks(rows):
        dy = grads[block].astype(compute, copy=False)
        np.matmul(dy, w, out=dx[block])
        dw += dy.T @ rows[block].astype(compute, copy=False)
    return dx.reshape(x.shape), dw, grads.sum(axis=0, dtype=compute)


def work_dtype(x: Array) -> np.dtype[Any]:
    """The dtype in which fc.MoE adds its parts: float64 for float64 x, else float32."""
    return FLOAT64 if x.dtype == FLOAT64 else FLOAT32


def _rows(x: Array) -> Array:
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _blocks(rows: Array) -> Iterator[slice]:
    # Rows may be converted to float64, which has 8 bytes.
    step = max(1, BLOCK_BYTES // (8 * max(1, rows.shape[1])))
    for start in range(0, len(rows), step):
        yield slice(start, start + step)
