"""What the bench runs: a shape's arrays, the calls that are timed, and their errors.

Test: tests/bench/test_bench.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

import ffncore as fc

from ..arrays.dtypes import is_narrow
from .peers import peer_layers
from .shapes import Shape

FRESH_BYTES = 2**20  # from here on a new y is new pages, whose first touch is the system's time


class Case:
    """One shape's arrays; `call(mode)` is what is timed."""

    def __init__(self, shape: Shape, tokens: int, x_dtype: str, weights: fc.FFNWeights) -> None:
        self.shape, self.weights = shape, weights
        self.x, self.grad_y = peer_layers.inputs(asdict(shape), x_dtype, tokens)

    def forward(self, weights: Any) -> Callable[[], object]:
        x, activation = self.x, self.shape.function
        if x.nbytes < FRESH_BYTES:
            return lambda: fc.ffn(x, weights, activation=activation)
        y = np.empty_like(x)
        return lambda: fc.ffn(x, weights, activation=activation, out=y)

    def train(self, grads: Any) -> Callable[[], object]:
        x, grad_y, w, activation = self.x, self.grad_y, self.weights, self.shape.function
        y = np.empty_like(x)

        def step() -> tuple[Any, ...]:
            _, saved = fc.ffn_forward(x, w, activation=activation, out=y)
            fc.ffn_backward(grad_y, saved, out=grads)
            return y, grads.x, grads.weights.up

        return step

    def gradients(self) -> Any:
        """Arrays for every gradient, to be filled again and again."""
        _, saved = fc.ffn_forward(self.x, self.weights, activation=self.shape.function)
        return fc.ffn_backward(self.grad_y, saved)


def make_weights(shape: Shape, name: str) -> fc.FFNWeights:
    """Random weights, of which every peer's process has the same."""
    return fc.FFNWeights(**peer_layers.weights(asdict(shape), name))


def errors(shape: Shape, weights: fc.FFNWeights, x_dtype: str, tokens: int = 4) -> dict[str, float]:
    """rms error of y over its rms, ours and that of the same formula in numpy, in x's dtype.

    For 16 bits that formula is exact but for one rounding of h (bfloat16) and one of y.
    """
    x = Case(shape, tokens, x_dtype, weights).x
    act = shape.function
    exact = fc.reference.ffn(x, weights, activation=act)
    return {
        "error": relative(fc.ffn(x, weights, activation=act), exact),
        "numpy_error": relative(plain(x, weights, act).astype(x.dtype), exact),
    }


def relative(y: Any, exact: Any) -> float:
    error = y.astype(np.float64) - exact
    return float(np.sqrt(np.mean(error**2) / np.mean(exact**2)))


def plain(x: Any, weights: fc.FFNWeights, act: str | fc.Activation) -> Any:
    """The formula in numpy; for 16 bits y is yet to be rounded."""
    if not is_narrow(x.dtype):
        return fc.reference.ffn(x, weights, activation=act, dtype=x.dtype)
    gate, up = fc.reference.preactivations(x, weights)
    pair = (up, None) if gate is None else (gate, up)
    h = fc.reference.activation(*pair, activation=act)
    h = h if x.dtype == np.float16 else h.astype(x.dtype).astype(np.float64)
    bias = 0.0 if weights.b_down is None else weights.b_down.astype(np.float64)
    return h @ weights.down.astype(np.float64).T + bias
