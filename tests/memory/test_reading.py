"""Top neurons, readout and attribution beside the materialised matrix of coefficients."""

import tracemalloc

import numpy as np
import pytest
from support import all_biases, make_experts, make_weights, normal, same_bits

import ffncore as fc
from ffncore.memory.selecting import largest
from ffncore.passes.hidden import Hidden


def materialised(x, w, activation):
    """m [T, f] of a dense layer."""
    return np.concatenate([b.h[:, 0] for b in Hidden(x, w, activation).blocks()])


@pytest.mark.parametrize("score", ["coefficient", "contribution", "logit", "abs_logit"])
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_top_neurons_beside_a_sort(score, activation, dtype, gated, rng):
    d, f, n = 13, 50, 7
    w = make_weights(rng, d, f, gated=gated, biases=all_biases(gated), dtype=dtype)
    x = normal(rng, 3, 100, d, dtype=dtype)
    m = materialised(x, w, activation)
    down = w.down.astype(m.dtype)
    for u in (normal(rng, d, dtype=dtype), normal(rng, 3, 100, d, dtype=dtype)):
        options = {"direction": u} if "logit" in score else {}
        top = fc.memory.top_neurons(
            x, w, n, activation=activation, score=score, return_output=True, **options
        )
        rows = np.broadcast_to(u, x.shape).reshape(-1, d).astype(m.dtype)
        exact = {
            "coefficient": np.abs(m),
            "contribution": np.abs(m) * np.linalg.norm(down, axis=0),
            "logit": m * (rows @ down),
            "abs_logit": np.abs(m * (rows @ down)),
        }[score]
        # Scores may differ in their last bits, so the sorted scores are compared, not indices.
        best = np.sort(exact, axis=1)[:, ::-1][:, :n]
        flat = top.indices.reshape(-1, n)
        assert np.allclose(top.scores.reshape(-1, n), best, rtol=1e-4, atol=1e-4)
        assert same_bits(top.coefficients.reshape(-1, n), np.take_along_axis(m, flat, 1))
        assert same_bits(top.output, fc.ffn(x, w, activation=activation))
        if score == "coefficient":
            assert np.array_equal(flat, largest(np.abs(m), n))
        packed = fc.memory.top_neurons(
            x, fc.pack(w), n, activation=activation, score=score, **options
        )
        assert np.array_equal(packed.indices, top.indices)
        assert packed.output is packed.explained is None


def test_the_bits_do_not_depend_on_level_and_threads(rng):
    w = make_weights(rng, 33, 65, dtype=np.float32)
    x, u = normal(rng, 70, 33, dtype=np.float32), normal(rng, 33, dtype=np.float32)
    found = []
    for isa in fc.available_isas():
        for threads in (1, 3):
            with fc.using_isa(isa), fc.num_threads(threads):
                found.append(fc.memory.attribute(x, w, u, activation="silu", n=5))
    for other in found[1:]:
        for name in ("indices", "parts", "rest", "bias", "total"):
            assert same_bits(getattr(other, name), getattr(found[0], name))


def test_all_neurons_read_out_the_output(dtype, rng):
    w = make_weights(rng, 9, 20, biases=("b_down",), dtype=dtype)
    x = normal(rng, 30, 9, dtype=dtype)
    top = fc.memory.top_neurons(x, w, 20, activation="silu", return_output=True)
    y = fc.memory.readout(top.indices, top.coefficients, w) + w.b_down.astype(top.scores.dtype)
    bound = {8: 1e-12, 4: 1e-5, 2: 0.05}[np.dtype(dtype).itemsize]
    assert np.abs(y - top.output).max() < bound
    assert np.abs(top.explained - 1).max() < bound
    less = fc.memory.top_neurons(x, w, 3, activation="silu", return_output=True)
    own = (y - w.b_down.astype(y.dtype)).astype(np.float64)
    rest = own - fc.memory.readout(less.indices, less.coefficients, w)
    assert np.allclose(less.explained, 1 - (rest**2).sum(1) / (own**2).sum(1), atol=50 * bound)


