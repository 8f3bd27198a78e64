"""int8 and int4: codes beside scales, zeros and the groups of inputs."""

import re

import numpy as np
import pytest
from support import normal

import ffncore as fc
from ffncore import QuantizedTensor
from ffncore.encodings.parts import pack_nibbles, unpack_nibbles


def int4(rng, shape=(6, 8), groups=2, dtype=np.float32, **more):
    codes = rng.integers(0, 16, shape, dtype=np.uint8)
    scales = normal(rng, *shape[:-1], groups).astype(dtype)
    return {"codes": codes, "scales": scales, **more}


@pytest.mark.parametrize("lead", [(), (3,)], ids=str)
@pytest.mark.parametrize("zeros", ["none", "integers", "fractions"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_int4(rng, lead, zeros, dtype):
    shape = (*lead, 6, 8)
    parts = int4(rng, shape, dtype=dtype)
    z = 8
    if zeros == "integers":
        parts["zeros"] = z = rng.integers(0, 17, (*lead, 6, 2))
    elif zeros == "fractions":
        parts["zeros"] = z = rng.uniform(0, 15, (*lead, 6, 2)).astype("f4")
    q = QuantizedTensor.from_parts("int4", shape, **parts)
    z = np.repeat(np.broadcast_to(np.asarray(z, "f4"), (*lead, 6, 2)), 4, axis=-1)
    s = np.repeat(parts["scales"].astype("f4"), 4, axis=-1)
    np.testing.assert_array_equal(q.dequantize(), (parts["codes"].astype("f4") - z) * s)
    for name, array in q.parts().items():
        np.testing.assert_array_equal(array, parts[name])
    assert QuantizedTensor.from_parts("int4", shape, **q.parts()) == q
    assert q.nbytes == parts["codes"].size // 2 + parts["scales"].nbytes + (
        0 if zeros == "none" else q.parts()["zeros"].nbytes
    )


@pytest.mark.parametrize("k", [1, 7, 8])
def test_two_codes_in_a_byte(rng, k):
    codes = rng.integers(0, 16, (3, k), dtype=np.uint8)
    packed = pack_nibbles(codes)
    assert packed.shape == (3, (k + 1) // 2)
    np.testing.assert_array_equal(packed[:, 0] & 15, codes[:, 0])
    np.testing.assert_array_equal(unpack_nibbles(packed, k), codes)


def test_inputs_of_a_group_may_stand_anywhere(rng):
    g_idx = np.array([1, 0, 0, 1, 1, 0, 1, 0])
    parts = int4(rng, zeros=rng.integers(0, 16, (6, 2)), g_idx=g_idx)
    q = QuantizedTensor.from_parts("int4", (6, 8), **parts)
    expected = (parts["codes"] - parts["zeros"].astype("f4")[:, g_idx]) * parts["scales"][:, g_idx]
    np.testing.assert_array_equal(q.dequantize(), expected)
    each = {n: np.stack([a, a[::-1]]) for n, a in parts.items()}
    experts = QuantizedTensor.from_parts("int4", (2, 6, 8), **each)
    np.testing.assert_array_equal(experts.dequantize()[0], expected)
    assert experts[0] == q
    np.testing.assert_array_equal(experts[1].dequantize(), experts.dequantize()[1])


@pytest.mark.parametrize("shape", [(), (1,), (6,), (6, 1)], ids=str)
def test_int8(rng, shape):
    codes = rng.integers(-128, 128, (6, 10)).astype(np.int8)
    scales = normal(rng, *shape, dtype=np.float32) if shape else np.array(0.3, "f4")
    q = QuantizedTensor.from_parts("int8", (6, 10), codes=codes, scales=scales)
    expected = codes * (scales[:, None] if shape == (6,) else scales)
    np.testing.assert_array_equal(q.dequantize(), expected)


def test_int8_has_the_largest_weight_of_a_row_at_127(rng):
    w = normal(rng, 5, 33, dtype=np.float32)
    q = fc.quantize(w, "int8")
    codes, scales = q.parts()["codes"], q.parts()["scales"]
    assert (np.abs(codes).max(axis=1) == 127).all()
    np.testing.assert_array_equal(scales[:, 0], np.abs(w).max(axis=1) / np.float32(127))
    np.testing.assert_array_equal(codes, np.rint(w / scales))


@pytest.mark.parametrize("group", [None, 32, 64])
def test_groups_of_int4(rng, group):
    w = normal(rng, 4, 256, dtype=np.float32) + np.float32(0.5)
    q = fc.quantize(w, "int4", group=group)
    assert q.parts()["scales"].shape == (4, 256 // (group or 128))
    span = np.ptp(w.reshape(4, -1, group or 128), axis=2, keepdims=True)
    error = np.abs(q.dequantize() - w).reshape(4, -1, group or 128)
    assert (error <= span / 15 * 0.51).all()


BAD = [
    ({"codes": np.zeros((6, 7), "u1")}, ValueError, "q.codes has shape (6, 7); expected (6, 8)"),
    ({"codes": np.zeros((6, 8))}, TypeError, "q.codes has dtype float64; expected uint8"),
    ({"codes": np.full((6, 8), 16, "u1")}, ValueError, "q.codes has 16; expected codes from 0 to"),
    ({"codes": [[1]]}, TypeError, "q.codes is of type list; expected a numpy array"),
    ({"codes": None}, ValueError, "codes is None; expected an array for format 'int4'"),
    ({"scales": None}, ValueError, "scales is None; expected an array for format 'int4'"),
    ({"scales": np.ones((6, 3), "f4")}, ValueError, "q.scales has 3 groups in a row; expected a"),
    ({"scales": np.ones((5, 2), "f4")}, ValueError, "q.scales has shape (5, 2); expected 6 rows"),
    ({"scales": np.ones((2, 6, 2), "f4")}, ValueError, "q.scales has shape (2, 6, 2); expected"),
    ({"scales": np.ones((6, 0), "f4")}, ValueError, "q.scales has 0 groups in a row"),
    ({"scales": np.ones((6, 2))}, TypeError, "q.scales has dtype float64; expected float32 or 16"),
    ({"scales": np.ones((6, 2), "i4")}, TypeError, "q.scales has dtype int32; expected float32"),
    ({"scales": np.full((6, 2), np.nan, "f4")}, ValueError, "q.scales has nan at (0, 0); expected"),
    ({"zeros": np.full((6, 2), 17)}, ValueError, "q.zeros has 17; expected zeros from 0 to 16"),
    ({"zeros": np.full((6, 2), -1)}, ValueError, "q.zeros has -1; expected zeros from 0 to 16"),
    ({"zeros": np.ones((6, 4), "i4")}, ValueError, "q.zeros has shape (6, 4); expected (6, 2)"),
    ({"zeros": np.full((6, 2), np.inf, "f4")}, ValueError, "q.zeros has inf at (0, 0); expected"),
    ({"g_idx": np.zeros(7, int)}, ValueError, "q.g_idx has shape (7,); expected (8,), one per"),
    ({"g_idx": np.full(8, 2)}, ValueError, "q.g_idx has 2; expected groups from 0 to 1"),
    ({"g_idx": np.full(8, -1)}, ValueError, "q.g_idx has -1; expected groups from 0 to 1"),
    ({"g_idx": np.zeros(8)}, TypeError, "q.g_idx has dtype float64; expected integers"),
    ({"global_scale": 1.0}, ValueError, "global_scale is given; expected None for format 'int4'"),
]


@pytest.mark.parametrize("change, error, sentence", BAD)
def test_bad_parts(rng, change, error, sentence):
    parts = int4(rng) | change
    with pytest.raises(error, match=re.escape(sentence)):
        QuantizedTensor.from_parts("int4", (6, 8), **parts)


def test_groups_that_do_not_divide_the_row():
    w = np.ones((2, 192), "f4")
    with pytest.raises(ValueError, match=r"w has rows of 192 weights; .*group of 128 for int4 \("):
        fc.quantize(w, "int4")
    assert fc.quantize(w, "int4", group=64).shape == (2, 192)
    with pytest.raises(ValueError, match="group is 64; expected 32, that of q4_0"):
        fc.quantize(w, "q4_0", group=64)
    with pytest.raises(ValueError, match="group is 64; expected None for int8"):
        fc.quantize(w, "int8", group=64)
