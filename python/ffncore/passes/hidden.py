"""The hidden activations h of blocks of tokens, sums over tokens, and side cars.

    h[t] = act(gate x[t]) * (up x[t]), or act(up x[t])     [f], what the layer multiplies by down
    a^T b = sum over t of a[t] b[t]^T                       a [T, M], b [T, N] -> [M, N]
    y + U (V h)                                             U [d, n], V [n, f]: a side car

h has the values that the kernels use: float32 (float64 in a float64 layer), rounded to bfloat16
where the layer rounds it. It is computed for one block of tokens at a time, from the saved gate and
up of a forward pass, so that no array [T, f] exists. The sum over tokens is the gradient of down
for an h of b and a grad_y of a: the same kernel, so its bits depend neither on the instruction set
nor on the number of threads, as those of a BLAS would.

Tests: tests/passes/test_hidden.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from .. import _core
from ..arrays.dtypes import FLOAT32, FLOAT64
from ..arrays.shapes import Array, MaybeArray, check_shape
from ..values.activation import as_core
from ..values.arguments import LayerArguments
from ..values.routing import Routing
from ..values.weights import FFNWeights
from . import passes

# The most tokens of a block: four panels of 64 tokens, which keep all cores of a small CPU busy.
_MOST_TOKENS = 256
# The most bytes of h in a block. gate, up, their panels and h together take five times as much.
_BLOCK_BYTES = 4 * 2**20
# The tokens of a panel, and the multiple to which the last's are rounded (values/saved.py).
_PANEL, _STEP = 64, 16


class Block(NamedTuple):
    """Some of the tokens of a call.

    tokens   their places among the merged tokens: a slice
    h        [tokens, slots, f], float32 or float64; a dense layer has one slot
    ids      [tokens, slots], the experts; all 0 in a dense layer, -1 for no expert
    factors  [tokens, slots], the routing weights; all 1 in a dense layer
    y        [tokens, d], the output; None if it was not asked for
    """

    tokens: slice
    h: Array
    ids: Array
    factors: Array
    y: MaybeArray


class Hidden:
    """A layer and its tokens: blocks() computes h of some of them at a time.

    layer  the checked arguments (values/arguments.py), of a dense layer or a mixture
    wide   the dtype of h: float32, or float64 in a float64 layer
    """

    def __init__(
        self, x: object, weights: Any, activation: object, routing: Routing | None = None
    ) -> None:
        mixture = None if routing is None else (routing, False)
        self.layer = layer = LayerArguments(x, weights, activation, mixture)
        if layer.place is not None:
            raise TypeError(f"x is {layer.place}; expected numpy arrays here")
        # Quantised weights are expanded once, not once for each block.
        w = layer.weights
        self.weights = w.dequantize() if isinstance(w, FFNWeights) else w
        self.wide = FLOAT64 if layer.dtype == FLOAT64 else FLOAT32
        self.lead = layer.seen.shape[:-1]
        self.tokens = int(np.prod(self.lead, dtype=np.int64))
        self.slots = 1 if layer.routing is None else layer.ids.shape[-1]

    def step(self, columns: int) -> int:
        """The tokens of a block in which each token has that many numbers."""
        fits = _BLOCK_BYTES // max(1, self.wide.itemsize * columns)
        return max(1, min(_MOST_TOKENS, fits))

    def blocks(self, *, outputs: bool = False) -> Iterator[Block]:
        rows = self.layer.seen.reshape(self.tokens, self.layer.seen.shape[-1])
        step = self.step(max(1, self.slots) * self.weights.d_ff)
        for start in range(0, self.tokens, step):
            tokens = slice(start, min(start + step, self.tokens))
            yield self._block(tokens, rows[tokens], outputs)

    def _block(self, tokens: slice, rows: Array, outputs: bool) -> Block:
        layer, count = self.layer, len(rows)
        # With a float32 x, gate and up are saved before they are rounded to 16 bits.
        x = rows.astype(self.wide, copy=False)
        mixture: tuple[object, object] | None = None
        ids = np.zeros((count, 1), np.int32)
        factors = np.ones((count, 1), self.wide)
        if layer.routing is not None:
            ids = layer.ids[tokens]
            factors = layer.factors.reshape(self.tokens, -1)[tokens]
            mixture = (Routing(experts=ids, weights=factors), False)
        y, saved = passes.forward_saved(
            LayerArguments(x, self.weights, layer.activation, mixture), "preactivations", None
        )
        gate, up = saved.gate if self.weights.gated else None, saved.up
        h: Array = np.empty(up.shape, up.dtype)
        core = as_core(layer.activation, self.weights.gated, up.dtype)
        first = None if gate is None else _rows(gate)
        _core.activation_forward(first, _rows(up), _rows(h), core)
        if layer.dtype.name == "bfloat16":
            h = h.astype(layer.dtype).astype(FLOAT32)
        if outputs and rows.dtype != x.dtype:  # the bits of the call with the 16-bit x itself
            again = LayerArguments(rows, layer.weights, layer.activation, mixture)
            y = passes.forward(again, None).astype(FLOAT32)
        h = h.reshape(count, -1, self.weights.d_ff)
        return Block(tokens, h, ids, factors, y if outputs else None)


class TokenSums:
    """b [T, N] in panels, so that times(a) computes a^T b for a [T, M]: [M, N].

    b is float32 or float64, and a has its dtype. Each sum over T follows the order of the package's
    arithmetic, with any instruction set and number of threads.
    """

    def __init__(self, b: Array) -> None:
        self.tokens, self.columns = b.shape
        panels = []
        for start in range(0, self.tokens, _PANEL):
            rows = b[start : start + _PANEL]
            panel = np.zeros((self.columns, -(-len(rows) // _STEP) * _STEP), b.dtype)
            panel[:, : len(rows)] = rows.T
            panels.append(panel.reshape(-1))
        self._panels = np.concatenate(panels) if panels else np.empty(0, b.dtype)
        self._identity = as_core("identity", False, b.dtype)

    def times(self, a: Array) -> Array:
        dtype, rows = self._panels.dtype, a.shape[1]
        if not self.tokens or not self.columns or not rows:
            return np.zeros((rows, self.columns), dtype)
        # The kernels read neither x nor the weights here, only their shapes.
        zero = dtype.type(0)
        weights = _core.Weights(
            up=np.broadcast_to(zero, (self.columns, rows)),
            down=np.broadcast_to(zero, (rows, self.columns)),
        )
        x, sums = np.broadcast_to(zero, a.shape), np.empty((rows, self.columns), dtype)
        _core.ffn_backward(
            x, a, weights, self._identity, self._panels, False, None, {"down": sums}, False
        )
        return sums


def product(a: Array, b: Array) -> Array:
    """a b^T for a [M, k] and b [N, k] of one dtype, float32 or float64: [M, N]."""
    return TokenSums(b.T).times(a.T)


class SideCar:
    """A change of a layer's down matrix beside the weights: y += U (V h), a matrix of rank n.

    U  [d_model, n], float32 or float64
    V  [n, d_ff], of the same dtype

    It is made by fc.memory.edit, and passed to fc.ffn(..., side_car=). The weights, which may be
    packed or quantised, are not changed.
    """

    def __init__(self, U: Array, V: Array) -> None:
        self.U, self.V = U, V

    def __repr__(self) -> str:
        (d, n), f = self.U.shape, self.V.shape[1]
        return f"SideCar(rank {n}, d_model={d}, d_ff={f})"


def with_side_car(
    x: object, weights: Any, activation: object, side_car: object, out: object
) -> Array:
    """fc.ffn with a side car: y, rounded, plus U (V h), rounded."""
    if not isinstance(side_car, SideCar):
        raise TypeError(f"side_car is of type {type(side_car).__name__}; expected a SideCar")
    hidden = Hidden(x, weights, activation)
    shapes = hidden.weights.d_model, hidden.weights.d_ff
    n = side_car.V.shape[0]
    check_shape("side_car.U", side_car.U, (shapes[0], n), "to match the weights")
    check_shape("side_car.V", side_car.V, (n, shapes[1]), "to match the weights")
    y = hidden.layer.output(out).array
    over, back = side_car.V.astype(hidden.wide), side_car.U.astype(hidden.wide)
    passes.forward(hidden.layer, y)
    rows = y.reshape(hidden.tokens, shapes[0])  # a view, or a copy for an out of odd strides
    for block in hidden.blocks():
        change = product(product(block.h[:, 0], over), back)
        with np.errstate(over="ignore"):
            rows[block.tokens] = (rows[block.tokens].astype(hidden.wide) + change).astype(y.dtype)
    if not np.shares_memory(rows, y):
        y[...] = rows.reshape(y.shape)
    return y  # type: ignore[no-any-return]


def _rows(array: Array) -> Array:
    return array.reshape(-1, array.shape[-1])
