"""Arrays of checkpoints: packed here as other programs pack them, weight by weight."""

import re

import numpy as np
import pytest
from support import normal

from ffncore.encodings.floats import _NF4, E4M3
from ffncore.quantisation import converters
from ffncore.quantisation.converters import (
    from_awq,
    from_fp8,
    from_gptq,
    from_mxfp4,
    from_nf4,
    from_nvfp4,
    from_pack_quantized,
)

OUT, IN, GROUPS = 16, 24, 3
AWQ = (0, 2, 4, 6, 1, 3, 5, 7)


def words(nibbles, order=range(8)):
    """Groups of 8 nibbles as int32: nibble i is entry order[i] of the group."""
    total = 0
    for i, entry in enumerate(order):
        total |= int(nibbles[entry]) << 4 * i
    return total - (1 << 32) if total >= 1 << 31 else total


def along_out(matrix, order=range(8)):
    """[rows, out] packed along out: int32 [rows, out / 8]."""
    return np.array(
        [[words(row[c : c + 8], order) for c in range(0, len(row), 8)] for row in matrix], np.int32
    )


@pytest.fixture
def codes(rng):
    return rng.integers(0, 16, (IN, OUT), dtype=np.uint8)


@pytest.fixture
def scales(rng):
    return normal(rng, GROUPS, OUT).astype(np.float16)


def expected(codes, zeros, scales, g_idx=None):
    group = np.arange(IN) // (IN // GROUPS) if g_idx is None else g_idx
    z, s = zeros.astype("f4")[group], scales.astype("f4")[group]
    return ((codes.astype("f4") - z) * s).T


def test_awq(rng, codes, scales):
    zeros = rng.integers(0, 16, (GROUPS, OUT), dtype=np.uint8)
    q = from_awq(along_out(codes, AWQ), scales, along_out(zeros, AWQ))
    assert q.shape == (OUT, IN)
    np.testing.assert_array_equal(q.dequantize(), expected(codes, zeros, scales))
    assert q.parts()["scales"].dtype == np.float16


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("order", ["groups", "any"])
def test_gptq(rng, codes, scales, version, order):
    stored = rng.integers(0, 16, (GROUPS, OUT), dtype=np.uint8)
    stored[0, 0] = 15  # in version 1 a zero of 16, without a carry into its neighbour
    g_idx = np.arange(IN) // (IN // GROUPS) if order == "groups" else rng.integers(0, GROUPS, IN)
    packed = along_out(codes.T).T.copy()
    q = from_gptq(packed, scales, along_out(stored), g_idx.astype(np.int32), version=version)
    zeros = stored + (1 if version == 1 else 0)
    np.testing.assert_array_equal(q.dequantize(), expected(codes, zeros, scales, g_idx))
    assert ("g_idx" in q.parts()) == (order == "any")


