"""fc.memory.statistics: what outputs and values say in terms of words.

    top(z) = argmax over words w of z . e_w            E [V, d] the unembedding
    y the layer's output, r the residual, o = r + y    logits of o = logits of y + logits of r

Of each token one of four cases holds (Geva et al., 2021): residual (top o = top r only), ffn (top o
= top y only), agreement (all three are equal), composition (top o is neither). A fifth, top r =
top y but another top o, is impossible but for roundings, and is counted. Zero agreement: the top
word of y is the top word of no neuron's value.

Words go in blocks, and so do tokens: there is no array [T, V]. Tests: tests/memory/test_words.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..arrays.dtypes import check_dtype
from ..arrays.scalars import integer
from ..arrays.shapes import Array, MaybeArray, as_array, check_shape
from ..passes.hidden import Hidden, TokenSums
from ..values.activation import Activation
from ..values.packed import PackedWeights
from ..values.routing import Routing
from ..values.weights import FFNWeights
from .layer import raw_weights, values_of
from .selecting import largest

CASES = ("residual", "ffn", "agreement", "composition", "impossible")
# The words of a block. With 256 tokens their logits take 4 MiB.
_WORDS = 4096


@dataclass(frozen=True, eq=False)
class Statistics:
    """What a layer says about words, per token. Fields of a residual are None without one.

    top_output      [...] int64, the top word of y
    top_residual    [...] int64, of the residual
    top_sum         [...] int64, of their sum
    case            [...] int8, an index into cases
    cases           dict from "residual", "ffn", "agreement", "composition" and "impossible" to
                    the number of tokens
    zero_agreement  [...] bool, whether top_output is the top word of no value of the layer
    active          [...] float64, the share of neurons with m > 0; of experts among those of the
                    token's slots
    promoted        [..., words] int64, the words whose logits y raises most
    demoted         [..., words] int64, those that it lowers most
    """

    top_output: Array
    top_residual: MaybeArray
    top_sum: MaybeArray
    case: MaybeArray
    cases: dict[str, int] | None
    zero_agreement: Array
    active: Array
    promoted: Array
    demoted: Array


def statistics(
    x: Array,
    weights: FFNWeights | PackedWeights,
    unembedding: Array,
    residual: MaybeArray = None,
    *,
    activation: str | Activation,
    routing: Routing | None = None,
    words: int = 10,
) -> Statistics:
    """What outputs and values say in terms of words: top words, the four cases, agreement.

    x            [..., d_model], as for fc.ffn
    weights      FFNWeights or PackedWeights, of one layer or with a routing of experts
    unembedding  [V, d_model], one row for each word
    residual     [..., d_model], what y is added to; None: only what needs no residual
    activation   a name, or an Activation with options
    routing      a Routing of these tokens, for experts
    words        how many promoted and demoted words, at most V

    Logits are computed in float32 (float64 for a float64 layer). Ties go to the lower word.

    Returns a Statistics with named fields.

    Raises ValueError for shapes and values, and TypeError for types and dtypes.

    >>> words = np.random.default_rng(0).standard_normal((50, 4)).astype("f4")
    >>> stat = fc.memory.statistics(x, weights, words, x, activation="silu")
    >>> stat.cases["impossible"]
    0
    """
    hidden = Hidden(x, weights, activation, routing)
    e, r = as_array("unembedding", unembedding), None
    check_dtype("unembedding", e)
    d, wide = hidden.weights.d_model, hidden.wide
    if e.ndim != 2 or e.shape[1] != d or not len(e):
        raise ValueError(f"unembedding has shape {e.shape}; expected [V, {d}]")
    if residual is not None:
        r = as_array("residual", residual)
        check_dtype("residual", r)
        check_shape("residual", r, hidden.layer.seen.shape, "to match x")
        r = r.reshape(hidden.tokens, d)
    count = min(integer("words", words), len(e))
    if count < 1:
        raise ValueError(f"words is {words}; expected at least 1")
    raw, tokens = raw_weights(weights), hidden.tokens
    tops = [
        np.unique(_most(values_of(raw, i, wide).T, None, e, 1)[0])
        for i in range(raw.n_experts or 1)
    ]
    said = np.unique(np.concatenate(tops))
    found = np.empty((3, tokens), np.int64)
    promoted, demoted = (np.empty((tokens, count), np.int64) for _ in range(2))
    active = np.empty(tokens)
    for block in hidden.blocks(outputs=True):
        at, y = block.tokens, block.y
        assert y is not None
        own = None if r is None else r[at].astype(wide)
        promoted[at], demoted[at], found[1, at], found[2, at] = _most(y, own, e, count)
        found[0, at] = promoted[at][:, 0]
        there = (block.ids >= 0)[:, :, None] & np.ones(block.h.shape, bool)
        positive = (block.h * block.factors[:, :, None] > 0) & there
        active[at] = positive.sum((1, 2)) / np.maximum(1, there.sum((1, 2)))
    lead = hidden.lead
    both = (promoted.reshape(*lead, count), demoted.reshape(*lead, count))
    agreement = ~np.isin(found[0], said).reshape(lead)
    top_y, top_r, top_o = (row.reshape(lead) for row in found)
    if r is None:
        rest = (agreement, active.reshape(lead), *both)
        return Statistics(top_y, None, None, None, None, *rest)
    case = _case(top_y, top_r, top_o)
    cases = {name: int((case == i).sum()) for i, name in enumerate(CASES)}
    return Statistics(top_y, top_r, top_o, case, cases, agreement, active.reshape(lead), *both)


def _case(y: Array, r: Array, o: Array) -> Array:
    conditions = [(o == r) & (o != y), (o == y) & (o != r), (o == r) & (o == y), (y != r)]
    return np.select(conditions, [0, 1, 2, 3], 4).astype(np.int8)


@np.errstate(all="ignore")
def _most(y: Array, r: MaybeArray, e: Array, count: int) -> tuple[Array, Array, Array, Array]:
    """Of rows y and r [T, d]: the count words of the largest and of the smallest logits of y,
    [T, count] each, and the top words of r and r + y, [T] each (those of y without r).
    """
    best: list[tuple[Array, Array]] = []
    for start in range(0, len(e), _WORDS):
        logits = _logits(y, e[start : start + _WORDS])
        other = logits if r is None else _logits(r, e[start : start + _WORDS])
        for i, (numbers, n) in enumerate(
            ((logits, count), (-logits, count), (other, 1), (other + logits, 1))
        ):
            ids = np.broadcast_to(start + np.arange(numbers.shape[1]), numbers.shape)
            if start:  # earlier words first, so that ties go to them
                numbers = np.concatenate([best[i][0], numbers], axis=1)
                ids = np.concatenate([best[i][1], ids], axis=1)
            chosen = largest(numbers, min(n, numbers.shape[1]))
            pair = tuple(np.take_along_axis(a, chosen, axis=1) for a in (numbers, ids))
            best[i : i + 1] = [(pair[0], pair[1])]
    return best[0][1], best[1][1], best[2][1][:, 0], best[3][1][:, 0]


def _logits(rows: Array, e: Array) -> Array:
    # Rows in blocks, because the values of a layer are rows here, too.
    sums = TokenSums(e.T.astype(rows.dtype))
    blocks = [sums.times(rows[i : i + 256].T) for i in range(0, len(rows), 256)]
    return np.concatenate(blocks) if blocks else np.empty((0, len(e)), rows.dtype)
