"""The inputs that fire a neuron most, over a stream."""

import numpy as np
import pytest
from support import make_weights, normal, same_bits

import ffncore as fc
from ffncore.memory.selecting import largest
from ffncore.passes.hidden import Hidden


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_beside_a_sort_of_all_rows(activation, dtype, gated, rng):
    w = make_weights(rng, 8, 20, gated=gated, dtype=dtype)
    x = normal(rng, 600, 8, dtype=dtype)
    neurons = np.array([3, 0, 19])
    m = np.concatenate([b.h[:, 0] for b in Hidden(x, w, activation).blocks()])[:, neurons].T
    found = fc.memory.trigger_examples(
        [x[:7], x[7:507].reshape(2, 250, 8), x[507:507], x[507:]],
        fc.pack(w),
        neurons,
        9,
        activation=activation,
    )
    m = np.ascontiguousarray(m)
    assert np.array_equal(found.rows, largest(m, 9))
    assert same_bits(found.coefficients, np.take_along_axis(m, found.rows, 1))
    wide = m.astype(np.float64)
    rest = wide.sum(1) - np.take_along_axis(wide, found.rows, 1).sum(1)
    assert np.allclose(found.rest, rest, rtol=1e-10, atol=1e-10)
    assert found.count == 600


def test_short_streams_and_bad_input(rng):
    w = make_weights(rng, 4, 6, dtype=np.float32)
    x = normal(rng, 2, 4, dtype=np.float32)
    found = fc.memory.trigger_examples([x], w, np.array([5]), 4, activation="silu")
    assert (found.rows[0, 2:] == -1).all()
    assert not found.coefficients[0, 2:].any()
    none = fc.memory.trigger_examples([], w, np.array([5, 1]), 1, activation="silu")
    assert none.rows.tolist() == [[-1], [-1]]
    with pytest.raises(ValueError, match="neurons has 6 to 6; expected indices from 0 to 5"):
        fc.memory.trigger_examples([x], w, np.array([6]), 1, activation="silu")
    with pytest.raises(ValueError, match="n is 0; expected at least 1"):
        fc.memory.trigger_examples([x], w, np.array([1]), 0, activation="silu")
    with pytest.raises(TypeError, match="neurons has dtype float64"):
        fc.memory.trigger_examples([x], w, np.array([1.0]), 1, activation="silu")
