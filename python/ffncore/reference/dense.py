"""The specification of a dense layer and of activations, in plain numpy.

    gated   h = act(gate) * up      plain   h = act(up)      y = h down^T + b_down

weights is an FFNWeights or a mapping of the same names. gelu needs erf, which numpy has for no
type, so it takes real numbers only. Tests: tests/reference/test_reference.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..arrays.shapes import Array
from ..values.activation import Activation, as_activation
from ..values.weights import NAMES, FFNWeights

Weights = FFNWeights | Mapping[str, Any]

# ---- pieces ----------------------------------------------------------------------------------

_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def erfc(v: Array) -> Array:
    """1 - erf(v), without its cancellation for large v."""
    if np.iscomplexobj(v):
        raise TypeError("erfc of complex numbers is not here; gelu takes real ones")
    return np.asarray(_erfc(v) if v.size else v, dtype=v.dtype)


def sigmoid(v: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-v)))


def softplus(v: Array) -> Array:
    """log(1 + exp(v)); the form whose exponential does not overflow."""
    return np.where(v.real > 0, v + np.log1p(np.exp(-v)), np.log1p(np.exp(v)))


def minimum(v: Array, bound: float) -> Array:
    """NaN goes through."""
    return np.where(v.real > bound, bound, v)


# ---- activations: value and derivative ---------------------------------------------------------
# Each takes v and the options. gelu_tanh has sqrt(2 / pi) and 0.044715 from
# GELU's paper; quick_gelu is a sigmoid with slope 1.702. The forms are those in which nothing
# cancels: v/2 (1 + tanh(z)) = v sigmoid(2 z), 1 - sigmoid(v) = sigmoid(-v), and
# 1 - tanh(v)^2 = 1 / cosh(v)^2. At an infinite v a value is what the formula gives
# (silu(-inf) = -inf * 0 = NaN), and a derivative its limit.

Formula = Callable[[Array, Activation], Array]


def sigmoid_derivative(v: Array) -> Array:
    return np.asarray(sigmoid(v) * sigmoid(-v))


def tanh_derivative(v: Array) -> Array:
    return np.asarray((1 / np.cosh(v)) ** 2)


def finite(v: Array) -> Array:
    """v as the factor of something that vanishes faster where v is infinite."""
    return np.where(np.isinf(v), 0, v)


def _softcapped(slope: float, v: Array, act: Activation) -> Array:
    """v sigmoid(slope v), or c tanh(v / c) sigmoid(slope v): the sigmoid sees the raw v."""
    c = act.gate_softcap
    return (v if c is None else c * np.tanh(v / c)) * sigmoid(slope * v)


def _softcapped_derivative(slope: float, v: Array, act: Activation) -> Array:
    s, ds, c = sigmoid(slope * v), slope * sigmoid_derivative(slope * v), act.gate_softcap
    if c is None:
        return np.asarray(s + finite(v) * ds)
    return np.asarray(tanh_derivative(v / c) * s + c * np.tanh(v / c) * ds)


def slope_of(act: Activation) -> float:
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
    """a_p = softplus(alpha_p), a_n = beta + softplus(alpha_n)"""

    a_p: float
    a_n: float
    beta: float
    eps: float


def xielu_parameters(act: Activation) -> XieluParameters:
    raw: Any = (act.alpha_p, act.alpha_n)
    a_p, a_n = softplus(np.array(raw, np.float64))
    beta, eps = _number(act.beta), _number(act.eps)
    return XieluParameters(float(a_p), beta + float(a_n), beta, eps)


def _number(option: float | None) -> float:
    """An option that Activation has filled in for this activation."""
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


# ---- the block's middle: gate and up -> h ------------------------------------------------------


def activation(
    x: npt.ArrayLike,
    up: npt.ArrayLike | None = None,
    *,
    activation: object,
    dtype: npt.DTypeLike = np.float64,
) -> Array:
    """act(x), or act(x) * up where up is given: then x is the gate.

    The kernels compute 16 bits in float32, and are within one unit in the last place of this,
    rounded once. What they multiply with each other (v, act(v), act'(v), the capped up and what is
    in the tanh) are float32 numbers, though: one that overflows gives inf where the product alone
    would not (relu2 of 2e19 times 0.7), and beside bfloat16 one below the normal range gives 0.
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
    """x and up: gradients; alpha_p, alpha_n: xielu's, 0 elsewhere."""

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
    """Gradients of `activation` from the gradient of its result.

    A clamp passes the gradient up to the limit, the limit included, and none beyond.
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


# ---- the block ---------------------------------------------------------------------------------


def arrays(weights: Weights, dtype: npt.DTypeLike) -> dict[str, Any]:
    """By name; None where there is none."""
    given = weights.arrays() if isinstance(weights, FFNWeights) else weights
    return {n: None if given.get(n) is None else np.asarray(given[n], dtype) for n in NAMES}


@np.errstate(all="ignore")
def preactivations(
    x: npt.ArrayLike, weights: Weights, *, dtype: npt.DTypeLike = np.float64
) -> tuple[Array | None, Array]:
    """(gate, up), [..., f] each; gate is None in a plain block."""
    w, x = arrays(weights, dtype), np.asarray(x, dtype)

    def linear(matrix: Array, bias: Array | None) -> Array:
        product = x @ matrix.T
        return np.asarray(product if bias is None else product + bias)

    gate = None if w["gate"] is None else linear(w["gate"], w["b_gate"])
    return gate, linear(w["up"], w["b_up"])


@np.errstate(all="ignore")
def ffn(
    x: npt.ArrayLike, weights: Weights, *, activation: object, dtype: npt.DTypeLike = np.float64
) -> Array:
    """y [..., d]"""
    w = arrays(weights, dtype)
    y = _hidden(x, weights, activation, dtype) @ w["down"].T
    return np.asarray(y if w["b_down"] is None else y + w["b_down"])


def _hidden(x: npt.ArrayLike, weights: Weights, act: object, dtype: npt.DTypeLike) -> Array:
    gate, up = preactivations(x, weights, dtype=dtype)
    if gate is None:
        return activation(up, activation=act, dtype=dtype)
    return activation(gate, up, activation=act, dtype=dtype)


@np.errstate(all="ignore")
def ffn_backward(
    grad_y: npt.ArrayLike,
    x: npt.ArrayLike,
    weights: Weights,
    *,
    activation: object,
    dtype: npt.DTypeLike = np.float64,
) -> dict[str, Any]:
    """Gradients by name: x, the weights that exist, and alpha_p, alpha_n of xielu."""
    act = as_activation(activation)
    w = arrays(weights, dtype)
    given = np.asarray(x, dtype)
    rows = given.reshape(-1, w["up"].shape[1]) if given.size else given.reshape(0, given.shape[-1])
    dy = np.asarray(grad_y, dtype).reshape(rows.shape)
    gate, up = preactivations(rows, weights, dtype=dtype)
    h = _hidden(rows, weights, act, dtype)

    dh = dy @ w["down"]
    if gate is None:
        middle = activation_backward(dh, up, activation=act, dtype=dtype)
        dp, dq = None, middle.x
        dx = dq @ w["up"]
    else:
        middle = activation_backward(dh, gate, up, activation=act, dtype=dtype)
        dp, dq = middle.x, np.asarray(middle.up)
        dx = dp @ w["gate"] + dq @ w["up"]
    grads: dict[str, Any] = {"x": dx.reshape(given.shape), "up": dq.T @ rows, "down": dy.T @ h}
    if dp is not None:
        grads["gate"] = dp.T @ rows
    for name, rows_of_bias in (("b_gate", dp), ("b_up", dq), ("b_down", dy)):
        if w[name] is not None and rows_of_bias is not None:
            grads[name] = rows_of_bias.sum(axis=0)
    if act.name == "xielu":
        grads.update(alpha_p=middle.alpha_p, alpha_n=middle.alpha_n)
    return grads
