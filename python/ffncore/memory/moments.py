"""fc.memory.SecondMoment: the sum of h h^T over a stream of inputs, of a layer or of experts.

    matrix    sum over tokens of h h^T         [f, f] float64; of experts [E, f, f]
    count     the number of tokens             of experts [E], those that came to each
    mean_abs  mean over tokens of abs(h)       [f] float64; of experts [E, f]

The products of a block of tokens are sums of float32 (float64 for a float64 layer), and blocks are
added in float64. It is not centred, as ROME, MEMIT and GPTQ use it.

Tests: tests/memory/test_moments.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays.dtypes import FLOAT64
from ..arrays.shapes import Array
from ..passes.hidden import Hidden, TokenSums
from ..values.activation import Activation, as_activation
from ..values.packed import PackedWeights, check_weights
from ..values.routing import Routing
from ..values.weights import FFNWeights


class SecondMoment:
    """The sum of h h^T over all inputs that update was given; h [d_ff] is what down multiplies.

    weights     FFNWeights or PackedWeights, of one layer or of experts
    activation  a name, or an Activation with options

    With experts, each has a moment of its own, over the tokens that were routed to it, and without
    the routing weights. The bits do not depend on the instruction set or the number of threads, but
    on how a stream is cut into updates.

    Raises ValueError and TypeError as fc.ffn does.

    >>> C = fc.memory.SecondMoment(weights, activation="silu")
    >>> C.update(x).update(x).count
    10
    """

    def __init__(
        self, weights: FFNWeights | PackedWeights, *, activation: str | Activation
    ) -> None:
        w = check_weights(weights)
        self._weights, self._activation = w, as_activation(activation)
        lead = () if w.n_experts is None else (w.n_experts,)
        self._matrix = np.zeros((*lead, w.d_ff, w.d_ff), FLOAT64)
        self._sizes = np.zeros((*lead, w.d_ff), FLOAT64)
        self._count = np.zeros(lead, np.int64)

    def update(self, x: Array, *, routing: Routing | None = None) -> SecondMoment:
        """Add the tokens of x [..., d_model], with a routing for experts. Returns self.

        Raises ValueError and TypeError as fc.ffn or fc.moe does; then nothing is added.
        """
        hidden = Hidden(x, self._weights, self._activation, routing)
        experts = self._weights.n_experts
        for block in hidden.blocks():
            if experts is None:
                self._add((), block.h[:, 0])
                continue
            for e in np.unique(block.ids[block.ids >= 0]):
                self._add((int(e),), block.h[block.ids == e])
        return self

    def _add(self, place: tuple[int, ...], h: Array) -> None:
        self._matrix[place] += TokenSums(h).times(h)
        # A cumulative sum has one order of additions, which a sum over an axis does not promise.
        self._sizes[place] += np.add.accumulate(np.abs(h), axis=0, dtype=FLOAT64)[-1]
        self._count[place] += len(h)

    def merge(self, other: SecondMoment) -> SecondMoment:
        """Add the moments of other, which has the same sizes. Returns self.

        Raises ValueError if other has other sizes, and TypeError if it is no SecondMoment.
        """
        if not isinstance(other, SecondMoment):
            raise TypeError(f"other is of type {type(other).__name__}; expected a SecondMoment")
        if other._matrix.shape != self._matrix.shape:
            raise ValueError(
                f"other.matrix has shape {other._matrix.shape}; expected {self._matrix.shape}"
            )
        self._matrix += other._matrix
        self._sizes += other._sizes
        self._count += other._count
        return self

    @property
    def matrix(self) -> Array:
        """The sum of h h^T: float64 [d_ff, d_ff], of experts [n_experts, d_ff, d_ff]; a copy."""
        return np.array(self._matrix)

    @property
    def count(self) -> Any:
        """The number of tokens; of experts an array [n_experts], those that came to each."""
        return int(self._count) if self._count.ndim == 0 else self._count.copy()

    @property
    def mean_abs(self) -> Array:
        """The mean of abs(h), 0 before the first token: float64 [d_ff] or [n_experts, d_ff]."""
        return np.asarray(self._sizes / np.maximum(1, self._count)[..., None])

    @property
    def dead(self) -> Array:
        """Neurons whose h was 0 for every token: their indices, flat (e * d_ff + i) of experts."""
        diagonal = np.diagonal(self._matrix, axis1=-2, axis2=-1).reshape(-1)
        return np.asarray(np.flatnonzero(diagonal == 0))

    @property
    def effective_rank(self) -> Any:
        """exp of the entropy of the eigenvalues' shares: from 1 to d_ff; of experts an array.

        It is 0 before the first token. (Roy and Vetterli, 2007.)
        """
        ranks = [_effective_rank(m) for m in self._matrix.reshape(-1, *self._matrix.shape[-2:])]
        return ranks[0] if self._count.ndim == 0 else np.array(ranks)

    def expert(self, e: int) -> SecondMoment:
        """The moment of expert e alone, a copy, as that of a single layer.

        Raises ValueError if there is no such expert.
        """
        one = object.__new__(SecondMoment)
        one._weights, one._activation = self._weights.expert(e), self._activation
        one._matrix, one._sizes = self._matrix[e].copy(), self._sizes[e].copy()
        one._count = self._count[e : e + 1].reshape(()).copy()
        return one

    def __repr__(self) -> str:
        return f"SecondMoment({self._matrix.shape}, count={self.count})"


def _effective_rank(matrix: Array) -> float:
    if not np.isfinite(matrix).all():
        raise ValueError("the moment has infinite or NaN numbers; expected finite ones")
    values = np.maximum(np.linalg.eigvalsh(matrix), 0)
    total = values.sum()
    if not total:
        return 0.0
    shares = values[values > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def check_moment(moment: object, d_ff: int) -> Array:
    """The mean of h h^T of one layer of d_ff neurons: float64 [d_ff, d_ff]."""
    if not isinstance(moment, SecondMoment):
        raise TypeError(f"moment is of type {type(moment).__name__}; expected a SecondMoment")
    if moment._matrix.shape != (d_ff, d_ff):
        raise ValueError(
            f"moment.matrix has shape {moment._matrix.shape}; expected {(d_ff, d_ff)} to match the "
            f"weights (moment.expert(e) is that of one expert)"
        )
    if not moment.count:
        raise ValueError("moment has no tokens; expected at least one update")
    if not np.isfinite(moment._matrix).all():
        raise ValueError("moment has infinite or NaN numbers; expected finite ones")
    return np.asarray(moment._matrix / moment.count)
