"""The specification of activations and their derivatives, in plain numpy.

    h = act(x), or act(x) * up, where x is the gate         all arrays [...], of one shape

FORMULAS has the value and the derivative of each activation; activation and activation_backward add
the options of fc.Activation (clamps, soft caps, offset, multiplier). gelu needs erf, which numpy
does not have, and which is computed here for real numbers only. Part of ffncore.reference. Tests:
tests/reference/test_reference.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..arrays.shapes import Array
from ..values.activation import Activation, as_activation

# ---- elementary functions --------------------------------------------------------------------

_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def erfc(v: Array) -> Array:
    """1 - erf(v), without cancellation for large v; real numbers only."""
    if np.iscomplexobj(v):
        raise TypeError("v is complex; expected real numbers, because erfc and gelu are real here")
    return np.asarray(_erfc(v) if v.size else v, dtype=v.dtype)


def sigmoid(v: Array) -> Array:
    """1 / (1 + exp(-v))."""
    return np.asarray(1 / (1 + np.exp(-v)))


def softplus(v: Array) -> Array:
    """log(1 + exp(v)), computed so that the exponential does not overflow."""
    return np.where(v.real > 0, v + np.log1p(np.exp(-v)), np.log1p(np.exp(v)))


def minimum(v: Array, bound: float) -> Array:
    """The smaller of v and bound; NaN stays NaN."""
    return np.where(v.real > bound, bound, v)


# ---- activations: value and derivative ---------------------------------------------------------
# Each function takes v and the options. gelu_tanh has sqrt(2 / pi) and 0.044715 from the paper of
# GELU; quick_gelu is v sigmoid(1.702 v). The formulas are written so that nothing cancels:
# v/2 (1 + tanh(z)) = v sigmoid(2 z), 1 - sigmoid(v) = sigmoid(-v), and
# 1 - tanh(v)^2 = 1 / cosh(v)^2. For infinite v, the value is that of the formula
# (silu(-inf) = -inf * 0 = NaN), and the derivative is its limit.

Formula = Callable[[Array, Activation], Array]


def sigmoid_derivative(v: Array) -> Array:
    """The derivative of the sigmoid at v."""
    return np.asarray(sigmoid(v) * sigmoid(-v))


def tanh_derivative(v: Array) -> Array:
    """The derivative of tanh at v."""
    return np.asarray((1 / np.cosh(v)) ** 2)


def finite(v: Array) -> Array:
    """v with 0 for infinities: for products with a factor that vanishes faster than v grows."""
    return np.where(np.isinf(v), 0, v)


def _softcapped(slope: float, v: Array, act: Activation) -> Array:
    """v sigmoid(slope v), or c tanh(v / c) sigmoid(slope v): the cap is not in the sigmoid."""
    c = act.gate_softcap
    return (v if c is None else c * np.tanh(v / c)) * sigmoid(slope * v)


def _softcapped_derivative(slope: float, v: Array, act: Activation) -> Array:
    s, ds, c = sigmoid(slope * v), slope * sigmoid_derivative(slope * v), act.gate_softcap
    if c is None:
        return np.asarray(s + finite(v) * ds)
    return np.asarray(tanh_derivative(v / c) * s + c * np.tanh(v / c) * ds)


def slope_of(act: Activation) -> float:
    """The factor of v in the sigmoid of silu and quick_gelu."""
    if act.name == "quick_gelu":
        return 1.702
    return _number(act.alpha)


def _relu(v: Array, _: Activation) -> Array:
    return np.where(v.real <= 0, 0, v)


def _relu_derivative(v: Array, _: Activation) -> Array:
    return np.where(v.real <= 0, 0, np.where(np.isnan(v), v, 1))


def _gelu(v: Array, _: Activation) -> Array:
    return np.asarray(v / 2 * erfc(-v * v.dtype.type(math.sqrt(0.5))))


def _gelu_derivative(v: Array, _: Activation) -> Array:
    density = np.exp(-v * v / 2) * math.sqrt(0.5 / math.pi)
    return np.asarray(erfc(-v * v.dtype.type(math.sqrt(0.5))) / 2 + finite(v) * density)


def _gelu_tanh(v: Array, _: Activation) -> Array:
    return np.asarray(v * sigmoid(math.sqrt(8 / math.pi) * (v + 0.044715 * v**3)))


def _gelu_tanh_derivative(v: Array, _: Activation) -> Array:
    c = math.sqrt(8 / math.pi)
    z, u = c * (v + 0.044715 * v**3), finite(v)
    return np.asarray(sigmoid(z) + u * sigmoid_derivative(z) * c * (1 + 3 * 0.044715 * u * u))


def _mish_derivative(v: Array, _: Activation) -> Array:
    z = softplus(v)
    return np.asarray(np.tanh(z) + finite(v) * tanh_derivative(z) * sigmoid(v))


def _hardswish(v: Array, _: Activation) -> Array:
    return np.asarray(v * np.where(v.real <= -3, 0, np.where(v.real >= 3, 6, v + 3)) / 6)


def _hardswish_derivative(v: Array, _: Activation) -> Array:
    return np.where(v.real <= -3, 0, np.where(v.real >= 3, 1, (2 * v + 3) / 6))


def _leaky_relu(v: Array, act: Activation) -> Array:
    return np.where(v.real >= 0, v, _number(act.negative_slope) * v)


def _leaky_relu_derivative(v: Array, act: Activation) -> Array:
    return np.where(v.real >= 0, 1, np.where(np.isnan(v), v, _number(act.negative_slope)))


class XieluParameters(NamedTuple):
    """The numbers in xielu's formula: a_p = softplus(alpha_p), a_n = beta + softplus(alpha_n)."""

    a_p: float
    a_n: float
    beta: float
    eps: float