@pytest.mark.parametrize("label", [1, 2])
@pytest.mark.parametrize("stored", [7, 8])
def test_a_version_that_lies_is_found_for_symmetric_models(codes, scales, label, stored):
    zeros = np.full((GROUPS, OUT), stored, np.uint8)
    q = from_gptq(along_out(codes.T).T.copy(), scales, along_out(zeros), version=label)
    eight = np.full((GROUPS, OUT), 8)
    np.testing.assert_array_equal(q.dequantize(), expected(codes, eight, scales))


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("zero_point", ["none", "int8", "packed"])
def test_pack_quantized(rng, bits, zero_point):
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    q = rng.integers(low, high, (OUT, IN))
    z = rng.integers(low, high, (OUT, GROUPS)) if zero_point != "none" else np.zeros((OUT, GROUPS))
    scale = normal(rng, OUT, GROUPS, dtype=np.float32)

    def packed(rows):
        found = []
        for row in rows:
            total = sum(int(v - low) << bits * i for i, v in enumerate(row))
            data = total.to_bytes(-(-len(row) * bits // 32) * 4, "little")
            found.append(np.frombuffer(data, "<i4"))
        return np.array(found, np.int32)

    given = {"none": None, "int8": z.astype(np.int8), "packed": packed(z.T.astype(int)).T}
    tensor = from_pack_quantized(
        packed(q), scale, (OUT, IN), bits=bits, weight_zero_point=given[zero_point]
    )
    assert tensor.format == ("int4" if bits <= 4 else "int8")
    group = np.arange(IN) // (IN // GROUPS)
    numbers = (q.astype("f4") - z.astype("f4")[:, group]) * scale[:, group]
    np.testing.assert_array_equal(tensor.dequantize(), numbers)


def test_fp8(rng):
    weight = rng.integers(0, 127, (130, 140), dtype=np.uint8)
    scale = normal(rng, 2, 2, dtype=np.float32)
    q = from_fp8(weight, scale)
    spread = np.repeat(np.repeat(scale, 128, axis=0), 128, axis=1)[:130, :140]
    np.testing.assert_array_equal(q.dequantize(), E4M3.of(weight) * spread)


@pytest.mark.parametrize("lead", [(), (2,)], ids=str)
def test_mxfp4(rng, lead):
    blocks = rng.integers(0, 256, (*lead, 3, 2, 16), dtype=np.uint8)
    scales = rng.integers(100, 140, (*lead, 3, 2), dtype=np.uint8)
    q = from_mxfp4(blocks, scales)
    assert q.shape == (*lead, 3, 64)
    magnitudes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], "f4")
    found = q.dequantize().reshape(*lead, 3, 2, 32)
    for i in range(32):
        code = blocks[..., i // 2] >> 4 * (i % 2) & 15
        sign = np.where(code < 8, np.float32(1), np.float32(-1))
        numbers = np.ldexp(sign * magnitudes[code & 7], scales.astype(int) - 127)
        np.testing.assert_array_equal(found[..., i], numbers)


def test_nvfp4(rng):
    packed = rng.integers(0, 256, (3, 16), dtype=np.uint8)
    scale = rng.integers(1, 127, (3, 2), dtype=np.uint8)
    q = from_nvfp4(packed, scale, np.array([1234.5], "f4"))
    magnitudes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], "f4")
    s = E4M3.of(scale) / np.float32(1234.5)
    for i in range(32):
        code = packed[:, i // 2] >> 4 * (i % 2) & 15
        number = np.where(code < 8, magnitudes[code & 7], -magnitudes[code & 7])
        np.testing.assert_array_equal(q.dequantize()[:, i], number * s[:, i // 16])


@pytest.mark.parametrize("nested", [False, True])
def test_nf4(rng, nested):
    shape = (5, 128)
    weight = rng.integers(0, 256, (5 * 128 // 2, 1), dtype=np.uint8)
    absmax = rng.random(10).astype("f4")
    more = {}
    if nested:
        codes, table = rng.integers(0, 256, 10, dtype=np.uint8), normal(rng, 256, dtype=np.float32)
        more = {"nested_absmax": np.array([0.7], "f4"), "nested_map": table, "nested_offset": 0.25}
        absmax = table[codes] * np.float32(0.7) + np.float32(0.25)
    q = from_nf4(weight, codes if nested else absmax, shape, **more)
    flat = q.dequantize().reshape(-1)
    for i in range(640):
        code = weight[i // 2, 0] >> (0 if i % 2 else 4) & 15
        assert flat[i] == np.float32(_NF4[code]) * absmax[i // 64]


WORDS, HALF = np.zeros((3, 2), np.int32), np.ones((3, 16), np.float16)
BAD = [
    (lambda: from_awq(WORDS.astype("i8"), HALF, WORDS), TypeError, "q.qweight has dtype int64; ex"),
    (lambda: from_awq(WORDS[0], HALF, WORDS), ValueError, "q.qweight has shape (2,); expected two"),
    (lambda: from_awq(WORDS, HALF[:2], WORDS), ValueError, "q.scales has 2 groups in a row; exp"),
    (lambda: from_gptq(WORDS, HALF, WORDS, version=3), ValueError, "version is 3; expected 1 or 2"),
    (lambda: from_pack_quantized(WORDS, HALF, (3, 9), bits=9), ValueError, "bits is 9; expected 1"),
    (lambda: from_pack_quantized(WORDS, HALF, (3, 17)), ValueError, "q.weight_packed has shape (3"),
    (lambda: from_mxfp4(HALF, HALF), TypeError, "q_blocks has dtype float16; expected uint8"),
    (lambda: from_nf4(np.zeros(7, "u1"), HALF, (3, 5)), ValueError, "q.weight has 7 bytes; expec"),
    (lambda: from_nvfp4(HALF, HALF, 1), TypeError, "q.weight_packed has dtype float16; expected"),
]


@pytest.mark.parametrize("call, error, sentence", BAD)
def test_bad_arrays(call, error, sentence):
    with pytest.raises(error, match="^" + re.escape(sentence)):
        call()


def test_shapes_of_mxfp4():
    data = np.zeros((2, 3, 16), np.uint8)
    with pytest.raises(ValueError, match=r"^w_blocks has shape \(2, 3, 16\) and w_scales \(2, 4\)"):
        converters.from_mxfp4(data, np.zeros((2, 4), np.uint8), name="w")
