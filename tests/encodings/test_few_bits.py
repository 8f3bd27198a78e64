"""One bit and ternary weights: the choice of the scale, and weights that are ternary already."""

import numpy as np
import pytest
from support import normal
from support_quantised import decoded, random_blocks, relative

import ffncore as fc

TERNARY = ("q2_0", "tq1_0", "tq2_0")


def test_one_bit_takes_the_mean_magnitude(rng):
    w = normal(rng, 3, 256, dtype=np.float32)
    w[0, 0] = 0
    d = np.abs(w.reshape(3, 2, 128)).mean(axis=2).astype(np.float16).astype("f4")
    expected = np.where(w >= 0, 1, -1) * np.repeat(d, 128, axis=1)
    np.testing.assert_array_equal(fc.quantize(w, "q1_0").dequantize(), expected)


@pytest.mark.parametrize("name", TERNARY)
def test_lloyd_fixed_point(rng, name):
    """No weight is nearer to another level, and the scale is the mean of those that are not 0."""
    w = normal(rng, 2, 256, dtype=np.float32)
    found = fc.quantize(w, name).dequantize()
    for group, q in zip(w.reshape(-1, 64), found.reshape(-1, 64), strict=True):
        d = np.abs(q).max()
        # The last scale has the codes of the turn before.
        inside = np.abs(np.abs(group) - d / 2) > 0.01 * d
        expected = np.where(np.abs(group) > d / 2, np.sign(group) * d, 0)
        np.testing.assert_array_equal(q[inside], expected[inside])
    if name == "q2_0":
        mean = np.abs(w.reshape(-1, 64)[0][found.reshape(-1, 64)[0] != 0]).mean()
        assert np.abs(found.reshape(-1, 64)[0]).max() == pytest.approx(mean, rel=0.01)


@pytest.mark.parametrize("name", [*TERNARY, "q1_0"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.67, 1.0])
def test_weights_that_have_the_levels_come_out_the_same(rng, name, share):
    d = np.float32(0.0371)
    w = np.where(rng.random((3, 256)) < share, rng.choice([-d, d], (3, 256)), 0).astype("f4")
    if name == "q1_0":
        w = np.where(w >= 0, d, -d)
    np.testing.assert_allclose(fc.quantize(w, name).dequantize(), w, rtol=1e-3)


@pytest.mark.parametrize("name", [*TERNARY, "q1_0"])
def test_one_scale_for_the_tensor_is_the_mean_magnitude(rng, name):
    """BitNet b1.58: w = gamma clip(round(w / gamma), -1, 1)."""
    w = normal(rng, 4, 512, dtype=np.float32)
    gamma = np.float16(np.abs(w).mean(dtype="f8")).astype("f4")
    expected = gamma * np.clip(np.rint(w / gamma), -1, 1)
    if name == "q1_0":
        expected = gamma * np.where(w >= 0, np.float32(1), np.float32(-1))
    found = fc.quantize(w, name, scale="tensor").dequantize()
    np.testing.assert_array_equal(found, expected)
    each = fc.quantize(np.stack([w, 2 * w]), name, scale="tensor")
    np.testing.assert_array_equal(each[0].dequantize(), found)
    np.testing.assert_array_equal(each[1].dequantize(), 2 * found)


def test_the_largest_magnitude_is_no_scale_for_ternary_weights(rng):
    w = normal(rng, 8, 256, dtype=np.float32)
    amax = np.abs(w).max(axis=1, keepdims=True)
    assert relative(np.rint(w / amax) * amax, w) > 0.7
    assert relative(fc.quantize(w, "tq2_0").dequantize(), w) < 0.46


def test_blocks_of_q2_0_are_told_apart_by_their_size(rng):
    for name, block in (("q2_0", 64), ("q2_0 of 128", 128)):
        data = random_blocks(rng, name, 3, 384 // block)
        q = fc.QuantizedTensor.from_bytes("q2_0", data, (3, 384))
        assert q.format == "q2_0"
        assert q.to_bytes() == data.tobytes()
        np.testing.assert_array_equal(q.dequantize(), decoded(name, data).astype("f4"))


def test_code_three_of_q2_0_is_twice_the_scale():
    data = np.frombuffer(np.array([1.5], "<f2").tobytes() + b"\xff" * 16, np.uint8)
    q = fc.QuantizedTensor.from_bytes("q2_0", data, (1, 64))
    assert (q.dequantize() == 3).all()
    assert q.to_bytes() == data.tobytes()
