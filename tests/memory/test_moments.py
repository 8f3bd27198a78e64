"""The second moment of the hidden activations."""

import numpy as np
import pytest
from support import all_biases, make_experts, make_weights, normal, same_bits

import ffncore as fc
from ffncore.memory.moments import check_moment


def hidden(x, w, activation):
    """h in numpy float64, [T, f], by a layer whose down is the identity."""
    arrays = {n: a.astype(np.float64) for n, a in w.arrays().items() if n != "b_down"}
    f, d = w.up.shape
    up = {n: np.pad(a, ((0, 0), (0, max(0, f - d)))) for n, a in arrays.items() if a.ndim == 2}
    up["down"] = np.eye(max(d, f), f)
    wide = np.pad(x.reshape(-1, d).astype(np.float64), ((0, 0), (0, max(0, f - d))))
    return fc.ffn(wide, fc.FFNWeights(**{**arrays, **up}), activation=activation)[:, :f]


@pytest.mark.parametrize("tokens", [1, 63, 300])
def test_the_moment_is_the_sum_of_products(tokens, dtype, gated, rng):
    w = make_weights(rng, 12, 21, gated=gated, biases=all_biases(gated), dtype=dtype)
    x = normal(rng, tokens, 12, dtype=dtype)
    h = hidden(x, w, "gelu")
    moment = fc.memory.SecondMoment(w, activation="gelu").update(x)
    bound = {8: 1e-12, 4: 1e-5, 2: 0.03}[np.dtype(dtype).itemsize] * np.abs(h.T @ h).max()
    assert np.abs(moment.matrix - h.T @ h).max() < bound
    assert np.abs(moment.mean_abs - np.abs(h).mean(0)).max() < bound
    assert moment.count == tokens
    assert same_bits(
        fc.memory.SecondMoment(fc.pack(w), activation="gelu").update(x).matrix, moment.matrix
    )


def test_the_bits_do_not_depend_on_level_and_threads(rng):
    w = make_weights(rng, 33, 65, dtype=np.float32)
    x = normal(rng, 300, 33, dtype=np.float32)
    found = []
    for isa in fc.available_isas():
        for threads in (1, 3):
            with fc.using_isa(isa), fc.num_threads(threads):
                moment = fc.memory.SecondMoment(w, activation="silu").update(x)
                found.append((moment.matrix, moment.mean_abs))
    for matrix, sizes in found[1:]:
        assert same_bits(matrix, found[0][0])
        assert same_bits(sizes, found[0][1])


def test_updates_and_merges_add(rng):
    w = make_weights(rng, 8, 12, dtype=np.float64)
    x = normal(rng, 50, 8)
    whole = fc.memory.SecondMoment(w, activation="relu").update(x)
    first = fc.memory.SecondMoment(w, activation="relu").update(x[:20])
    first.merge(fc.memory.SecondMoment(w, activation="relu").update(x[20:])).update(x[:0])
    assert first.count == whole.count == 50
    assert np.abs(first.matrix - whole.matrix).max() < 1e-12
    assert np.abs(first.mean_abs - whole.mean_abs).max() < 1e-13


def test_experts_have_moments_of_their_own(rng):
    w = make_experts(rng, 4, 9, 7, dtype=np.float32)
    x = normal(rng, 40, 9, dtype=np.float32)
    routing = fc.route(normal(rng, 40, 4, dtype=np.float32)[:, :3], 2)
    routing = fc.Routing(experts=routing.experts, weights=routing.weights)
    moment = fc.memory.SecondMoment(w, activation="silu").update(x, routing=routing)
    for e in range(4):
        own = x[(routing.experts == e).any(axis=1)]
        alone = fc.memory.SecondMoment(w.expert(e), activation="silu").update(own)
        assert same_bits(moment.matrix[e], alone.matrix)
        assert moment.count[e] == moment.expert(e).count == len(own)
    assert moment.dead.tolist() == [21, 22, 23, 24, 25, 26, 27]
    assert moment.effective_rank[3] == 0


def test_dead_neurons_and_effective_rank(rng):
    w = make_weights(rng, 4, 6, gated=False, dtype=np.float64)
    up = w.up.copy()
    up[[1, 4]] = 0
    w = fc.FFNWeights(up=up, down=w.down)
    moment = fc.memory.SecondMoment(w, activation="relu")
    assert moment.effective_rank == 0
    moment.update(normal(rng, 100, 4))
    assert moment.dead.tolist() == [1, 4]
    assert 1 < moment.effective_rank <= 4
    one = fc.FFNWeights(up=np.eye(3), down=np.eye(3))
    equal = fc.memory.SecondMoment(one, activation="relu").update(np.eye(3))
    assert abs(equal.effective_rank - 3) < 1e-12


def test_bad_input_changes_nothing(rng):
    w = make_weights(rng, 4, 6, dtype=np.float32)
    moment = fc.memory.SecondMoment(w, activation="silu")
    with pytest.raises(ValueError, match="expected a last dimension of 4"):
        moment.update(np.zeros((3, 5), "f4"))
    with pytest.raises(TypeError, match="float64"):
        moment.update(np.zeros((3, 4)))
    with pytest.raises(TypeError, match="other is of type int"):
        moment.merge(3)
    other = fc.memory.SecondMoment(make_weights(rng, 4, 5, dtype=np.float32), activation="silu")
    with pytest.raises(ValueError, match=r"other.matrix has shape \(5, 5\); expected \(6, 6\)"):
        moment.merge(other)
    assert moment.count == 0
    assert not moment.matrix.any()
    with pytest.raises(ValueError, match="moment has no tokens"):
        check_moment(moment, 6)
    with pytest.raises(ValueError, match=r"expected \(7, 7\) to match the weights"):
        check_moment(moment, 7)
    with pytest.raises(TypeError, match="moment is of type ndarray"):
        check_moment(np.eye(6), 6)
