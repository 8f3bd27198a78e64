"""q8_0, q4_0, q4_1 and mxfp4: the choice of their scales."""

import numpy as np
import pytest
from support import normal
from support_quantised import relative

import ffncore as fc


def test_q8_0_has_the_largest_magnitude_at_127(rng):
    w = normal(rng, 3, 32, dtype=np.float32)
    q = fc.quantize(w, "q8_0")
    codes = np.frombuffer(q.to_bytes(), np.int8).reshape(3, 34)[:, 2:]
    assert (np.abs(codes).max(axis=1) == 127).all()
    step = np.abs(w).max(axis=1, keepdims=True) / 127
    assert (np.abs(q.dequantize() - w) <= 0.51 * step).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_q4_0_uses_all_of_its_codes(rng, sign):
    w = sign * np.abs(normal(rng, 1, 32, dtype=np.float32))
    q = fc.quantize(w, "q4_0")
    largest = np.abs(w).argmax()
    code = q.to_bytes()[2 + largest % 16] >> (0 if largest < 16 else 4) & 15
    assert code == 0


def test_q4_1_follows_weights_that_are_far_from_zero(rng):
    w = normal(rng, 4, 32, dtype=np.float32) + np.float32(20)
    assert np.abs(fc.quantize(w, "q4_1").dequantize() - w).max() < 0.25


def test_mxfp4_has_the_exponent_of_the_largest_weight():
    for largest, e in ((1.0, 125), (1.99, 125), (2.0, 126), (7.9, 127), (2.0**-140, 0), (6e38, 0)):
        w = np.zeros((1, 32), "f4")
        w[0, 5] = min(largest, 3e38)
        q = fc.quantize(w, "mxfp4")
        assert q.to_bytes()[0] == (e if largest < 1e38 else 252)
        assert q.dequantize()[0, 5] == pytest.approx(w[0, 5], rel=0.25, abs=2.0**-129)


def test_an_exponent_of_255_is_not_a_number(rng):
    data = rng.integers(0, 250, (4, 17), dtype=np.uint8)
    data[3, 0] = 255
    with pytest.raises(ValueError, match="data has a scale of nan in block 1 of row 1; expected"):
        fc.QuantizedTensor.from_bytes("mxfp4", data, (2, 64))


def test_codes_of_minus_zero():
    data = np.full((1, 17), 0x88, np.uint8)
    data[0, 0] = 127
    assert not fc.QuantizedTensor.from_bytes("mxfp4", data, (1, 32)).dequantize().any()


@pytest.mark.parametrize("name, least", [("q8_0", 0.005), ("q4_0", 0.09), ("mxfp4", 0.13)])
def test_columns_of_any_size_have_the_same_error(rng, name, least):
    """Each block has its own scale, so that blocks of very different sizes do not disturb it."""
    w = normal(rng, 8, 128, dtype=np.float32)
    w[:, 32:64] *= 1e-2
    w[:, 64:96] *= 1e3
    found = fc.quantize(w, name).dequantize()
    for start in range(0, 128, 32):
        part = slice(start, start + 32)
        assert relative(found[:, part], w[:, part]) < 1.2 * least
