"""fc.memory.trigger_examples: the inputs of a stream that fire given neurons most.

For each neuron i, of all rows of all batches, the n rows with the largest m_i, as the documents on
key-value memories show them (Geva et al., 2021). Rows are counted through the stream, from 0. Only
n rows a neuron are kept. Tests: tests/memory/test_triggers.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..arrays.dtypes import FLOAT64
from ..arrays.scalars import integer
from ..arrays.shapes import Array
from ..passes.hidden import Hidden
from ..values.activation import Activation
from ..values.packed import PackedWeights, check_block
from ..values.weights import FFNWeights
from .layer import wide_dtype
from .selecting import largest


@dataclass(frozen=True, eq=False)
class Triggers:
    """The rows that fire each neuron most, in falling order of m.

    rows          [neurons, n] int64, counted through the stream; -1 where it had fewer than n rows
    coefficients  [neurons, n], m; float32, of a float64 layer float64. 0 where rows is -1
    rest          [neurons] float64, the sum of m over all other rows
    count         the number of rows of the stream
    """

    rows: Array
    coefficients: Array
    rest: Array
    count: int


def trigger_examples(
    batches: Iterable[Array],
    weights: FFNWeights | PackedWeights,
    neurons: Array,
    n: int,
    *,
    activation: str | Activation,
) -> Triggers:
    """For each of some neurons, the n inputs of a stream that fire it most.

    batches     arrays x [..., d_model], as for fc.ffn; leading dimensions are merged to rows
    weights     FFNWeights or PackedWeights of one layer; of experts: weights.expert(e)
    neurons     [count], indices from 0 to d_ff - 1
    n           rows to keep for each neuron, at least 1
    activation  a name, or an Activation with options

    Ties go to the earlier row, and NaN comes first.

    Returns a Triggers: rows, coefficients, rest, count.

    Raises ValueError for shapes and values, and TypeError for types and dtypes.

    >>> ids = np.array([0, 3])
    >>> found = fc.memory.trigger_examples([x, x + 1], weights, ids, 2, activation="silu")
    >>> found.rows.shape, found.count
    ((2, 2), 10)
    """
    checked, kept = check_block(weights), integer("n", n)
    ids = np.asarray(neurons)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise TypeError(
            f"neurons has dtype {ids.dtype} and shape {ids.shape}; expected indices [n]"
        )
    if ids.size and (ids.min() < 0 or ids.max() >= checked.d_ff):
        raise ValueError(
            f"neurons has {ids.min()} to {ids.max()}; expected indices from 0 to {checked.d_ff - 1}"
        )
    if kept < 1:
        raise ValueError(f"n is {kept}; expected at least 1")
    best = np.empty((len(ids), 0), wide_dtype(checked))
    rows, total, count = np.empty((len(ids), 0), np.int64), np.zeros(len(ids), FLOAT64), 0
    for x in batches:
        for block in Hidden(x, checked, activation).blocks():
            m = np.ascontiguousarray(block.h[:, 0, ids].T)  # [neurons, tokens]
            own = np.broadcast_to(count + np.arange(m.shape[1]), m.shape)
            # Earlier rows stand first, so that ties go to them.
            best, rows = np.concatenate([best, m], axis=1), np.concatenate([rows, own], axis=1)
            found = largest(best, min(kept, best.shape[1]))
            best, rows = (np.take_along_axis(a, found, axis=1) for a in (best, rows))
            total += np.add.accumulate(m, axis=1, dtype=FLOAT64)[:, -1]
            count += m.shape[1]
    missing = ((0, 0), (0, kept - best.shape[1]))
    rest = total - best.sum(axis=1, dtype=FLOAT64)
    return Triggers(np.pad(rows, missing, constant_values=-1), np.pad(best, missing), rest, count)
