"""The formats of one block of bytes: bytes to numbers, numbers to bytes, bad bytes."""

import re

import numpy as np
import pytest
from support import normal
from support_quantised import BLOCKS, HALVES, decoded, random_blocks

import ffncore as fc
from ffncore import QuantizedTensor

NAMES = list(BLOCKS)


def format_of(name):
    return name.split()[0]


def tensor(name, data):
    shape = (*data.shape[:-2], data.shape[-2] * BLOCKS[name][1])
    return QuantizedTensor.from_bytes(format_of(name), data.tobytes(), shape)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (2, 3, 2)], ids=str)
def test_numbers_are_those_of_a_decoder_of_single_weights(rng, name, shape):
    data = random_blocks(rng, name, *shape)
    q = tensor(name, data)
    assert q.format == format_of(name)
    found = q.dequantize()
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, decoded(name, data).astype("f4"))


@pytest.mark.parametrize("name", NAMES)
def test_bytes_come_back(rng, name):
    data = random_blocks(rng, name, 5, 2)
    q = tensor(name, data)
    back = q.to_bytes()
    assert q.nbytes == len(back) == data.size
    assert q.bits_per_weight == 8 * BLOCKS[name][2] / BLOCKS[name][1]
    if name != "tq1_0":
        assert back == data.tobytes()
    again = QuantizedTensor.from_bytes(q.format, back, q.shape)
    np.testing.assert_array_equal(again.dequantize(), q.dequantize())
    assert again.to_bytes() == back


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [1e-3, 1.0, 50.0])
def test_quantising_what_a_tensor_stands_for_changes_little(rng, name, width):
    """Weights that the format has exactly come out the same, up to the choice of their scale."""
    w = normal(rng, 4, 3 * 256, dtype=np.float32) * np.float32(width)
    once = fc.quantize(w, format_of(name)).dequantize()
    twice = fc.quantize(once, format_of(name)).dequantize()
    error = np.linalg.norm(once - w)
    assert np.linalg.norm(twice - once) <= 0.35 * error


@pytest.mark.parametrize("name", NAMES)
def test_zeros_become_zeros(name):
    q = fc.quantize(np.zeros((2, 256), "f4"), format_of(name))
    assert not q.dequantize().any()


@pytest.mark.parametrize("name", NAMES)
def test_wrong_sizes(rng, name):
    _, block, size = BLOCKS[name]
    data = random_blocks(rng, name, 4, 1).tobytes()
    for given in (data[:-1], data[:-size], data + b"0", b""):
        sentence = f"data has {len(given)} bytes; expected {{}} for {format_of(name)} weights"
        first = 64 if format_of(name) == "q2_0" else block
        expected = len(data) if block == first else block // first * 18 * 4
        with pytest.raises(ValueError, match=re.escape(sentence.format(expected))):
            QuantizedTensor.from_bytes(format_of(name), given, (4, block))
    if name == "q2_0 of 128":
        return
    with pytest.raises(ValueError, match=f"data has rows of {block + 1} weights; .*multiple"):
        QuantizedTensor.from_bytes(format_of(name), data, (4, block + 1))
    with pytest.raises(ValueError, match=f"w has rows of {block // 2} weights; .*multiple"):
        fc.quantize(np.ones((4, block // 2), "f4"), format_of(name))


@pytest.mark.parametrize("name", [name for name in NAMES if HALVES[name]])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_scales_that_are_not_finite(rng, name, bad):
    for at in HALVES[name]:
        data = random_blocks(rng, name, 4, 3)
        data[2, 1, at : at + 2] = np.array([bad], "<f2").view(np.uint8)
        with pytest.raises(ValueError, match=r"^w.up has a scale of .* in block 1 of row 2; exp"):
            QuantizedTensor.from_bytes(format_of(name), data, (4, 3 * BLOCKS[name][1]), name="w.up")


def test_weights_that_are_too_large_for_their_scales():
    w = np.full((2, 256), 1e7, "f4")
    for name in ("q8_0", "q4_0", "q4_k", "q6_k", "q1_0", "tq2_0", "int4"):
        if name == "q8_0":
            assert fc.quantize(w / 2, name).dequantize().max() > 4.9e6
        with pytest.raises(ValueError, match=r"^w needs a scale of .*expected at most 65504"):
            fc.quantize(w * 1e3, name)
