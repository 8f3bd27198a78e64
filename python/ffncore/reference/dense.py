"""The specification of a dense layer and its backward pass, in plain numpy.

    h = act(gate) * up, or act(up) without a gate      y = h down^T + b_down

weights is an FFNWeights, or a mapping from its names to arrays. activations.py has the step from
gate and up to h. Part of ffncore.reference. Tests: tests/reference/test_reference.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays.shapes import Array
from ..values.activation import as_activation
from ..values.weights import NAMES, FFNWeights
from .activations import Gradients as Gradients  # pickles name it by this module
from .activations import XieluParameters as XieluParameters
from .activations import activation as _activation
from .activations import activation_backward

Weights = FFNWeights | Mapping[str, Any]


def arrays(weights: Weights, dtype: npt.DTypeLike) -> dict[str, Any]:
    """Return a dict from the names of weights to arrays of `dtype`, or None for missing ones."""
    given = weights.dequantize().arrays() if isinstance(weights, FFNWeights) else weights
    return {n: None if given.get(n) is None else np.asarray(given[n], dtype) for n in NAMES}


@np.errstate(all="ignore")
def preactivations(
    x: npt.ArrayLike, weights: Weights, *, dtype: npt.DTypeLike = np.float64
) -> tuple[Array | None, Array]:
    """Return (gate, up) before the activation, [..., d_ff] each; gate is None without a gate."""
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
    """Compute fc.ffn in numpy.

    x           [..., d_model]
    weights     FFNWeights, or a mapping from their names to arrays
    activation  a name, or an Activation with options
    dtype       of the computation and the result: float64, float32 or complex128

    Returns y [..., d_model].

    >>> y = fc.reference.ffn(x, weights, activation="silu")
    """
    w = arrays(weights, dtype)
    y = _hidden(x, weights, activation, dtype) @ w["down"].T
    return np.asarray(y if w["b_down"] is None else y + w["b_down"])


def _hidden(x: npt.ArrayLike, weights: Weights, act: object, dtype: npt.DTypeLike) -> Array:
    gate, up = preactivations(x, weights, dtype=dtype)
    if gate is None:
        return _activation(up, activation=act, dtype=dtype)
    return _activation(gate, up, activation=act, dtype=dtype)


@np.errstate(all="ignore")
def ffn_backward(
    grad_y: npt.ArrayLike,
    x: npt.ArrayLike,
    weights: Weights,
    *,
    activation: object,
    dtype: npt.DTypeLike = np.float64,
) -> dict[str, Any]:
    """Compute fc.ffn_backward in numpy.

    grad_y  [..., d_model], the gradient of y

    The other arguments are those of reference.ffn.

    Returns a dict from names to gradients: "x" [..., d_model], the weights that exist, and with
    xielu the numbers "alpha_p" and "alpha_n".

    >>> grads = fc.reference.ffn_backward(grad_y, x, weights, activation="silu")
    """
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
