"""fc.activation and fc.activation_backward: activations of arrays, without the matrix products.

    h = act(x)           dx = dh act'(x)                              plain
    h = act(x) up        dx = dh up act'(x)     dup = dh act(x)       gated: x is the gate

All arrays have one shape [...] and may have any strides. values/activation.py has the options.
Tests: tests/functional/test_elementwise.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _core
from ..arrays.dtypes import check_dtype, check_same_dtype
from ..arrays.overlap import check_apart, check_out
from ..arrays.rows import over_rows
from ..arrays.shapes import Array, MaybeArray, as_array, check_shape, check_size
from ..values.activation import KINDS, CoreActivation, as_core
from ..values.gradients import ActivationGrads, XieluGrads


def activation(
    x: Array, up: MaybeArray = None, *, activation: object, out: MaybeArray = None
) -> Array:
    """Compute an activation elementwise: act(x), or act(x) * up.

    x           [...], of any shape and strides: float32, float64, bfloat16 or float16
    up          an array like x; then x is the gate, and the options of gated layers apply.
                None: the plain form act(x)
    activation  a name, or an Activation with options
    out         an array like x to write the result to, which must not overlap x or up; None: a new
                array

    Returns an array with the shape and dtype of x: out if it was passed. 16-bit dtypes are computed
    in float32 and rounded once.

    Raises ValueError for shapes and values, and TypeError for types and dtypes.

    See also: fc.Activation, which has the names and the formulas.

    >>> h = fc.activation(x, activation="gelu_tanh")
    >>> h = fc.activation(x, up=np.ones_like(x), activation="silu")
    """
    x, up, core = _operands(x, up, activation)
    if out is None:
        out = np.empty(x.shape, x.dtype)
    else:
        out = check_out("out", out, x.shape, x.dtype, "to match x")
        check_apart("out", out, (("x", x), ("up", up)))

    def run(x: Array, up: MaybeArray, h: Array) -> None:
        # The kernels call the only input of the plain form "up".
        gate, up = (None, x) if up is None else (x, up)
        _core.activation_forward(gate, up, h, core)

    # Elements are independent, so that all dimensions, also the last one, may be cut into blocks.
    over_rows(run, (_line(x), _line(up)), (_line(out),), cut=max(1, x.ndim))
    return out


def activation_backward(
    grad: Array,
    x: Array,
    up: MaybeArray = None,
    *,
    activation: object,
    out: tuple[Any, ...] | None = None,
) -> ActivationGrads:
    """Compute the gradients of fc.activation from the gradient of its result.

    grad        [...], the gradient of the result, with the shape and dtype of x
    x           as passed to fc.activation
    up          as passed to fc.activation
    activation  as passed to fc.activation
    out         a tuple (x,) or (x, up) of arrays to write the gradients to, each of which may be
                None; or the ActivationGrads of an earlier call. None: new arrays

    Returns an ActivationGrads: x, up (None in the plain form) and, with xielu, activation.

    Raises ValueError for shapes and values, and TypeError for types and dtypes.

    >>> grads = fc.activation_backward(np.ones_like(x), x, activation="silu")
    """
    x, up, core = _operands(x, up, activation)
    grad = as_array("grad", grad)
    check_same_dtype("grad", grad, x.dtype, "x")
    check_shape("grad", grad, x.shape, "to match x")
    if out is not None:
        _check_out_tuple(out, up is not None)
    grads: list[MaybeArray] = []
    inputs: list[tuple[str, MaybeArray]] = [("grad", grad), ("x", x), ("up", up)]
    for index, name in enumerate(("out.x", "out.up")):
        given = out[index] if out is not None and len(out) > index else None
        if index == 1 and up is None:
            grads.append(None)
        elif given is None:
            grads.append(np.empty(x.shape, x.dtype))
        else:
            checked = check_out(name, given, x.shape, x.dtype, "to match x")
            check_apart(name, checked, inputs)
            inputs.append((name, checked))
            grads.append(checked)
    is_xielu = core.kind == KINDS["xielu"]

    def run(
        grad: Array, x: Array, up: MaybeArray, grad_x: Array, grad_up: MaybeArray
    ) -> tuple[float, float] | None:
        if up is None or grad_up is None:
            return _core.activation_backward(grad, None, x, None, grad_x, core, is_xielu)
        return _core.activation_backward(grad, x, up, grad_x, grad_up, core, is_xielu)

    sums = over_rows(
        run,
        (_line(grad), _line(x), _line(up)),
        [_line(array) for array in grads],
        cut=max(1, x.ndim),
    )
    numbers = None
    if is_xielu:
        numbers = XieluGrads(*(sum(s[i] for s in sums if s is not None) for i in (0, 1)))
    grad_x: Any = grads[0]
    return ActivationGrads(grad_x, grads[1], numbers)


def _operands(
    x: object, up: object, activation: object
) -> tuple[Array, MaybeArray, CoreActivation]:
    """Check the arguments of both passes: x [...], up of the same shape or None, activation."""
    first = as_array("x", x)
    dtype = check_dtype("x", first)
    second = None
    if up is not None:
        second = as_array("up", up)
        check_same_dtype("up", second, dtype, "x")
        check_shape("up", second, first.shape, "to match x")
    check_size(first.size, 1, "the dimensions of x")
    return first, second, as_core(activation, second is not None, dtype)


def _line(array: MaybeArray) -> MaybeArray:
    """An array without dimensions as [1]; every other array as it is."""
    return array.reshape(1) if array is not None and array.ndim == 0 else array


def _check_out_tuple(out: object, gated: bool) -> None:
    if not isinstance(out, tuple):
        raise TypeError(f"out is of type {type(out).__name__}; expected a tuple (x, up)")
    if not gated and len(out) > 1 and out[1] is not None:
        raise ValueError("out has an array for up, but up is None; expected None in its place")
