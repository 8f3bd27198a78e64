"""fc.memory.edit: new values for some keys, by a change of down of low rank.

    K [n, f] keys    V* [n, d] values    W [d, f] down    C [f, f] the mean of h h^T, with a ridge
    R = V* - K W^T                       what is missing    [n, d]
    G = C^-1 K^T,  M = K G               [f, n], [n, n]
    W' = W + R^T M^-1 G^T                W' k = v for every key: ROME, for many keys at once
    W' = W + R^T (M + lam I)^-1 G^T      MEMIT's least squares, R K^T (lam C + K K^T)^-1, rewritten
    W' = W + R^T (M + lam I)^-1 G^T      AlphaEdit, with G = P K^T and P the null space of C

The change is U V with U = R^T M^-1 and V = G^T. Of all changes that meet the keys it is the one
that moves the output least over the inputs of C. Any other key k moves by U (V k), and

    p(i, j) = (C^-1 k_i . k_j) / (C^-1 k_i . k_i)

is the superposition of keys i and j (Hu et al., 2024): for one edited key the output of k_j moves
by p(i, j) r_i. ROME: Meng et al., 2022, here with one key in all places. MEMIT: Meng et al., 2023.
AlphaEdit: Fang et al., 2025. Tests: tests/memory/test_editing.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays.dtypes import check_range, rounded
from ..arrays.shapes import Array
from ..passes.hidden import Hidden, SideCar
from ..values.activation import Activation
from ..values.packed import PackedWeights
from ..values.weights import FFNWeights
from .layer import check_finite_rows, check_number, single, wide_dtype
from .moments import SecondMoment, check_moment
from .solving import dependent_rows, factor, solve


@dataclass(frozen=True, eq=False)
class Ripple:
    """What an edit changes for other keys. m other keys, n edited ones.

    change         [m] float64, the Euclidean length of the change of each key's output
    superposition  [n, m] float64, p(i, j) of edited key i and other key j
    mean, p99, max of change, as floats; 0 without keys
    """

    change: Array
    superposition: Array
    mean: float
    p99: float
    max: float


class Edit:
    """The result of fc.memory.edit.

    >>> h = np.abs(np.random.default_rng(0).standard_normal((1, 8))).astype("f4")
    >>> change = fc.memory.edit(weights, h, np.ones((1, 4), "f4"))
    >>> new, old = change.weights, change.undo()
    """

    def __init__(self, given: Any, raw: FFNWeights, activation: Any, parts: Any) -> None:
        self._given, self._raw, self._activation = given, raw, activation
        self._u, self._v, self._keys = parts
        self._new: FFNWeights | None = None
        dtype = wide_dtype(raw)
        self._side_car = SideCar(self._u.astype(dtype), self._v.astype(dtype))

    @property
    def weights(self) -> FFNWeights:
        """FFNWeights with the new down, and the other arrays of the given weights.

        Packed weights come unpacked, and quantised ones expanded to float32.

        Raises ValueError if a number does not fit into the dtype of the weights.
        """
        if self._new is None:
            raw = self._raw
            down = raw.down.astype(np.float64) + self._u @ self._v
            check_range("the new down", down, raw.dtype)
            self._new = FFNWeights(**{**raw.arrays(), "down": rounded(down, raw.dtype)})
        return self._new

    @property
    def side_car(self) -> SideCar:
        """The change alone, U [d_model, n] and V [n, d_ff], for fc.ffn(..., side_car=)."""
        return self._side_car

    def undo(self) -> FFNWeights | PackedWeights:
        """The very weights that were given to fc.memory.edit."""
        return self._given  # type: ignore[no-any-return]

    def ripple(self, other_keys: Array) -> Ripple:
        """What the edit changes for other keys: coefficients [m, d_ff], or x [m, d_model] if edit
        was given an activation.

        Raises ValueError for shapes and for numbers that are not finite.
        """
        keys = _keys("other_keys", other_keys, self._given, self._activation)
        seen = self._v @ keys.T
        change = np.linalg.norm(self._u @ seen, axis=0)
        own = np.einsum("nf,nf->n", self._v, self._keys)
        with np.errstate(all="ignore"):
            superposition = seen / own[:, None]
        if not change.size:
            return Ripple(change, superposition, 0.0, 0.0, 0.0)
        numbers = (change.mean(), np.quantile(change, 0.99), change.max())
        return Ripple(change, superposition, *map(float, numbers))

    def __repr__(self) -> str:
        return f"Edit({len(self._v)} keys, d_model={len(self._u)}, d_ff={self._v.shape[1]})"


def edit(
    weights: FFNWeights | PackedWeights,
    keys: Array,
    values: Array,
    *,
    moment: SecondMoment | None = None,
    ridge: float = 0.01,
    lam: float = 0.0,
    null_space: float | None = None,
    activation: str | Activation | None = None,
) -> Edit:
    """Change down so that it maps keys to values, and other keys to what they were, nearly.

    weights     FFNWeights or PackedWeights of one layer; of experts: weights.expert(e)
    keys        [n, d_ff], coefficients h; with activation= inputs x [n, d_model]
    values      [n, d_model], what down h shall be, without b_down
    moment      a SecondMoment of this layer, which tells what to leave alone; None: the identity,
                which leaves alone what is orthogonal to the keys
    ridge       added to the diagonal of the moment, as a share of the mean diagonal entry of
                neurons that are not dead
    lam         0: every key is met exactly (ROME). Above: MEMIT's least squares, in which lam
                weighs the moment's mean over tokens
    null_space  a share of the moment's largest eigenvalue: directions above it count as seen, and
                are not changed at all (AlphaEdit); lam is then the weight of the identity, 1 if it
                is 0, and no key is met exactly. None: off
    activation  a name, or an Activation with options, to compute keys from x

    All is computed in float64 by Cholesky factors. A key is met exactly before the new down is
    rounded to the dtype of the weights, once.

    Returns an Edit: weights, side_car, ripple(other_keys), undo().

    Raises ValueError for shapes and values, for keys that depend on each other (with lam=0, the
    error names them), for a singular moment (which names dead neurons) and for null_space without
    moment; TypeError for types and dtypes.

    >>> C = fc.memory.SecondMoment(weights, activation="silu").update(x)
    >>> change = fc.memory.edit(weights, x[:1], up[:1], moment=C, activation="silu")
    >>> change.ripple(x[1:]).max
    """
    raw = single(weights)
    d, f = raw.d_model, raw.d_ff
    k = _keys("keys", keys, weights, activation)
    wanted = check_finite_rows("values", values, d)
    if len(wanted) != len(k) or not len(k):
        raise ValueError(
            f"values has {len(wanted)} rows and keys {len(k)}; expected one or more each"
        )
    ridge = check_number("ridge", ridge, 0.0)
    lam = check_number("lam", lam, 0.0)
    if null_space is not None:
        check_number("null_space", null_space, 0.0)
        if moment is None:
            raise ValueError("null_space is given and moment is None; expected a moment, too")
        lam = lam or 1.0
    mean = None if moment is None else check_moment(moment, f)
    g = _directions(mean, k, ridge, null_space)
    gram = k @ g
    gram = (gram + gram.T) / 2
    if lam == 0:
        _check_independent(gram)
    missing = wanted - k @ raw.down.astype(np.float64).T
    lower = factor(
        gram + lam * np.eye(len(gram)), "keys depend on each other; expected independent ones"
    )
    u = solve(lower, missing).T
    return Edit(weights, raw, activation, (u, np.ascontiguousarray(g.T), k))


def _keys(name: str, keys: object, weights: Any, activation: Any) -> Array:
    """Coefficients float64 [n, f], from coefficients or from inputs."""
    if activation is None:
        return check_finite_rows(name, keys, weights.d_ff)
    check_finite_rows(name, keys, weights.d_model)
    x: Any = keys
    hidden = Hidden(x.reshape(-1, weights.d_model), weights, activation)
    rows = [block.h[:, 0].astype(np.float64) for block in hidden.blocks()]
    return check_finite_rows(
        name, np.concatenate([*rows, np.empty((0, weights.d_ff))]), weights.d_ff
    )


def _directions(mean: Array | None, k: Array, ridge: float, null_space: float | None) -> Array:
    """G [f, n]: C^-1 K^T, or P K^T."""
    if mean is None:
        return np.asarray(k.T)
    if null_space is not None:
        sizes, vectors = np.linalg.eigh(mean)
        small = vectors[:, sizes <= null_space * sizes[-1]]
        return np.asarray(small @ (small.T @ k.T))
    lower = factor(regular(mean, ridge), _singular(mean))
    return solve(lower, k.T)


def regular(mean: Array, ridge: float) -> Array:
    """The matrix with a ridge: that share of the mean diagonal entry that is not 0."""
    diagonal = np.diagonal(mean)
    living = diagonal[diagonal > 0]
    return np.asarray(mean + ridge * (living.mean() if living.size else 1.0) * np.eye(len(mean)))


def _singular(mean: Array) -> str:
    dead = np.flatnonzero(np.diagonal(mean) == 0)
    names = ", ".join(map(str, dead[:8])) + (", ..." if dead.size > 8 else "")
    which = f" ({dead.size} neurons never fired: {names})" if dead.size else ""
    return f"the moment with its ridge is singular{which}; expected a larger ridge or more tokens"


def _check_independent(gram: Array) -> None:
    found = dependent_rows(gram)
    if found:
        names = ", ".join(map(str, found[:8])) + (", ..." if len(found) > 8 else "")
        raise ValueError(
            f"keys {names} depend on earlier keys; expected independent keys, or a lam above 0"
        )
