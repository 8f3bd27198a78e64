"""A case of the bench: its arrays, the calls that are timed, and the error of the result.

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

# From this size on a new y would have new pages of memory, and the system's time for them would be
# measured, too.
FRESH_BYTES = 2**20


class Case:
    """The arrays of a shape and a number of tokens; what forward and train return is timed."""

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
        """Arrays for all gradients, which every call fills anew."""
        _, saved = fc.ffn_forward(self.x, self.weights, activation=self.shape.function)
        return fc.ffn_backward(self.grad_y, saved)


def make_weights(shape: Shape, name: str) -> fc.FFNWeights:
    """Random weights, of which every peer's process has the same."""
    return fc.FFNWeights(**peer_layers.weights(asdict(shape), name))


def errors(shape: Shape, weights: fc.FFNWeights, x_dtype: str, tokens: int = 4) -> dict[str, float]:
    """The rms error of y relative to its rms, for ffncore and for numpy in x's dtype.

    In 16 bits numpy computes in float64, and rounds h (in bfloat16) and y once.
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
    """The layer in numpy; in 16 bits the caller rounds y."""
    if not is_narrow(x.dtype):
        return fc.reference.ffn(x, weights, activation=act, dtype=x.dtype)
    gate, up = fc.reference.preactivations(x, weights)
    pair = (up, None) if gate is None else (gate, up)
    h = fc.reference.activation(*pair, activation=act)
    h = h if x.dtype == np.float16 else h.astype(x.dtype).astype(np.float64)
    bias = 0.0 if weights.b_down is None else weights.b_down.astype(np.float64)
    return h @ weights.down.astype(np.float64).T + bias
