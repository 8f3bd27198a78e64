"""Edits: exact keys, least squares, null space, ripple, side cars."""

import numpy as np
import pytest
from support import make_experts, make_weights, normal, same_bits

import ffncore as fc


def gaussian(rng, activation, rows=8192, d=64, f=128):
    """A random plain layer, the moment of Gaussian inputs, and coefficients of other inputs."""
    w = make_weights(rng, d, f, gated=False, dtype=np.float32)
    moment = fc.memory.SecondMoment(w, activation=activation)
    moment.update(normal(rng, rows, d, dtype=np.float32))
    return w, moment, normal(rng, 96, d, dtype=np.float32)


@pytest.mark.parametrize("n", [1, 7])
@pytest.mark.parametrize("with_moment", [False, True])
def test_keys_are_met_exactly(n, with_moment, dtype, rng):
    d, f = 13, 40
    w = make_weights(rng, d, f, biases=("b_down",), dtype=dtype)
    moment = None
    if with_moment:
        moment = fc.memory.SecondMoment(w, activation="silu")
        moment.update(normal(rng, 500, d, dtype=dtype))
    keys, values = normal(rng, n, f), normal(rng, n, d)
    change = fc.memory.edit(w, keys, values, moment=moment)
    assert change.weights.dtype == w.dtype
    assert same_bits(change.weights.up, w.up)
    exact = keys @ (w.down.astype(np.float64) + change._u @ change._v).T
    assert np.abs(exact - values).max() < 1e-11
    found = keys @ change.weights.down.astype(np.float64).T
    bound = {8: 1e-12, 4: 1e-6, 2: 0.05}[np.dtype(dtype).itemsize]
    assert np.abs(found - values).max() < bound * max(1, np.abs(values).max()) * f**0.5
    assert change.undo() is w


def test_rome_with_one_key_is_the_published_formula(rng):
    w, moment, _ = gaussian(rng, "relu", rows=300)
    ridge, f = 0.01, w.d_ff
    mean = moment.matrix / moment.count
    mean += ridge * np.diagonal(mean)[np.diagonal(mean) > 0].mean() * np.eye(f)
    k, v = np.abs(normal(rng, f)), normal(rng, w.d_model)
    u = np.linalg.solve(mean, k)
    down = w.down.astype(np.float64)
    published = down + np.outer((v - down @ k) / (u @ k), u)
    change = fc.memory.edit(w, k, v, moment=moment, ridge=ridge)
    assert np.abs(down + change._u @ change._v - published).max() < 1e-12


def test_memit_is_the_published_least_squares(rng):
    w, moment, _ = gaussian(rng, "gelu", rows=300)
    k, v, lam = normal(rng, 5, w.d_ff), normal(rng, 5, w.d_model), 20.0
    mean = moment.matrix / moment.count
    mean += 0.01 * np.diagonal(mean).mean() * np.eye(w.d_ff)
    down = w.down.astype(np.float64)
    published = (v - k @ down.T).T @ k @ np.linalg.inv(lam * mean + k.T @ k)
    change = fc.memory.edit(w, k, v, moment=moment, lam=lam)
    assert np.abs(change._u @ change._v - published).max() < 1e-10
    same = np.concatenate([k, k[:1]])
    fc.memory.edit(w, same, np.concatenate([v, v[:1]]), moment=moment, lam=lam)


def test_null_space_leaves_seen_directions_alone(rng):
    w = make_weights(rng, 8, 48, gated=False, dtype=np.float64)
    seen = normal(rng, 3, 8)
    moment = fc.memory.SecondMoment(w, activation="gelu").update(seen)
    k, v = normal(rng, 2, 48), normal(rng, 2, 8)
    change = fc.memory.edit(w, k, v, moment=moment, null_space=1e-9)
    bank = fc.memory.edit(w, seen, v[:1].repeat(3, 0), activation="gelu")._keys
    assert change.ripple(bank).max < 1e-6
    values, vectors = np.linalg.eigh(moment.matrix)
    small = vectors[:, values <= 1e-9 * values[-1]]
    p = small @ small.T
    missing = (v - k @ w.down.T).T
    published = missing @ k @ p @ np.linalg.inv(k.T @ k @ p + np.eye(48))
    assert np.abs(change._u @ change._v - published).max() < 1e-9
    assert np.abs(k @ change.weights.down.T - v).max() < np.abs(missing).max()


