"""Training through a quantiser: fc.fake_quantize and its backward pass.

    w_hat = what w becomes in a format            G = the gradient of w_hat

Rounding has no derivative. Its gradient is passed straight through where t, the weight in units of
its scale, lies within half a step of the range of the codes, and is 0 elsewhere:

    dw = G [low - 1/2 <= t <= high + 1/2]         one bit: G [|t| <= 3]

One bit without a scale of the caller's: the scale alpha of n weights is the mean magnitude, which
has a derivative, so that

    dw_i = G_i [|t_i| <= 3] + (sign w_i / n) sum over the group of G_j sign w_j

A scale of the caller's is trained with the weights (LSQ, ParetoQ):

    w_hat = scale v       v = the code, or +1 and -1, or for paretoq2 one of +-1/4 and +-3/4
    dscale = sum of G (v - t inside the range, v outside; one bit: v) / sqrt(n high)

with the number n of weights of one scale, and high = 1 for one bit, ternary weights and paretoq2.
Tests: tests/quantisation/test_fake.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..arrays.dtypes import FLOAT32, FLOAT64, check_dtype, dtype_name
from ..arrays.shapes import Array, MaybeArray, as_array, check_shape
from ..encodings.grid import Grid, in_units
from ..encodings.parts import as_scales
from ..encodings.table import FORMATS
from ..values.copied import Copied
from .matrix import check_matrix, check_task
from .quantize import tensor_of

# Beyond this many scales a one-bit weight no longer gets a gradient.
ONE_BIT_RANGE = 3


class Steps(NamedTuple):
    """Values v = (code + shift) step, with codes from low to high, that a scale multiplies.

    high_of_gradient is the number by which the gradient of a scale is normalised.
    """

    low: int
    high: int
    step: float = 1.0
    shift: float = 0.0
    high_of_gradient: int = 1

    def values(self, t: Array) -> Array:
        codes = np.clip(np.rint(t / self.step - self.shift), self.low, self.high)
        return np.asarray((codes + self.shift) * self.step)

    def inside(self, t: Array) -> Array:
        ends = (self.low + self.shift - 0.5) * self.step, (self.high + self.shift + 0.5) * self.step
        return np.asarray((t >= ends[0]) & (t <= ends[1]))


class OneBit(Steps):
    def values(self, t: Array) -> Array:
        return np.asarray(np.where(t >= 0, t.dtype.type(1), t.dtype.type(-1)))

    def inside(self, t: Array) -> Array:
        return np.asarray(np.abs(t) <= ONE_BIT_RANGE)


def _of_bits(low: int, high: int) -> Steps:
    return Steps(low, high, high_of_gradient=high)


# The formats whose scales can be trained.
LEARNED = {
    "q1_0": OneBit(-1, 1),
    **dict.fromkeys(("q2_0", "tq1_0", "tq2_0"), Steps(-1, 1)),
    **dict.fromkeys(("q4_0", "int4"), _of_bits(-8, 7)),
    **dict.fromkeys(("q8_0", "int8"), _of_bits(-127, 127)),
    "q6_k": _of_bits(-32, 31),
    "paretoq2": Steps(-2, 1, step=0.5, shift=0.5),
}


class FakeQuantizeGrads(NamedTuple):
    """The gradients that fc.fake_quantize_backward returns: a named tuple.

    weights  [..., out, in], the gradient of w
    scale    the gradient of scale, with its shape; None if scale was not passed
    """

    weights: Array
    scale: MaybeArray


@dataclass(frozen=True, eq=False, repr=False)
class FakeQuantizeSaved(Copied):
    """What fc.fake_quantize_backward needs: w, which must not be changed, and its scales.

    w       as passed to fc.fake_quantize
    format  likewise
    scale   likewise
    grid    without a scale: what the format chose, arrays [rows, groups]

    >>> w_hat, fake_saved = fc.fake_quantize(np.ones((8, 128), "f4"), "q1_0")
    """

    w: Array
    format: str
    scale: MaybeArray
    grid: Grid | None

    def __repr__(self) -> str:
        return f"FakeQuantizeSaved({self.format}, w={self.w.shape})"


def fake_quantize(w: Array, format: str, *, scale: Any = None) -> tuple[Array, FakeQuantizeSaved]:
    """Round weights to what they become in a format, for training (QAT).

    w       [out, in] or [n_experts, out, in], float32, or float64 with one bit or with scale
    format  a name of fc.formats() that fc.quantize makes, or "paretoq2": the values +-1/4 and +-3/4
            times scale, which needs scale
    scale   None: the scales that fc.quantize chooses, and w_hat has the bits of
            fc.quantize(w, format).dequantize(). Else the trained scales, with the dtype of w and
            positive: one number, [out], [out, 1] or [out, groups]; only for formats without
            offsets. They are not rounded to the precision of the format

    Returns w_hat, an array like w, and a FakeQuantizeSaved, which refers to w.

    In float64, scales of one bit are not rounded either, so that derivatives can be checked.

    Raises ValueError for shapes, names and values, and TypeError for types and dtypes.

    >>> w_hat, fake_saved = fc.fake_quantize(np.ones((8, 128), "f4"), "q1_0")
    >>> grads = fc.fake_quantize_backward(np.ones((8, 128), "f4"), fake_saved)
    """
    given = check_matrix("w", w)
    dtype = check_dtype("w", given)
    if dtype not in (FLOAT32, FLOAT64):
        raise TypeError(f"w has dtype {dtype_name(dtype)}; expected float32 or float64")
    if scale is None and format == "paretoq2":
        raise ValueError("scale is None; expected the trained scales of paretoq2")
    if scale is None:
        return _with_own_scales(given, format)
    if format not in LEARNED:
        check_task("w", format, "group", None)
        raise ValueError(
            f"scale is given, but format is {format!r}; expected one of {', '.join(LEARNED)}"
        )
    scale = _check_scale(scale, given)
    s = _spread(scale, given.shape)
    return LEARNED[format].values(given / s) * s, FakeQuantizeSaved(given, format, scale, None)


def fake_quantize_backward(grad: Array, saved: FakeQuantizeSaved) -> FakeQuantizeGrads:
    """Compute the gradients of w and scale from the gradient of w_hat.

    grad   [..., out, in], with the shape and dtype of w
    saved  the second result of fc.fake_quantize

    Returns a FakeQuantizeGrads: weights and scale. The gradient of a weight is that of w_hat where
    the weight lies within half a step of the range of the codes, with one bit within 3 scales, else
    0. With one bit and without scale it has the exact derivative of the scale, too.

    Raises ValueError and TypeError if grad or saved do not fit.

    >>> w_hat, fake_saved = fc.fake_quantize(np.ones((8, 128), "f4"), "q1_0")
    >>> fc.fake_quantize_backward(np.ones((8, 128), "f4"), fake_saved).weights.shape
    """
    if not isinstance(saved, FakeQuantizeSaved):
        raise TypeError(
            f"saved is of type {type(saved).__name__}; expected the second result of fake_quantize"
        )
    w = saved.w
    g = as_array("grad", grad)
    if g.dtype != w.dtype:
        raise TypeError(f"grad has dtype {dtype_name(g.dtype)}; expected {w.dtype} to match w")
    check_shape("grad", g, w.shape, "to match w")
    if saved.grid is not None:
        return FakeQuantizeGrads(_own_scales_backward(g, saved, saved.grid), None)
    assert saved.scale is not None
    steps, scale = LEARNED[saved.format], saved.scale
    t = w / _spread(scale, w.shape)
    inside, v = steps.inside(t), steps.values(t)
    slope = v if isinstance(steps, OneBit) else np.where(inside, v - t, v)
    count = w.size / scale.size
    total = _sum_like(g * slope, scale) / np.sqrt(count * steps.high_of_gradient)
    return FakeQuantizeGrads(np.where(inside, g, 0), total.astype(scale.dtype))


# ---- scales of the format


def _with_own_scales(w: Array, format: str) -> tuple[Array, FakeQuantizeSaved]:
    task = check_task("w", format, "group", None)
    if w.dtype == FLOAT32:
        q = tensor_of(w, task)
        return q.dequantize(), FakeQuantizeSaved(w, format, None, q._planes().grid)
    if format != "q1_0":
        raise TypeError(f"w has dtype float64; expected float32 for {format!r} without scale")
    rows = w.reshape(-1, w.shape[-1])
    task.fit(np.zeros((1, rows.shape[1]), FLOAT32))  # checks the size of rows
    alpha = np.abs(rows).reshape(len(rows), -1, task.span(rows.shape[1])).mean(axis=2)
    values = LEARNED[format].values(w).reshape(*alpha.shape, -1)
    w_hat = (values * alpha[..., None]).reshape(w.shape)
    return w_hat, FakeQuantizeSaved(w, format, None, Grid(alpha))


def _own_scales_backward(g: Array, saved: FakeQuantizeSaved, grid: Grid) -> Array:
    levels, k = FORMATS[saved.format].levels, g.shape[-1]
    groups = grid.scales.shape[1]
    w = saved.w.reshape(-1, k)
    # The last group of a row may be shorter, in fp8_e4m3 alone.
    t = in_units(w, grid.spread(128 if k % groups else k // groups, k))
    if saved.format != "q1_0":
        inside = (t >= levels.low - levels.half) & (t <= levels.high + levels.half)
        return np.asarray(np.where(inside.reshape(g.shape), g, 0))
    n = k // groups
    sign = np.where(w >= 0, w.dtype.type(1), w.dtype.type(-1)).reshape(-1, groups, n)
    through_scale = (g.reshape(sign.shape) * sign).sum(axis=2, keepdims=True) / n
    inside = (np.abs(t) <= ONE_BIT_RANGE).reshape(g.shape)
    whole = np.where(inside, g, 0) + (sign * through_scale).reshape(g.shape)
    return np.asarray(whole, g.dtype)


# ---- scales of the caller


def _check_scale(value: Any, w: Array) -> Array:
    scale = value if isinstance(value, np.ndarray) else np.asarray(value, w.dtype)
    if scale.dtype != w.dtype:
        raise TypeError(f"scale has dtype {dtype_name(scale.dtype)}; expected {w.dtype} to match w")
    numbers = as_scales("scale", scale, w.shape)
    rows, groups = numbers.shape[-2:]
    if rows not in (1, w.shape[-2]) or not groups or w.shape[-1] % groups:
        raise ValueError(
            f"scale has shape {scale.shape}; expected one number, one for each output, or "
            f"[..., out, groups] for w {w.shape}"
        )
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        wrong = scale[~(np.isfinite(scale) & (scale > 0))].ravel()[0]
        raise ValueError(f"scale has {wrong}; expected positive finite numbers")
    return np.asarray(scale)


def _spread(scale: Array, shape: tuple[int, ...]) -> Array:
    """The scale of each weight, in a shape that broadcasts to w."""
    numbers = as_scales("scale", scale, shape)
    groups = numbers.shape[-1]
    return numbers if groups == 1 else np.repeat(numbers, shape[-1] // groups, axis=-1)


def _sum_like(terms: Array, scale: Array) -> Array:
    """Sums of terms [..., out, in] over the weights of each scale, in the shape of scale."""
    numbers = as_scales("scale", scale, terms.shape)
    rows, groups = numbers.shape[-2:]
    by_group = terms.reshape(*terms.shape[:-1], groups, -1).sum(axis=-1)
    sums = by_group if rows > 1 else by_group.sum(axis=-2, keepdims=True)
    if scale.size == 1:
        return np.asarray(np.asarray(sums.sum()).reshape(scale.shape))
    return np.asarray(sums.reshape(scale.shape))
