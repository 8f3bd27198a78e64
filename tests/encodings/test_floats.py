"""fp8_e4m3, nvfp4 and nf4: every code, and where scales belong."""

import math
import re

import numpy as np
import pytest
from support import normal

import ffncore as fc
from ffncore import QuantizedTensor
from ffncore.encodings.floats import E4M3, check_e4m3


def e4m3(code):
    exponent, mantissa = code >> 3 & 15, code & 7
    number = math.ldexp(mantissa, -9) if exponent == 0 else math.ldexp(8 + mantissa, exponent - 10)
    return -number if code & 128 else number


def test_every_code_of_e4m3():
    codes = np.array([c for c in range(256) if c & 127 != 127], np.uint8)
    np.testing.assert_array_equal(E4M3.of(codes), [e4m3(int(c)) for c in codes])


def test_rounding_to_e4m3_is_that_of_ml_dtypes(rng):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = np.concatenate(
        [
            (normal(rng, 4000) * np.exp2(rng.integers(-12, 8, 4000))).astype("f4"),
            np.arange(-448, 449, dtype="f4"),
            np.arange(-64, 65, dtype="f4") * np.float32(2.0**-11),
        ]
    )
    values = values[np.abs(values) <= 448]
    theirs = values.astype(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(E4M3.nearest(values.copy()), theirs.view(np.uint8))
    np.testing.assert_array_equal(check_e4m3("codes", theirs), theirs.view(np.uint8))


SHAPE = (130, 260)
SCALES = [("tensor", (1, 1)), ("channel", (130, 1)), ("group", (2, 3))]


@pytest.mark.parametrize("scale, shape", SCALES)
@pytest.mark.parametrize("lead", [(), (2,)], ids=str)
def test_scales_of_fp8(rng, scale, shape, lead):
    w = normal(rng, *lead, *SHAPE, dtype=np.float32)
    w[..., 128:, :] *= 30
    q = fc.quantize(w, "fp8_e4m3", scale=scale)
    parts = q.parts()
    assert parts["scales"].shape == (*lead, *shape)
    codes, s = E4M3.of(parts["codes"]), parts["scales"]
    if scale == "group":
        s = np.repeat(np.repeat(s, 128, axis=-2), 128, axis=-1)[..., :130, :260]
    np.testing.assert_array_equal(q.dequantize(), codes * s)
    assert np.abs(codes).max() == 448
    assert QuantizedTensor.from_parts("fp8_e4m3", w.shape, **parts) == q
    if lead:
        assert q[1] == fc.quantize(w[1], "fp8_e4m3", scale=scale)


def test_one_number_and_one_for_each_output(rng):
    codes = rng.integers(0, 127, SHAPE, dtype=np.uint8)
    for scales in (np.array(0.5, "f4"), np.array([0.5], "f4"), normal(rng, 130, dtype=np.float32)):
        q = QuantizedTensor.from_parts("fp8_e4m3", SHAPE, codes=codes, scales=scales)
        expected = E4M3.of(codes) * (scales[:, None] if scales.size > 1 else scales)
        np.testing.assert_array_equal(q.dequantize(), expected)


def test_nvfp4(rng):
    codes = rng.integers(0, 16, (3, 32), dtype=np.uint8)
    scales = rng.integers(0, 127, (3, 2), dtype=np.uint8)
    magnitudes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], "f4")
    values = np.where(codes < 8, magnitudes[codes & 7], -magnitudes[codes & 7])
    for g in (None, 3.7):
        q = QuantizedTensor.from_parts("nvfp4", (3, 32), codes=codes, scales=scales, global_scale=g)
        s = E4M3.of(scales) if g is None else E4M3.of(scales) / np.float32(g)
        np.testing.assert_array_equal(q.dequantize(), values * np.repeat(s, 16, axis=1))
        assert q.bits_per_weight == (4.5 if g is None else 4.5 + 32 / 96)
        assert QuantizedTensor.from_parts("nvfp4", (3, 32), **q.parts()) == q


@pytest.mark.parametrize("shape", [(2, 128), (3, 32), (2, 5, 32)], ids=str)
def test_nf4_counts_its_blocks_through_all_rows(rng, shape):
    from ffncore.encodings.floats import _NF4

    codes = rng.integers(0, 16, shape, dtype=np.uint8)
    blocks = -(-shape[-1] * shape[-2] // 64)
    scales = normal(rng, *shape[:-2], blocks, dtype=np.float32)
    q = QuantizedTensor.from_parts("nf4", shape, codes=codes, scales=scales)
    found = q.dequantize().reshape(*shape[:-2], -1)
    flat = codes.reshape(*shape[:-2], -1)
    for i in range(flat.shape[-1]):
        expected = np.array(_NF4, "f4")[flat[..., i]] * scales[..., i // 64]
        np.testing.assert_array_equal(found[..., i], expected)
    if len(shape) == 3:
        np.testing.assert_array_equal(q[1].dequantize(), q.dequantize()[1])


def nvfp4(**more):
    return {"codes": np.zeros((3, 32), "u1"), "scales": np.zeros((3, 2), "u1"), **more}


def fp8(**more):
    return {"codes": np.zeros(SHAPE, "u1"), "scales": np.ones((2, 3), "f4"), **more}


NAN = np.full(SHAPE, 255, "u1")
BAD = [
    ("fp8_e4m3", SHAPE, fp8(codes=NAN), ValueError, "q.codes has a NaN at (0, 0); expected"),
    ("fp8_e4m3", SHAPE, fp8(codes=NAN.astype("i2")), TypeError, "q.codes has dtype int16; exp"),
    ("fp8_e4m3", (2, 3), fp8(), ValueError, "q.codes has shape (130, 260); expected (2, 3)"),
    ("fp8_e4m3", SHAPE, fp8(scales=np.ones((3, 2), "f4")), ValueError, "q.scales has shape (3, 2)"),
    ("fp8_e4m3", SHAPE, fp8(scales=np.full((2, 3), np.inf, "f4")), ValueError, "q.scales has inf"),
    ("fp8_e4m3", SHAPE, fp8(zeros=np.ones(1, "f4")), ValueError, "zeros is given; expected None"),
    ("nvfp4", (3, 33), nvfp4(codes=np.zeros((3, 33), "u1")), ValueError, "q has rows of 33"),
    ("nvfp4", (3, 32), nvfp4(scales=np.zeros((3, 4), "u1")), ValueError, "q.scales has shape (3"),
    ("nvfp4", (3, 32), nvfp4(scales=np.full((3, 2), 127, "u1")), ValueError, "q.scales has a NaN"),
    ("nvfp4", (3, 32), nvfp4(global_scale=0.0), ValueError, "q.global_scale is 0.0; expected one"),
    ("nvfp4", (3, 32), nvfp4(global_scale=np.nan), ValueError, "q.global_scale has nan"),
    ("nf4", (3, 32), {**nvfp4(), "scales": np.ones(3, "f4")}, ValueError, "q.scales has shape (3"),
]  # fmt: skip


@pytest.mark.parametrize("name, shape, parts, error, sentence", BAD)
def test_bad_parts(name, shape, parts, error, sentence):
    with pytest.raises(error, match=re.escape(sentence)):
        QuantizedTensor.from_parts(name, shape, **parts)


@pytest.mark.parametrize("name", ["nvfp4", "nf4"])
def test_formats_that_are_read_only(name):
    with pytest.raises(ValueError, match=f"format '{name}' is read only; expected one that can"):
        fc.quantize(np.ones((4, 64), "f4"), name)
