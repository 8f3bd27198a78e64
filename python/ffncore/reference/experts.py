"""The specification of mixtures: fc.moe and its backward pass in plain numpy, slot by slot.

    y[t] = sum over s of  p[t, s] FFN_e(x[t])         e = experts[t, s]; p = routing weights
    y[t] = sum over s of  FFN_e(p[t, s] x[t])         apply_router_weight_on_input

    dp[t, s] = <dy[t], FFN_e(x[t])>                   or <dx', x[t]>, where dx' is the gradient of
    dx[t]   += the gradient through FFN_e of p dy     p x[t], and then dx[t] += p dx'

A slot with expert -1 contributes nothing, and the gradient of its weight is 0. A token may have an
expert in two slots. The gradients of an expert without tokens are exactly zero. Part of
ffncore.reference. Tests: tests/reference/test_reference_moe.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays.shapes import Array
from ..values.activation import as_activation
from . import dense

Places = tuple[int, int, Array]  # slot, expert, tokens


def moe(
    x: npt.ArrayLike,
    experts: npt.ArrayLike,
    weights: npt.ArrayLike,
    w: dense.Weights,
    *,
    activation: object,
    apply_router_weight_on_input: bool = False,
    dtype: npt.DTypeLike = np.float64,
) -> Array:
    """Compute fc.moe in numpy.

    x        [..., d_model]
    experts  [..., k], from 0 to n_experts - 1, or -1 for no expert
    weights  [..., k], the routing weights
    w        FFNWeights of experts, or a mapping from their names to arrays
    activation, apply_router_weight_on_input  as for fc.moe
    dtype    of the computation and the result: float64, float32 or complex128

    Returns y [..., d_model].

    >>> y = fc.reference.moe(x, routing.experts, routing.weights, experts, activation="silu")
    """
    arrays = dense.arrays(w, dtype)
    rows, chosen, factors = _as_rows(x, experts, weights, arrays, dtype)
    y = np.zeros_like(rows)
    for slot, e, tokens in _places(chosen, len(arrays["up"])):
        factor = factors[tokens, slot, None]
        given = factor * rows[tokens] if apply_router_weight_on_input else rows[tokens]
        out = dense.ffn(given, _expert(arrays, e), activation=activation, dtype=dtype)
        y[tokens] += out if apply_router_weight_on_input else factor * out
    return y.reshape(np.shape(x))


def moe_backward(
    grad_y: npt.ArrayLike,
    x: npt.ArrayLike,
    experts: npt.ArrayLike,
    weights: npt.ArrayLike,
    w: dense.Weights,
    *,
    activation: object,
    apply_router_weight_on_input: bool = False,
    dtype: npt.DTypeLike = np.float64,
) -> dict[str, Any]:
    """Compute fc.moe_backward in numpy.

    grad_y  [..., d_model], the gradient of y

    The other arguments are those of reference.moe.

    Returns a dict from names to gradients: "x" [..., d_model], "routing_weights" [..., k], the
    arrays of w, and with xielu the numbers "alpha_p" and "alpha_n".

    >>> grads = fc.reference.moe_backward(
    ...     grad_y, x, routing.experts, routing.weights, experts, activation="silu"
    ... )
    """
    arrays = dense.arrays(w, dtype)
    rows, chosen, factors = _as_rows(x, experts, weights, arrays, dtype)
    dy = np.asarray(grad_y, dtype).reshape(rows.shape)
    dx, dp = np.zeros_like(rows), np.zeros_like(factors)
    grads = {name: np.zeros_like(a) for name, a in arrays.items() if a is not None}
    sums = {"alpha_p": 0.0, "alpha_n": 0.0}
    for slot, e, tokens in _places(chosen, len(arrays["up"])):
        block, factor = _expert(arrays, e), factors[tokens, slot, None]
        options: dict[str, Any] = {"activation": activation, "dtype": dtype}
        if apply_router_weight_on_input:
            found = dense.ffn_backward(dy[tokens], factor * rows[tokens], block, **options)
            dp[tokens, slot] = (found["x"] * rows[tokens]).sum(axis=1)
            dx[tokens] += factor * found["x"]
        else:
            out = dense.ffn(rows[tokens], block, **options)
            found = dense.ffn_backward(factor * dy[tokens], rows[tokens], block, **options)
            dp[tokens, slot] = (dy[tokens] * out).sum(axis=1)
            dx[tokens] += found["x"]
        for name, grad in grads.items():
            grad[e] += found[name]
        for name in sums:
            sums[name] += found.get(name, 0.0)
    if as_activation(activation).name != "xielu":
        sums = {}
    shapes = np.shape(x), np.shape(weights)
    return {"x": dx.reshape(shapes[0]), "routing_weights": dp.reshape(shapes[1]), **grads, **sums}


def _as_rows(
    x: npt.ArrayLike,
    experts: npt.ArrayLike,
    weights: npt.ArrayLike,
    arrays: dict[str, Any],
    dtype: npt.DTypeLike,
) -> tuple[Array, Array, Array]:
    """x as [T, d], experts and weights as [T, k]."""
    tokens = np.asarray(x, dtype)
    chosen, factors = np.asarray(experts), np.asarray(weights, dtype)
    d, k = arrays["up"].shape[-1], chosen.shape[-1]
    count = tokens.size // d
    return tokens.reshape(count, d), chosen.reshape(count, k), factors.reshape(count, k)


def _places(chosen: Array, n_experts: int) -> Iterator[Places]:
    """Slots, experts and their tokens, in the order in which a token's outputs are added."""
    for slot in range(chosen.shape[1]):
        for e in range(n_experts):
            tokens = np.flatnonzero(chosen[:, slot] == e)
            if tokens.size:
                yield slot, e, tokens


def _expert(arrays: dict[str, Any], e: int) -> dict[str, Any]:
    return {name: None if a is None else a[e] for name, a in arrays.items()}