def test_ripple_is_the_change_that_is_recomputed(rng):
    w, moment, x = gaussian(rng, "gelu")
    change = fc.memory.edit(w, x[:2], normal(rng, 2, w.d_model), moment=moment, activation="gelu")
    ripple = change.ripple(x[2:])
    new = fc.ffn(x[2:].astype(np.float64), wide(change.weights), activation="gelu")
    old = fc.ffn(x[2:].astype(np.float64), wide(w), activation="gelu")
    moved = np.linalg.norm(new - old, axis=1)
    assert np.abs(moved - ripple.change).max() < 1e-5 * moved.max()
    assert ripple.superposition.shape == (2, len(x) - 2)
    assert ripple.mean == ripple.change.mean()
    assert ripple.max == ripple.change.max()
    assert ripple.mean < ripple.p99 <= ripple.max
    own = change.ripple(x[:2]).superposition
    assert np.abs(np.diagonal(own) - 1).max() < 1e-12
    assert change.ripple(x[:0]).max == 0


def wide(w):
    return fc.FFNWeights(**{n: a.astype(np.float64) for n, a in w.arrays().items()})


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_the_moment_is_worth_four_times_less_ripple(activation, rng):
    w, moment, x = gaussian(rng, activation, d=128, f=512)
    value = normal(rng, 1, w.d_model)
    sizes = [
        np.abs(change.ripple(x[1:]).superposition).mean()
        for given in (None, moment)
        for change in [fc.memory.edit(w, x[:1], value, moment=given, activation=activation)]
    ]
    assert sizes[0] >= 4 * sizes[1]


@pytest.mark.parametrize("kind", ["raw", "packed", "quantised"])
def test_the_side_car_is_the_edit(kind, rng):
    w = make_weights(rng, 32, 64, dtype=np.float32)
    w = {
        "raw": lambda: w,
        "packed": lambda: fc.pack(w),
        "quantised": lambda: fc.quantize(w, "int8"),
    }[kind]()
    x = normal(rng, 20, 32, dtype=np.float32)
    values = normal(rng, 2, 32, dtype=np.float32)
    change = fc.memory.edit(w, x[:2], values, activation="silu")
    y = fc.ffn(x, w, activation="silu", side_car=change.side_car)
    assert np.abs(y[:2] - values).max() < 1e-5
    assert np.abs(y - fc.ffn(x, change.weights, activation="silu")).max() < 1e-4 * np.abs(y).max()
    assert change.undo() is w


def test_bad_edits(rng):
    w = make_weights(rng, 4, 6, gated=False, dtype=np.float32)
    k, v = normal(rng, 3, 6), normal(rng, 3, 4)
    with pytest.raises(ValueError, match="keys 2 depend on earlier keys"):
        fc.memory.edit(w, np.stack([k[0], k[1], k[0] + k[1]]), v)
    with pytest.raises(ValueError, match=r"keys has shape \(3, 5\); expected \[n, 6\]"):
        fc.memory.edit(w, k[:, :5], v)
    with pytest.raises(ValueError, match="values has 2 rows and keys 3"):
        fc.memory.edit(w, k, v[:2])
    with pytest.raises(ValueError, match="null_space is given and moment is None"):
        fc.memory.edit(w, k, v, null_space=0.1)
    with pytest.raises(ValueError, match="ridge is -1"):
        fc.memory.edit(w, k, v, ridge=-1)
    with pytest.raises(ValueError, match="weights are those of experts"):
        fc.memory.edit(make_experts(rng, 2, 4, 6), k, v)
    with pytest.raises(TypeError, match="keys is of type list"):
        fc.memory.edit(w, [1.0], v)
    up = w.up.copy()
    up[[1, 4]] = 0
    dead = fc.FFNWeights(up=up, down=w.down)
    moment = fc.memory.SecondMoment(dead, activation="relu").update(normal(rng, 99, 4, dtype="f4"))
    with pytest.raises(ValueError, match=r"2 neurons never fired: 1, 4.*larger ridge"):
        fc.memory.edit(dead, k, v, moment=moment, ridge=0.0)
    fc.memory.edit(dead, k, v, moment=moment)
    with pytest.raises(ValueError, match="down has a largest magnitude"):
        _ = fc.memory.edit(w, k[:1], v[:1] * 1e39).weights