@pytest.mark.parametrize("n", [1, 5, 16, 40])
def test_attribution_sums_to_the_output(n, dtype, gated, rng):
    w = make_weights(rng, 11, 24, gated=gated, biases=all_biases(gated), dtype=dtype)
    x = normal(rng, 2, 20, 11, dtype=dtype)
    for u in (normal(rng, 11, dtype=dtype), normal(rng, 2, 20, 11, dtype=dtype)):
        part = fc.memory.attribute(x, w, u, activation="gelu", n=n)
        y = fc.ffn(x, w, activation="gelu").astype(np.float64)
        total = (y * u.astype(np.float64)).sum(-1)
        size = np.linalg.norm(y, axis=-1) * np.linalg.norm(u.astype(np.float64), axis=-1)
        bound = {8: 1e-12, 4: 1e-6, 2: 0.02}[np.dtype(dtype).itemsize]
        sums = part.parts.sum(-1) + part.rest + part.bias
        assert np.all(np.abs(part.total - total) <= bound * size)
        assert np.all(np.abs(sums - total) <= bound * size)
        assert part.indices.shape == (2, 20, min(n, 24))


def test_experts_are_compared_together(rng):
    d, f, n = 9, 6, 5
    w = make_experts(rng, 4, d, f, biases=("b_down",), dtype=np.float32)
    x, u = normal(rng, 30, d, dtype=np.float32), normal(rng, d, dtype=np.float32)
    ids = np.stack([rng.permutation(4)[:3] for _ in range(30)]).astype(np.int32)
    ids[0, 1] = -1
    ids[1] = [-1, -1, 2]
    routing = fc.Routing(experts=ids, weights=normal(rng, 30, 3, dtype=np.float32))
    m = np.zeros((30, 4 * f), np.float32)
    for t, s in np.argwhere(ids >= 0):
        e = ids[t, s]
        h = materialised(x[t : t + 1], w.expert(e), "silu")[0]
        m[t, e * f : (e + 1) * f] = h * routing.weights[t, s]
    top = fc.memory.top_neurons(x, w, n, activation="silu", routing=routing, return_output=True)
    assert np.array_equal(top.indices, largest(np.abs(m), n))
    assert same_bits(top.coefficients, np.take_along_axis(m, top.indices, 1))
    assert same_bits(top.output, fc.moe(x, routing, w, activation="silu"))
    part = fc.memory.attribute(x, w, u, activation="silu", n=n, routing=routing)
    sums = part.parts.sum(-1) + part.rest + part.bias
    assert np.abs(sums - top.output @ u).max() < 1e-5
    every = fc.memory.top_neurons(x, w, 3 * f, activation="silu", routing=routing)
    assert (every.indices[1, f:] == -1).all()
    per_token = fc.memory.attribute(x, w, np.tile(u, (30, 1)), activation="silu", routing=routing)
    assert np.abs(per_token.total - part.total).max() < 1e-6
    y = fc.memory.readout(every.indices, every.coefficients, w)
    alone = fc.FFNWeights(**{k: a for k, a in w.arrays().items() if k != "b_down"})
    assert np.abs(y - fc.moe(x, routing, alone, activation="silu")).max() < 1e-5


def test_no_array_of_tokens_and_neurons(rng):
    """All coefficients would take 32 MiB, and the blocks take less."""
    w = make_weights(rng, 8, 2048, gated=False, dtype=np.float32)
    x = normal(rng, 4096, 8, dtype=np.float32)
    tracemalloc.start()
    fc.memory.top_neurons(x, w, 4, activation="relu")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 * 2**20


def test_bad_input(rng):
    w = make_weights(rng, 4, 6, dtype=np.float32)
    x = normal(rng, 5, 4, dtype=np.float32)
    call = fc.memory.top_neurons
    with pytest.raises(ValueError, match="n is 7; expected 1 to 6 neurons"):
        call(x, w, 7, activation="silu")
    with pytest.raises(ValueError, match="score is 'size'; expected one of 'coefficient'"):
        call(x, w, 2, activation="silu", score="size")
    with pytest.raises(ValueError, match="direction is None with score 'logit'"):
        call(x, w, 2, activation="silu", score="logit")
    with pytest.raises(ValueError, match=r"direction has shape \(5,\); expected \(4,\) or"):
        call(x, w, 2, activation="silu", score="logit", direction=np.ones(5, "f4"))
    with pytest.raises(ValueError, match="indices has 6 to 6; expected -1 to 5"):
        fc.memory.readout(np.array([6]), np.ones(1, "f4"), w)
    with pytest.raises(TypeError, match="coefficients has dtype float64; expected float32"):
        fc.memory.readout(np.array([5]), np.ones(1), w)
