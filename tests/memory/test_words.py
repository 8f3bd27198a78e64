"""Top words, the four cases, agreement and promotion, beside all logits in float64."""

import numpy as np
import pytest
from support import make_experts, make_weights, normal

import ffncore as fc
from ffncore.memory import words


def test_beside_all_logits(monkeypatch, gated, rng):
    monkeypatch.setattr(words, "_WORDS", 7)
    w = make_weights(rng, 6, 15, gated=gated, biases=("b_down",))
    x, r, e = normal(rng, 3, 50, 6), normal(rng, 3, 50, 6), normal(rng, 30, 6)
    stat = fc.memory.statistics(x, w, e, r, activation="relu", words=4)
    y = fc.ffn(x, w, activation="relu")
    top_y, top_r, top_o = ((z @ e.T).argmax(-1) for z in (y, r, y + r))
    assert np.array_equal(stat.top_output, top_y)
    assert np.array_equal(stat.top_residual, top_r)
    assert np.array_equal(stat.top_sum, top_o)
    assert sum(stat.cases.values()) == 150
    assert stat.cases["impossible"] == 0
    assert stat.cases["agreement"] == ((top_o == top_r) & (top_o == top_y)).sum()
    assert stat.cases["residual"] == ((top_o == top_r) & (top_o != top_y)).sum()
    assert stat.cases["ffn"] == ((top_o != top_r) & (top_o == top_y)).sum()
    assert stat.cases["composition"] == ((top_o != top_r) & (top_o != top_y)).sum()
    order = np.argsort(-(y @ e.T), axis=-1)
    assert np.array_equal(stat.promoted, order[..., :4])
    assert np.array_equal(stat.demoted, order[..., ::-1][..., :4])
    assert np.array_equal(stat.zero_agreement, ~np.isin(top_y, (w.down.T @ e.T).argmax(-1)))
    arrays = {n: a for n, a in w.arrays().items() if n != "b_down"}
    wide = np.zeros((15, 15))
    arrays = {n: np.pad(a, ((0, 0), (0, 9))) for n, a in arrays.items() if n != "down"}
    h = fc.ffn(
        np.pad(x, ((0, 0), (0, 0), (0, 9))),
        fc.FFNWeights(**arrays, down=wide + np.eye(15)),
        activation="relu",
    )
    assert np.allclose(stat.active, (h > 0).mean(-1))


def test_experts_and_no_residual(rng):
    w = make_experts(rng, 3, 6, 5, dtype=np.float32)
    x, e = normal(rng, 20, 6, dtype=np.float32), normal(rng, 11, 6, dtype=np.float32)
    routing = fc.route(normal(rng, 20, 3, dtype=np.float32), 2)
    stat = fc.memory.statistics(x, w, e, activation="silu", routing=routing, words=99)
    y = fc.moe(x, routing, w, activation="silu")
    assert np.array_equal(stat.top_output, (y @ e.T).argmax(-1))
    assert stat.promoted.shape == (20, 11)
    assert stat.cases is stat.case is stat.top_sum is stat.top_residual is None
    assert ((stat.active >= 0) & (stat.active <= 1)).all()


def test_bad_input(rng):
    w, x = make_weights(rng, 4, 6), normal(rng, 5, 4)
    with pytest.raises(ValueError, match=r"unembedding has shape \(9, 5\); expected \[V, 4\]"):
        fc.memory.statistics(x, w, normal(rng, 9, 5), activation="silu")
    with pytest.raises(ValueError, match=r"residual has shape \(4, 4\); expected \(5, 4\)"):
        fc.memory.statistics(x, w, normal(rng, 9, 4), x[:4], activation="silu")
    with pytest.raises(ValueError, match="words is 0; expected at least 1"):
        fc.memory.statistics(x, w, normal(rng, 9, 4), activation="silu", words=0)
