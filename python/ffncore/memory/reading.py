"""fc.memory.top_neurons, readout and attribute: which neurons make up the output.

    y = sum over i of m_i v_i + b_down       m [f] = h, with a routing times the expert's weight
    scores of neuron i:   |m_i|    |m_i| |v_i|    m_i (v_i . u)    |m_i (v_i . u)|
    y . u = sum over i of m_i (v_i . u) + b_down . u

Neurons of experts have flat indices e d_ff + i, and those of all experts of a token are compared
together. Tokens go in blocks of bounded size (passes/hidden.py), so that no array [T, d_ff]
exists. Scores are computed in float32, in a float64 layer in float64.

Geva et al., 2021 and 2022. Tests: tests/memory/test_reading.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays.dtypes import FLOAT64, check_dtype
from ..arrays.scalars import integer
from ..arrays.shapes import Array, MaybeArray, as_array, check_shape
from ..passes.hidden import Block, Hidden, product
from ..values.activation import Activation
from ..values.packed import PackedWeights
from ..values.routing import Routing
from ..values.weights import FFNWeights
from .layer import one_of, raw_weights, values_of, wide_dtype
from .selecting import largest

SCORES = ("coefficient", "contribution", "logit", "abs_logit")
# The most bytes of values that readout gathers at a time.
_GATHERED = 4 * 2**20


@dataclass(frozen=True, eq=False)
class TopNeurons:
    """The neurons of each token with the largest scores, in falling order.

    indices       [..., n] int32; of experts flat, e * d_ff + i. -1 where a token has fewer neurons
    coefficients  [..., n], m: float32, of a float64 layer float64
    scores        [..., n], likewise
    output        [..., d_model], y with the bits of fc.ffn or fc.moe; None if not asked for
    explained     [...], 1 - |y - readout|^2 / |y|^2 without b_down, which may be negative; None
                  without the output
    """

    indices: Array
    coefficients: Array
    scores: Array
    output: MaybeArray
    explained: MaybeArray


@dataclass(frozen=True, eq=False)
class Attribution:
    """y . u as a sum: parts + rest + bias.

    indices  [..., n] int32, the neurons with the largest abs(part)
    parts    [..., n], m_i (v_i . u) of each of them, signed
    rest     [...], the sum of the parts of all other neurons
    bias     [...], b_down . u; of experts the sum over slots, times the routing weight
    total    [...], y . u
    """

    indices: Array
    parts: Array
    rest: Array
    bias: Array
    total: Array


def top_neurons(
    x: Array,
    weights: FFNWeights | PackedWeights,
    n: int,
    *,
    activation: str | Activation,
    score: str = "coefficient",
    direction: MaybeArray = None,
    routing: Routing | None = None,
    return_output: bool = False,
) -> TopNeurons:
    """The n neurons of each token that count most.

    x              [..., d_model], as for fc.ffn
    weights        FFNWeights or PackedWeights, of one layer or with a routing of experts
    n              from 1 to d_ff, of experts to k * d_ff
    activation     a name, or an Activation with options
    score          "coefficient": |m|; "contribution": |m| |v|; "logit": m (v . u), signed;
                   "abs_logit": its size
    direction      u, [d_model] or [..., d_model], for "logit" and "abs_logit"; None otherwise
    routing        a Routing of these tokens, for experts
    return_output  whether to return y and the explained share, too

    Ties go to the lower index, and NaN comes first.

    Returns a TopNeurons: indices, coefficients, scores, output, explained.

    Raises ValueError for shapes and values, and TypeError for types and dtypes.

    >>> top = fc.memory.top_neurons(x, weights, 3, activation="silu")
    >>> top.indices.shape
    (5, 3)
    """
    one_of("score", score, SCORES)
    hidden = Hidden(x, weights, activation, routing)
    count = _check_n(n, hidden)
    raw, shape = raw_weights(weights), (*hidden.lead, count)
    factors = _value_factors(hidden, raw, score, direction)
    indices = np.empty((hidden.tokens, count), np.int32)
    coefficients = np.empty((hidden.tokens, count), hidden.wide)
    scores = np.empty_like(coefficients)
    d = hidden.weights.d_model
    output: Any = np.empty((hidden.tokens, d), hidden.layer.seen.dtype) if return_output else None
    explained: Any = np.empty(hidden.tokens, hidden.wide) if return_output else None
    with np.errstate(all="ignore"):
        for block in hidden.blocks(outputs=return_output):
            m, flat = _coefficients(block)
            points = m * factors(block)
            sizes = points if score == "logit" else np.abs(points)
            found = _chosen(sizes, flat, count)
            at = block.tokens
            indices[at] = np.take_along_axis(flat, found, axis=1)
            coefficients[at] = np.take_along_axis(m, found, axis=1)
            scores[at] = np.take_along_axis(sizes, found, axis=1)
            if block.y is not None:
                output[at] = block.y.astype(output.dtype)
                explained[at] = _explained(
                    block.y - _bias(block, raw), _sum_values(indices[at], coefficients[at], raw)
                )
    if return_output:
        output = output.reshape(*hidden.lead, d)
        explained = explained.reshape(hidden.lead)
    own = indices.reshape(shape), coefficients.reshape(shape), scores.reshape(shape)
    return TopNeurons(*own, output, explained)


def readout(indices: Array, coefficients: Array, weights: FFNWeights | PackedWeights) -> Array:
    """The sum of the values of some neurons, each times its coefficient.

    indices       [..., n] of any integer dtype, of experts flat: e * d_ff + i; -1 adds nothing
    coefficients  [..., n], float32, for a float64 layer float64
    weights       FFNWeights or PackedWeights, of one layer or of experts

    Returns [..., d_model], with the dtype of the coefficients; values are added in their order.

    Raises ValueError for shapes and indices, and TypeError for types and dtypes.

    >>> top = fc.memory.top_neurons(x, weights, 8, activation="silu")
    >>> y = fc.memory.readout(top.indices, top.coefficients, weights)
    """
    raw = raw_weights(weights)
    ids, m = as_array("indices", indices), as_array("coefficients", coefficients)
    if ids.dtype.kind not in "iu":
        raise TypeError(f"indices has dtype {ids.dtype}; expected an integer dtype")
    check_shape("coefficients", m, ids.shape, "to match indices")
    if not ids.ndim:
        raise ValueError("indices has shape (); expected [..., n]")
    if check_dtype("coefficients", m) != wide_dtype(raw):
        raise TypeError(f"coefficients has dtype {m.dtype}; expected {wide_dtype(raw)}")
    most = raw.d_ff * (raw.n_experts or 1)
    if ids.size and (ids.min() < -1 or ids.max() >= most):
        raise ValueError(f"indices has {ids.min()} to {ids.max()}; expected -1 to {most - 1}")
    n = ids.shape[-1]
    rows = int(np.prod(ids.shape[:-1], dtype=np.int64))
    flat, m = ids.reshape(rows, n), m.reshape(rows, n)
    y: Array = np.zeros((rows, raw.d_model), m.dtype)
    step = max(1, _GATHERED // (m.dtype.itemsize * raw.d_model))
    with np.errstate(all="ignore"):
        for start in range(0, rows, step):
            at = slice(start, start + step)
            y[at] = _sum_values(flat[at], m[at], raw)
    return y.reshape(*ids.shape[:-1], raw.d_model)


def attribute(
    x: Array,
    weights: FFNWeights | PackedWeights,
    direction: Array,
    *,
    activation: str | Activation,
    n: int = 16,
    routing: Routing | None = None,
) -> Attribution:
    """Split y . u into the parts of n neurons, of all others and of the bias.

    x           [..., d_model], as for fc.ffn
    weights     FFNWeights or PackedWeights, of one layer or with a routing of experts
    direction   u, [d_model] or [..., d_model], such as the embedding of a word
    activation  a name, or an Activation with options
    n           neurons to name; at most all of them are
    routing     a Routing of these tokens, for experts

    Returns an Attribution: indices, parts, rest, bias, total. The parts, rest and bias sum to total
    up to 1e-6 of |y| |u| (1e-12 in float64; in 16 bits up to the rounding of y).

    Raises ValueError for shapes and values, and TypeError for types and dtypes.

    >>> part = fc.memory.attribute(x, weights, down[:, 0], activation="silu", n=3)
    >>> bool(np.allclose(part.parts.sum(-1) + part.rest + part.bias, part.total, atol=1e-5))
    True
    """
    hidden = Hidden(x, weights, activation, routing)
    most = hidden.slots * hidden.weights.d_ff
    count = _check_n(min(integer("n", n), most), hidden)
    raw = raw_weights(weights)
    factors = _value_factors(hidden, raw, "logit", direction)
    u = _directions(hidden, direction)
    indices = np.empty((hidden.tokens, count), np.int32)
    parts = np.empty((hidden.tokens, count), hidden.wide)
    rest, bias, total = (np.empty(hidden.tokens, hidden.wide) for _ in range(3))
    with np.errstate(all="ignore"):
        for block in hidden.blocks(outputs=True):
            m, flat = _coefficients(block)
            points = m * factors(block)
            found = _chosen(np.abs(points), flat, count)
            at = block.tokens
            indices[at] = np.take_along_axis(flat, found, axis=1)
            parts[at] = np.take_along_axis(points, found, axis=1)
            np.put_along_axis(points, found, 0, axis=1)
            rest[at] = points.sum(axis=1, dtype=FLOAT64)
            own = np.broadcast_to(u if u.ndim == 1 else u[at], (len(m), u.shape[-1]))
            bias[at] = (_bias(block, raw).astype(FLOAT64) * own).sum(axis=1)
            assert block.y is not None
            total[at] = (block.y.astype(FLOAT64) * own).sum(axis=1)
    shape = (*hidden.lead, count)
    return Attribution(
        *(a.reshape(shape) for a in (indices, parts)),
        *(a.reshape(hidden.lead) for a in (rest, bias, total)),
    )


def _check_n(n: object, hidden: Hidden) -> int:
    count, most = integer("n", n), hidden.slots * hidden.weights.d_ff
    if not 1 <= count <= most:
        raise ValueError(f"n is {count}; expected 1 to {most} neurons")
    return count


def _coefficients(block: Block) -> tuple[Array, Array]:
    """m and flat indices, [tokens, slots * f] each. Slots without an expert have index -1."""
    tokens, slots, f = block.h.shape
    m = block.h * block.factors[:, :, None].astype(block.h.dtype)
    flat = np.where(block.ids >= 0, block.ids * f, -1)[:, :, None] + np.arange(f, dtype=np.int32)
    flat = np.where(block.ids[:, :, None] >= 0, flat, -1)
    # By rising index, because ties go to the lower one.
    order = np.argsort(block.ids, axis=1, kind="stable")[:, :, None]
    both = (np.take_along_axis(a, order, axis=1) for a in (m, flat.astype(np.int32)))
    m, flat = (a.reshape(tokens, slots * f) for a in both)
    return m, flat


def _chosen(sizes: Array, flat: Array, count: int) -> Array:
    """The columns of the largest sizes; those of slots without an expert come last."""
    if (flat < 0).any():
        sizes = np.where(flat < 0, -np.inf, sizes)
    return largest(sizes, count)


def _directions(hidden: Hidden, direction: object) -> Array:
    """u as [d] or [T, d], in the dtype of coefficients."""
    u = as_array("direction", direction)
    check_dtype("direction", u)
    d = hidden.weights.d_model
    if u.shape != (d,) and u.shape != (*hidden.lead, d):
        raise ValueError(
            f"direction has shape {u.shape}; expected {(d,)} or {(*hidden.lead, d)} to match x"
        )
    wide = u.astype(hidden.wide)
    return wide if u.shape == (d,) else wide.reshape(hidden.tokens, d)


def _value_factors(
    hidden: Hidden, raw: FFNWeights, score: str, direction: object
) -> Callable[[Block], Any]:
    """What m is multiplied by: a function from a block to [tokens, slots * f], or to 1."""
    needs = score in ("logit", "abs_logit")
    if needs != (direction is not None):
        found, expected = ("None", "an array") if needs else ("given", "None")
        raise ValueError(f"direction is {found} with score {score!r}; expected {expected}")
    if score == "coefficient":
        return lambda _: 1
    experts, wide = range(raw.n_experts or 1), hidden.wide
    u = _directions(hidden, direction) if needs else None
    if u is None or u.ndim == 1:

        def of(e: int) -> Array:
            values = values_of(raw, e, wide)
            if u is not None:
                return np.asarray(product(u[None], values.T)[0])
            squares = np.add.accumulate(np.square(values, dtype=FLOAT64), axis=0)
            return np.asarray(np.sqrt(squares[-1]))

        table = np.stack([of(e) for e in experts]).astype(wide)  # [E, f]
        return lambda block: _by_rising_expert(block, table[np.maximum(block.ids, 0)])
    directions = u

    def per_token(block: Block) -> Array:
        own = directions[block.tokens]
        found = np.zeros(block.h.shape, wide)
        for e in np.unique(block.ids[block.ids >= 0]):
            token, slot = np.nonzero(block.ids == e)
            found[token, slot] = product(own[token], values_of(raw, int(e), wide).T)
        return _by_rising_expert(block, found)

    return per_token


def _by_rising_expert(block: Block, found: Array) -> Array:
    order = np.argsort(block.ids, axis=1, kind="stable")[:, :, None]
    return np.take_along_axis(found, order, axis=1).reshape(len(block.h), -1)


def _bias(block: Block, raw: FFNWeights) -> Array:
    """What b_down adds to y: [tokens, d]."""
    bias = np.zeros((len(block.h), raw.d_model), block.h.dtype)
    if raw.b_down is None:
        return bias
    own = raw.b_down.astype(block.h.dtype).reshape(-1, raw.d_model)
    for slot in range(block.ids.shape[1]):
        ids, factors = block.ids[:, slot], block.factors[:, slot]
        bias += np.where(ids[:, None] >= 0, factors[:, None] * own[np.maximum(ids, 0)], 0)
    return bias


def _sum_values(flat: Array, m: Array, raw: FFNWeights) -> Array:
    """The sum over n of m[:, n] times the value of flat[:, n]: [T, d], added in order."""
    y = np.zeros((len(flat), raw.d_model), m.dtype)
    down = raw.down if raw.n_experts is not None else raw.down[None]
    for slot in range(flat.shape[1]):
        e, i = np.divmod(np.maximum(flat[:, slot], 0), raw.d_ff)
        values = down[e, :, i].astype(m.dtype)
        y += np.where(flat[:, slot, None] >= 0, m[:, slot, None] * values, 0)
    return y


def _explained(y: Array, found: Array) -> Array:
    square = np.square(y, dtype=FLOAT64).sum(axis=1)
    missing = np.square(y - found, dtype=FLOAT64).sum(axis=1)
    return np.asarray(1 - missing / square)
