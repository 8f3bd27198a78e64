"""Scores of neurons, and layers of fewer neurons."""

import numpy as np
import pytest
from support import make_weights, normal, same_bits

import ffncore as fc


def calibrated(rng, dtype=np.float64, *, gated=True, rows=400):
    w = make_weights(rng, 10, 24, gated=gated, biases=("b_up", "b_down"), dtype=dtype)
    x = normal(rng, rows, 10, dtype=dtype)
    return w, x, fc.memory.SecondMoment(w, activation="silu").update(x)


def error(w, small, x):
    """Relative, without b_down."""
    bias = w.b_down.astype(np.float64)
    y = fc.ffn(x, w, activation="silu").astype(np.float64)
    new = fc.ffn(x, small, activation="silu").astype(np.float64)
    return np.linalg.norm(new - y) / np.linalg.norm(y - bias)


@pytest.mark.parametrize("keep", [1, 6, 18, 23])
def test_compensation_is_never_worse_and_the_error_is_true(keep, dtype, gated, rng):
    w, x, moment = calibrated(rng, dtype, gated=gated)
    plain = fc.memory.prune(w, keep, moment=moment, compensate=False)
    better = fc.memory.prune(w, keep, moment=moment)
    assert np.array_equal(plain.kept, better.kept)
    assert better.error <= plain.error
    assert same_bits(plain.weights.down, np.ascontiguousarray(w.down[:, plain.kept]))
    bound = {8: 1e-9, 4: 1e-4, 2: 0.02}[np.dtype(dtype).itemsize]
    for found in (plain, better):
        assert found.weights.d_ff == keep
        assert abs(error(w, found.weights, x) - found.error) < bound


def test_neurons_that_never_fire_cost_nothing(rng):
    w = make_weights(rng, 8, 16, gated=False, dtype=np.float32)
    up = w.up.copy()
    up[[0, 5, 9, 15]] = 0
    w = fc.FFNWeights(up=up, down=w.down)
    x = normal(rng, 200, 8, dtype=np.float32)
    moment = fc.memory.SecondMoment(w, activation="relu").update(x)
    found = fc.memory.prune(w, 12, moment=moment)
    assert not set(found.kept) & {0, 5, 9, 15}
    assert found.error == 0
    small, whole = (fc.ffn(x, a, activation="relu") for a in (found.weights, w))
    assert same_bits(found.weights.down, np.ascontiguousarray(w.down[:, found.kept]))
    assert np.abs(small - whole).max() < 1e-6


def test_scores_are_their_formulas(gated, rng):
    w, _, moment = calibrated(rng, gated=gated)
    value = np.linalg.norm(w.down, axis=0)
    energy = np.sqrt(np.diagonal(moment.matrix) / moment.count) * value
    assert np.allclose(fc.memory.neuron_scores(moment, w), energy, rtol=1e-13)
    keys = np.linalg.norm(w.up, axis=1) * (np.linalg.norm(w.gate, axis=1) if gated else 1)
    assert np.allclose(fc.memory.neuron_scores(None, w, score="magnitude"), keys * value)
    assert same_bits(
        fc.memory.neuron_scores(moment, fc.pack(w), score="activation"), moment.mean_abs
    )


def test_keep_as_number_indices_or_mask(rng):
    w, _, moment = calibrated(rng)
    best = np.sort(np.argsort(-fc.memory.neuron_scores(moment, w), kind="stable")[:5])
    mask = np.isin(np.arange(24), best)
    for keep in (5, best[::-1], mask):
        assert np.array_equal(fc.memory.prune(w, keep, moment=moment).kept, best)
    assert fc.memory.prune(w, 5).error is None
    same = fc.memory.prune(w, 24, moment=moment)
    assert same.error == 0
    assert same_bits(same.weights.down, w.down)


def test_bad_input(rng):
    w, _, moment = calibrated(rng)
    with pytest.raises(ValueError, match="keep is 0; expected 1 to 24 neurons"):
        fc.memory.prune(w, 0)
    with pytest.raises(ValueError, match="keep has 1 indices; expected at least one, from 0 to 23"):
        fc.memory.prune(w, np.array([24]))
    with pytest.raises(TypeError, match="keep is str"):
        fc.memory.prune(w, "half")
    with pytest.raises(ValueError, match="score is 'best'"):
        fc.memory.neuron_scores(moment, w, score="best")
    with pytest.raises(TypeError, match="moment is of type NoneType; expected a SecondMoment"):
        fc.memory.neuron_scores(None, w)
