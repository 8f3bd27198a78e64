"""fc.rms_norm and fc.layer_norm, and their backward passes, in the kernels.

    u  = (x - m) s,   s = 1 / sqrt(v + eps),   y = u g + bias,   g = gain_offset + gain
    dx = s (q - mean q - u mean(q u)),   q = grad_y g      rms: without mean q
    dgain = sum of grad_y u, dbias = sum of grad_y, over the rows

x is [..., d]. layer: m = mean x and v = mean (x - m)^2; rms: m = 0 and v = mean x^2. The kernels
compute 16-bit x in float32. normed and normed_backward take a Norm: they are what the public
functions and the layers with norms call. Tests: tests/norms/test_norm_rows.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _core
from ..arrays.dtypes import FLOAT32, check_dtype, check_same_dtype, dtype_name, is_narrow
from ..arrays.overlap import check_apart, check_out
from ..arrays.rows import over_rows
from ..arrays.shapes import Array, MaybeArray, as_array, check_shape, check_size
from ..values.copied import Copied
from .norm import KINDS, Norm


@dataclass(frozen=True, eq=False, repr=False)
class NormGrads(Copied):
    """The gradients that fc.rms_norm_backward and fc.layer_norm_backward return.

    x     [..., d], with the dtype of x
    gain  [d], with the dtype of gain; None without a gain
    bias  [d], likewise; None without a bias

    >>> norm_grads = fc.layer_norm_backward(grad_y, x, np.ones(4, "f4"), np.zeros(4, "f4"))
    >>> norm_grads.bias.shape
    """

    x: MaybeArray = None
    gain: MaybeArray = None
    bias: MaybeArray = None

    def arrays(self) -> dict[str, Array]:
        """Return a dict of the gradients that there are: "x", "gain", "bias"."""
        own = {"x": self.x, "gain": self.gain, "bias": self.bias}
        return {name: array for name, array in own.items() if array is not None}

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}={array.shape}" for name, array in self.arrays().items())
        return f"NormGrads({shapes})"


def rms_norm(
    x: Array,
    gain: MaybeArray,
    eps: float = 1e-6,
    gain_offset: float = 0.0,
    *,
    out: MaybeArray = None,
) -> Array:
    """Divide each row by the root of its mean square: x / sqrt(mean x^2 + eps) * gain.

    x            [..., d], of any strides: float32, float64, bfloat16 or float16
    gain         [d], with the dtype of x, or float32 with 16-bit x, or 16 bits with float32 x;
                 None: all 1
    eps          at least 0
    gain_offset  added to gain
    out          an array like x to write the result to, which must not overlap an input; None: a
                 new array

    Returns y [..., d], with the dtype of x: out if it was passed. 16 bits are computed in float32
    and rounded once.

    Raises ValueError for shapes and values, and TypeError for types and dtypes. Source: Zhang and
    Sennrich, Root Mean Square Layer Normalization (2019).

    >>> y = fc.rms_norm(x, np.ones(4, "f4"))
    """
    return normed(x, Norm("rms", gain, None, eps, gain_offset), out)


def layer_norm(
    x: Array,
    gain: MaybeArray,
    bias: MaybeArray = None,
    eps: float = 1e-5,
    gain_offset: float = 0.0,
    *,
    out: MaybeArray = None,
) -> Array:
    """Give each row mean 0 and variance 1: (x - mean) / sqrt(variance + eps) * gain + bias.

    x            [..., d], of any strides: float32, float64, bfloat16 or float16
    gain         [d], with the dtype of x, or float32 with 16-bit x, or 16 bits with float32 x;
                 None: all 1
    bias         [d], with the dtype of gain; None: no bias
    eps          at least 0
    gain_offset  added to gain
    out          as for fc.rms_norm

    Returns y [..., d], with the dtype of x: out if it was passed. The variance is that of x - mean,
    in a second pass over the row, so that it has its digits where it is small beside the mean.

    Raises ValueError for shapes and values, and TypeError for types and dtypes. Source: Ba, Kiros
    and Hinton, Layer Normalization (2016).

    >>> y = fc.layer_norm(x, np.ones(4, "f4"), np.zeros(4, "f4"))
    """
    return normed(x, Norm("layer", gain, bias, eps, gain_offset), out)


def rms_norm_backward(
    grad_y: Array,
    x: Array,
    gain: MaybeArray,
    eps: float = 1e-6,
    gain_offset: float = 0.0,
    *,
    out: MaybeArray = None,
) -> NormGrads:
    """Compute the gradients of fc.rms_norm from the gradient of its result.

    grad_y       [..., d], with the shape and dtype of x
    x            as passed to fc.rms_norm
    gain         as passed to fc.rms_norm
    eps          as passed to fc.rms_norm
    gain_offset  as passed to fc.rms_norm
    out          an array like x for the gradient of x; None: a new array

    Returns a NormGrads: x [..., d] and gain [d]. The gradient of gain is summed over the rows in an
    order that depends on their number alone, and rounded once.

    Raises ValueError for shapes and values, and TypeError for types and dtypes.

    >>> norm_grads = fc.rms_norm_backward(grad_y, x, np.ones(4, "f4"))
    """
    return normed_backward(grad_y, x, Norm("rms", gain, None, eps, gain_offset), out)


def layer_norm_backward(
    grad_y: Array,
    x: Array,
    gain: MaybeArray,
    bias: MaybeArray = None,
    eps: float = 1e-5,
    gain_offset: float = 0.0,
    *,
    out: MaybeArray = None,
) -> NormGrads:
    """Compute the gradients of fc.layer_norm from the gradient of its result.

    grad_y       [..., d], with the shape and dtype of x
    x            as passed to fc.layer_norm
    gain         as passed to fc.layer_norm
    bias         as passed to fc.layer_norm; its numbers are not read
    eps          as passed to fc.layer_norm
    gain_offset  as passed to fc.layer_norm
    out          an array like x for the gradient of x; None: a new array

    Returns a NormGrads: x [..., d], gain [d] and bias [d] for the arrays that were passed.

    Raises ValueError for shapes and values, and TypeError for types and dtypes.

    >>> norm_grads = fc.layer_norm_backward(grad_y, x, np.ones(4, "f4"))
    """
    return normed_backward(grad_y, x, Norm("layer", gain, bias, eps, gain_offset), out)


def check_norm(name: str, norm: object, d: int, dtype: np.dtype[Any], what: str) -> Norm:
    """Check a Norm for rows of d numbers of this dtype, which `what` names. name: of the argument,
    or "" where gain and bias are arguments themselves.
    """
    if not isinstance(norm, Norm):
        raise TypeError(f"{name} is of type {type(norm).__name__}; expected an fc.Norm")
    prefix = f"{name}." if name else ""
    for label, array in norm.arrays().items():
        check_shape(prefix + label, array, (d,), f"to match {what}")
        mixed = {FLOAT32} if is_narrow(dtype) else set()
        fits = array.dtype == dtype or array.dtype in mixed
        if not fits and not (dtype == FLOAT32 and is_narrow(array.dtype)):
            raise TypeError(
                f"{prefix}{label} has dtype {dtype_name(array.dtype)}; expected {dtype.name}"
                f"{' or float32' if mixed else ''} to match {what}"
            )
    return norm


def normed(x: object, norm: Norm, out: object = None) -> Array:
    """The norm of x [..., d], in out or a new array."""
    given = _rows("x", x, norm)
    if out is None:
        y = np.empty(given.shape, given.dtype)
    else:
        y = check_out("out", out, given.shape, given.dtype, "to match x")
        check_apart("out", y, [("x", given), *norm.arrays().items()])
    numbers = KINDS[norm.kind], norm.eps, norm.gain_offset

    def run(rows: Array, to: Array) -> None:
        _core.norm_forward(*numbers, rows, norm.gain, norm.bias, to)

    over_rows(run, (given,), (y,), cut=given.ndim - 1)
    return y


def normed_backward(grad_y: object, x: object, norm: Norm, out: object = None) -> NormGrads:
    """The gradients of x, in out or a new array, and of the arrays of the norm."""
    given = _rows("x", x, norm)
    grad = as_array("grad_y", grad_y)
    check_same_dtype("grad_y", grad, given.dtype, "x")
    check_shape("grad_y", grad, given.shape, "to match x")
    if out is None:
        grad_x = np.empty(given.shape, given.dtype)
    else:
        grad_x = check_out("out", out, given.shape, given.dtype, "to match x")
        check_apart("out", grad_x, [("grad_y", grad), ("x", given), *norm.arrays().items()])
    sums = {name: np.empty(array.shape, array.dtype) for name, array in norm.arrays().items()}
    numbers = KINDS[norm.kind], norm.eps, norm.gain_offset

    def run(dy: Array, rows: Array, dx: Array) -> None:
        both = sums.get("gain"), sums.get("bias")
        _core.norm_backward(*numbers, rows, norm.gain, dy, dx, *both)

    # Sums over all rows cannot be divided into blocks.
    over_rows(run, (grad, given), (grad_x,), cut=0 if sums else given.ndim - 1)
    return NormGrads(grad_x, **sums)


def _rows(name: str, value: object, norm: Norm) -> Array:
    array = as_array(name, value)
    dtype = check_dtype(name, array)
    if array.ndim == 0:
        raise ValueError(f"{name} has shape (); expected [..., d]")
    check_size(array.size, 1, f"the dimensions of {name}")
    check_norm("", norm, array.shape[-1], dtype, name)
    return array
