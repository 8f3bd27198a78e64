"""The specification of compute="int8": a layer whose products are sums of integers.

x is rounded to int8 per token and block of 32 inputs, counted from 0; the last may be shorter:

    s = amax / 127      q = rint(x / s)         in float32, halves to even; s = 0 gives q = 0

q is at most 127, except where s is subnormal; there it is cut off at 127. The inputs are cut into
pieces at each multiple of 32 and at each boundary of the weights' groups. A product is one chain
from +0 over the pieces in order, in float32, with an fma wherever two numbers are multiplied and
added. For a piece of weights t (v - z) + o, with t, z and o of the group, and

    S = sum of q (v - z)      A = sum of q                 integers, exact in float32

    sum = fma(S, s * t, sum)                               z integers, or none
    sum = fma(o, A * s, sum)                               o if there are offsets

Zeros that are fractions take part as offsets o = -(z t). Groups of 16 weights make two pieces of a
block. A bias is added at the end. h is float32, and rounded to int8 like x. A token that has an
infinity or NaN gives NaN in all outputs. The matrices of a layer that are not quantised are
multiplied in float32 (sums.py). Part of ffncore.reference.

Tests: tests/reference/test_reference_quantised.py.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _core
from ..arrays.dtypes import FLOAT32
from ..arrays.shapes import Array, MaybeArray
from ..encodings.tensor import QuantizedTensor
from ..values.activation import as_activation, as_core
from ..values.packed import check_block
from ..values.weights import FFNWeights
from .sums import fma, product_in_order

BLOCK = 32
MOST = FLOAT32.type(127)

# Formats whose values are no integers.
_FLOATS = ("fp8_e4m3", "nvfp4", "nf4")


@np.errstate(all="ignore")
def round_to_int8(x: npt.ArrayLike) -> tuple[Array, Array]:
    """Round the blocks of rows to int8.

    x  [tokens, k], float32

    Returns q int8 [tokens, k], and s float32 [tokens, blocks of 32]. Tokens with an infinity or NaN
    have scales of NaN.

    >>> q, s = fc.reference.round_to_int8(x)
    """
    given = np.asarray(x, FLOAT32)
    tokens, k = given.shape
    blocks = -(-k // BLOCK)
    padded = np.zeros((tokens, blocks * BLOCK), FLOAT32)
    padded[:, :k] = given
    padded = padded.reshape(tokens, blocks, BLOCK)
    s: Any = np.abs(padded).max(axis=2) / MOST
    finite: Any = np.isfinite(given).all(axis=1)
    usable = np.where((s == 0) | ~finite[:, None], FLOAT32.type(1), s)
    q = np.clip(np.rint(padded / usable[..., None]), -MOST, MOST)
    q[(s == 0) | ~finite[:, None]] = 0
    s[~finite] = np.nan
    return q.astype(np.int8).reshape(tokens, -1)[:, :k], s


def ffn_int8(x: npt.ArrayLike, weights: FFNWeights, *, activation: object) -> Array:
    """Compute a layer with quantised weights in integer products; see the head of this module.

    x           [..., d_model], float32 or 16 bits
    weights     FFNWeights of one layer whose matrices are QuantizedTensors
    activation  a name, or an Activation with options

    Returns y, [..., d_model], with the dtype of x. The activation is that of fc.activation, so that
    kernels can be compared bit by bit.

    Raises ValueError for formats of floats (fp8_e4m3, nvfp4, nf4) and for weights with g_idx.

    >>> wq = fc.quantize(weights, "int8")
    >>> y = fc.reference.ffn_int8(x, wq, activation="silu")
    """
    given = np.asarray(x)
    w = check_block(weights)
    if not isinstance(w, FFNWeights):
        raise TypeError("weights are packed; expected FFNWeights")
    rows = given.reshape(-1, given.shape[-1]).astype(FLOAT32)
    up = _product(rows, w, "up")
    gate = _product(rows, w, "gate") if w.gated else None
    h = np.empty(up.shape, FLOAT32)
    core = as_core(as_activation(activation), w.gated, FLOAT32)
    _core.activation_forward(gate, up, h, core)
    y = _product(h, w, "down")
    with np.errstate(over="ignore"):
        return y.astype(given.dtype).reshape(given.shape)


@np.errstate(all="ignore")
def _product(x: Array, weights: FFNWeights, name: str) -> Array:
    """x W^T + b, [tokens, out]."""
    matrix = getattr(weights, name)
    bias: MaybeArray = getattr(weights, f"b_{name}")
    if isinstance(matrix, QuantizedTensor):
        y = _integer_product(x, matrix, f"weights.{name}")
    else:
        y = product_in_order(x.T, matrix.astype(FLOAT32).T)
    return y if bias is None else np.asarray(y + bias.astype(FLOAT32))


def _integer_product(x: Array, matrix: QuantizedTensor, name: str) -> Array:
    if matrix.format in _FLOATS or "g_idx" in matrix._parts:
        what = "g_idx" if "g_idx" in matrix._parts else f"format {matrix.format!r}"
        raise ValueError(f"{name} has {what}; expected weights with compute='int8'")
    planes = matrix._planes()
    group, grid = planes.group, planes.grid
    k, out = x.shape[1], matrix.shape[0]
    # In float64 the sums of a piece are exact, and a product of matrices is fast.
    v: Any = planes.levels.values[planes.codes].astype(np.float64)
    scales, zeros, offsets = grid
    given = matrix._parts.get("zeros")
    if zeros is not None and given is not None and given.dtype.kind not in "iu":
        offsets, zeros = -(zeros * scales), None
    q, s = round_to_int8(x)
    total = np.zeros((len(x), out), FLOAT32)
    edges = sorted({*range(0, k, BLOCK), *range(0, k, group), k})
    for start, end in itertools.pairwise(edges):
        own = q[:, start:end].astype(np.float64)
        column = min(start // group, scales.shape[1] - 1)
        values = v[:, start:end]
        if zeros is not None:
            values = values - zeros[:, column : column + 1]
        scale = s[:, start // BLOCK, None]
        sums = (own @ values.T).astype(FLOAT32)
        total = fma(sums, scale * scales[:, column], total)
        if offsets is not None:
            below = own.sum(axis=1, keepdims=True).astype(FLOAT32) * scale
            total = fma(np.broadcast_to(offsets[:, column], total.shape), below, total)
    return total
