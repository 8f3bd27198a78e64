"""The checks of arguments beside weights."""

import numpy as np
import pytest
from support import make_experts, make_weights, same_bits

import ffncore as fc
from ffncore.memory import layer


def test_raw_weights_of_packed_and_quantised_ones(rng):
    w = make_weights(rng, 32, 64, dtype=np.float32)
    assert layer.raw_weights(w) is w
    assert same_bits(layer.raw_weights(fc.pack(w)).down, w.down)
    q = fc.quantize(w, "int8")
    assert same_bits(layer.raw_weights(q).down, q.dequantize().down)


def test_values_of_an_expert(rng):
    w = make_experts(rng, 3, 4, 5, dtype=np.float32)
    assert same_bits(layer.values_of(w, 2, np.dtype("f4")), w.down[2])
    with pytest.raises(ValueError, match="weights are those of experts"):
        layer.single(w)


def test_bad_numbers_and_rows():
    with pytest.raises(TypeError, match="ridge is of type str"):
        layer.check_number("ridge", "1", 0.0)
    with pytest.raises(ValueError, match="ridge is -1; expected a finite number of at least 0"):
        layer.check_number("ridge", -1, 0.0)
    with pytest.raises(ValueError, match=r"keys has shape \(2, 3\); expected \[n, 4\]"):
        layer.check_finite_rows("keys", np.zeros((2, 3)), 4)
    with pytest.raises(ValueError, match="keys has numbers that are infinite or NaN"):
        layer.check_finite_rows("keys", np.full(4, np.nan), 4)
    with pytest.raises(ValueError, match="score is 'x'; expected one of 'a', 'b'"):
        layer.one_of("score", "x", ("a", "b"))