def xielu_parameters(act: Activation) -> XieluParameters:
    """Return the numbers in xielu's formula for an Activation."""
    raw: Any = (act.alpha_p, act.alpha_n)
    a_p, a_n = softplus(np.array(raw, np.float64))
    beta, eps = _number(act.beta), _number(act.eps)
    return XieluParameters(float(a_p), beta + float(a_n), beta, eps)


def _number(option: float | None) -> float:
    """An option that is not None, because Activation has set it for this activation."""
    assert option is not None
    return option


def _xielu(v: Array, act: Activation) -> Array:
    a_p, a_n, beta, eps = xielu_parameters(act)
    positive = a_p * v * v + beta * v
    negative = a_n * (np.expm1(minimum(v, eps)) - v) + beta * v
    return np.where(v.real > 0, positive, negative)


def _xielu_derivative(v: Array, act: Activation) -> Array:
    a_p, a_n, beta, eps = xielu_parameters(act)
    negative = np.where(v.real > eps, -a_n, a_n * np.expm1(minimum(v, eps))) + beta
    return np.where(v.real > 0, 2 * a_p * v + beta, negative)


FORMULAS: dict[str, tuple[Formula, Formula]] = {
    "identity": (lambda v, _: v, lambda v, _: np.ones_like(v)),
    "relu": (_relu, _relu_derivative),
    "relu2": (lambda v, act: _relu(v, act) ** 2, lambda v, act: 2 * _relu(v, act)),
    "gelu": (_gelu, _gelu_derivative),
    "gelu_tanh": (_gelu_tanh, _gelu_tanh_derivative),
    "quick_gelu": (
        lambda v, act: _softcapped(slope_of(act), v, act),
        lambda v, act: _softcapped_derivative(slope_of(act), v, act),
    ),
    "silu": (
        lambda v, act: _softcapped(slope_of(act), v, act),
        lambda v, act: _softcapped_derivative(slope_of(act), v, act),
    ),
    "sigmoid": (
        lambda v, _: sigmoid(v),
        lambda v, _: sigmoid_derivative(v),
    ),
    "tanh": (
        lambda v, _: np.asarray(np.tanh(v)),
        lambda v, _: tanh_derivative(v),
    ),
    "mish": (lambda v, _: np.asarray(v * np.tanh(softplus(v))), _mish_derivative),
    "hardswish": (_hardswish, _hardswish_derivative),
    "leaky_relu": (_leaky_relu, _leaky_relu_derivative),
    "xielu": (_xielu, _xielu_derivative),
}


# ---- gate and up -> h --------------------------------------------------------------------------


