"""fc.memory.neuron_scores and fc.memory.prune: which neurons a layer can do without.

    magnitude   |k_i| |v_i|, with a gate |g_i| |u_i| |v_i|
    activation  mean of abs(h_i)
    energy      sqrt(mean of h_i^2) |v_i|, structured Wanda (Sun et al., 2024)

    W' = W_S + W_R C_RS (C_SS + ridge)^-1     S the kept neurons, R the removed ones, W = down

W' is the least squares fit of the outputs over the inputs of C, drawn towards the old weights, so
that nothing changes where removed neurons never fire. Its error follows from C alone:

    error^2 = tr(D C D^T) / tr(W C W^T)       D [d, f], the change of down with 0 for R in W'

Tests: tests/memory/test_pruning.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..arrays.dtypes import FLOAT64, check_range, rounded
from ..arrays.shapes import Array, MaybeArray
from ..values.packed import PackedWeights
from ..values.weights import FFNWeights
from .editing import regular
from .layer import check_number, one_of, single
from .moments import SecondMoment, check_moment
from .solving import factor, solve


@dataclass(frozen=True, eq=False)
class Pruned:
    """The result of fc.memory.prune.

    weights  FFNWeights of the kept neurons
    kept     their indices in the given weights, rising, [n_kept]
    error    the relative change of the output (without b_down) over the inputs of the moment, as
             the root of a ratio of sums of squares; None without a moment
    """

    weights: FFNWeights
    kept: Array
    error: float | None


def neuron_scores(
    moment: SecondMoment | None, weights: FFNWeights | PackedWeights, *, score: str = "energy"
) -> Array:
    """One number for each neuron: the larger, the more it matters.

    moment   a SecondMoment of this layer; None with score="magnitude"
    weights  FFNWeights or PackedWeights of one layer; of experts: weights.expert(e)
    score    "energy": sqrt(mean of h_i^2) |v_i|. "activation": the mean of abs(h_i). "magnitude":
             the product of the lengths of the neuron's key (with a gate, two) and value

    Returns float64 [d_ff].

    Raises ValueError for an unknown score and for sizes, and TypeError for types.

    >>> fc.memory.neuron_scores(None, weights, score="magnitude").shape
    (8,)
    """
    one_of("score", score, ("energy", "activation", "magnitude"))
    raw = single(weights)
    value = np.linalg.norm(raw.down.astype(FLOAT64), axis=0)
    if score == "magnitude":
        for rows in (raw.up, raw.gate):
            value = value if rows is None else value * np.linalg.norm(rows.astype(FLOAT64), axis=1)
        return np.asarray(value)
    mean = check_moment(moment, raw.d_ff)
    if score == "activation":
        assert moment is not None
        return moment.mean_abs
    return np.asarray(np.sqrt(np.diagonal(mean)) * value)


def prune(
    weights: FFNWeights | PackedWeights,
    keep: int | Array,
    *,
    moment: SecondMoment | None = None,
    compensate: bool = True,
    ridge: float = 0.01,
) -> Pruned:
    """Make a layer of fewer neurons, whose values make up for those that are gone.

    weights     FFNWeights or PackedWeights of one layer; of experts: weights.expert(e)
    keep        how many neurons: those of the highest neuron_scores, ties to the lower index; or
                their indices; or a mask [d_ff] of bools
    moment      a SecondMoment of this layer; None: scores by "magnitude", and no compensation
    compensate  whether the values of kept neurons change to make up for the removed ones
    ridge       as for fc.memory.edit: it draws the values towards the old ones

    Returns a Pruned: weights, kept, error.

    Raises ValueError for shapes and values, and TypeError for types and dtypes.

    >>> C = fc.memory.SecondMoment(weights, activation="silu").update(x)
    >>> small = fc.memory.prune(weights, 6, moment=C)
    >>> small.weights.d_ff
    6
    """
    raw = single(weights)
    ridge = check_number("ridge", ridge, 0.0)
    mean = None if moment is None else check_moment(moment, raw.d_ff)
    kept = _kept(keep, raw, moment)
    removed = np.setdiff1d(np.arange(raw.d_ff), kept)
    down = raw.down.astype(FLOAT64)
    new = down[:, kept]
    if mean is not None and compensate and removed.size:
        inner = regular(mean, ridge)[np.ix_(kept, kept)]
        lower = factor(inner, "the moment of the kept neurons is singular; expected a larger ridge")
        new = new + (solve(lower, mean[np.ix_(kept, removed)]) @ down[:, removed].T).T
    check_range("the new down", new, raw.dtype)
    small = rounded(new, raw.dtype)
    arrays = {"down": np.ascontiguousarray(small)}
    for name, array in raw.arrays().items():
        if name in ("gate", "up", "b_gate", "b_up"):
            arrays[name] = array[kept]
        elif name == "b_down":
            arrays[name] = array
    return Pruned(FFNWeights(**arrays), kept, _error(mean, down, small.astype(FLOAT64), kept))


def _error(mean: MaybeArray, down: Array, small: Array, kept: Array) -> float | None:
    if mean is None:
        return None
    change = -down
    change[:, kept] += small
    total = float(np.einsum("ij,ij->", down @ mean, down))
    missing = max(0.0, float(np.einsum("ij,ij->", change @ mean, change)))
    return float(np.sqrt(missing / total)) if total > 0 else 0.0


def _kept(keep: object, raw: FFNWeights, moment: SecondMoment | None) -> Array:
    f = raw.d_ff
    if isinstance(keep, (int, np.integer)) and not isinstance(keep, bool):
        if not 1 <= keep <= f:
            raise ValueError(f"keep is {keep}; expected 1 to {f} neurons")
        scores = neuron_scores(moment, raw, score="magnitude" if moment is None else "energy")
        return np.sort(np.argsort(-scores, kind="stable")[: int(keep)])
    found = np.asarray(keep)
    if found.dtype == bool and found.shape == (f,):
        found = np.flatnonzero(found)
    elif found.ndim != 1 or found.dtype.kind not in "iu":
        raise TypeError(
            f"keep is {type(keep).__name__} of shape {found.shape}; expected a number, indices, or "
            f"a mask of shape ({f},)"
        )
    if not found.size or found.min() < 0 or found.max() >= f:
        raise ValueError(f"keep has {found.size} indices; expected at least one, from 0 to {f - 1}")
    return np.unique(found)