def activation(
    x: npt.ArrayLike,
    up: npt.ArrayLike | None = None,
    *,
    activation: object,
    dtype: npt.DTypeLike = np.float64,
) -> Array:
    """Compute fc.activation in numpy: act(x), or act(x) * up.

    x           [...]
    up          [...], like x, which is then the gate; None: the plain form
    activation  a name, or an Activation with options
    dtype       of the computation and the result: float64, float32 or complex128

    Returns an array [...].

    The kernels compute 16-bit dtypes in float32, and their results are within one unit in the last
    place of this one, rounded once. But the factors that they multiply (v, act(v), act'(v), the
    capped up and the argument of tanh) are float32 numbers: if one of them overflows, the result is
    inf, even if the product alone would not overflow (relu2 of 2e19, times 0.7); and with bfloat16
    a factor below the normal range counts as 0.

    >>> h = fc.reference.activation(x, activation="gelu")
    """
    act = as_activation(activation)
    value = FORMULAS[act.name][0]
    with np.errstate(all="ignore"):
        v = np.asarray(x, dtype) * act.gate_multiplier
        if up is None:
            return np.asarray(value(v, act), dtype)
        u = np.asarray(up, dtype)
        if act.limit is not None:
            u = np.where(u.real < -act.limit, -act.limit, minimum(u, act.limit))
            if act.clamp == "pre":
                v = minimum(v, act.limit)
        a = value(v, act)
        if act.clamp == "post":
            a = minimum(a, _number(act.limit))
        if act.up_softcap is not None:
            u = act.up_softcap * np.tanh(u / act.up_softcap)
        return np.asarray(a * (u + act.up_offset), dtype)


class Gradients(NamedTuple):
    """The gradients that reference.activation_backward returns.

    x        [...], the gradient of x
    up       [...], the gradient of up; None in the plain form
    alpha_p  the gradient of xielu's parameter; 0 for other activations
    alpha_n  likewise
    """

    x: Array
    up: Array | None
    alpha_p: float
    alpha_n: float


def activation_backward(
    grad: npt.ArrayLike,
    x: npt.ArrayLike,
    up: npt.ArrayLike | None = None,
    *,
    activation: object,
    dtype: npt.DTypeLike = np.float64,
) -> Gradients:
    """Compute fc.activation_backward in numpy.

    grad  [...], the gradient of the result

    The other arguments are those of reference.activation.

    Returns Gradients: x, up, alpha_p and alpha_n. The derivative of a clamp is 1 up to the limit
    and at it, and 0 beyond.

    >>> grads = fc.reference.activation_backward(np.ones_like(x), x, activation="gelu")
    """
    act = as_activation(activation)
    value, derivative = FORMULAS[act.name]
    with np.errstate(all="ignore"):
        dh = np.asarray(grad, dtype)
        v = np.asarray(x, dtype) * act.gate_multiplier
        da, grad_up = dh, None
        inside: Any = True
        if up is not None:
            u = np.asarray(up, dtype)
            du = np.ones_like(u)
            if act.limit is not None:
                du = np.where(np.abs(u.real) > act.limit, 0, du)
                u = np.where(u.real < -act.limit, -act.limit, minimum(u, act.limit))
                if act.clamp == "pre":
                    inside = ~(v.real > act.limit)
                    v = minimum(v, act.limit)
            if act.up_softcap is not None:
                z = u / act.up_softcap
                u, du = act.up_softcap * np.tanh(z), du * tanh_derivative(z)
            a = value(v, act)
            da = dh * (u + act.up_offset)
            if act.clamp == "post":
                da = np.where(a.real > _number(act.limit), 0, da)
                a = minimum(a, _number(act.limit))
            grad_up = np.asarray(dh * a * du, dtype)
        grad_x = np.where(inside, da * derivative(v, act) * act.gate_multiplier, 0)
        alpha_p = alpha_n = 0.0
        if act.name == "xielu":
            alpha_p, alpha_n = _xielu_sums(da, v, act)
    return Gradients(np.asarray(grad_x, dtype), grad_up, alpha_p, alpha_n)


def _xielu_sums(da: Array, v: Array, act: Activation) -> tuple[float, float]:
    positive = np.where(v.real > 0, da * v * v, 0)
    negative = np.where(v.real > 0, 0, da * (np.expm1(minimum(v, _number(act.eps))) - v))
    # The derivative of softplus is the sigmoid.
    slope_p, slope_n = sigmoid(np.array([_number(act.alpha_p), _number(act.alpha_n)]))
    return positive.sum() * slope_p, negative.sum() * slope_n
