"""QuantizedTensor as a value: made, copied, pickled, compared, refused."""

import copy
import mmap
import pickle
import re

import numpy as np
import pytest
from support import normal
from support_quantised import random_blocks

import ffncore as fc
from ffncore import QuantizedTensor

MADE = [name for name, info in fc.formats().items() if info.can_quantize]


def make(rng, name, *shape):
    return fc.quantize(normal(rng, *shape, dtype=np.float32), name)


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("shape", [(3, 256), (2, 3, 256)], ids=str)
def test_copies_and_pickles(rng, name, shape):
    q = make(rng, name, *shape)
    assert q.shape == shape
    assert q.ndim == len(shape)
    for again in (copy.copy(q), copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
        assert again == q
        assert again.nbytes == q.nbytes
        np.testing.assert_array_equal(again.dequantize(), q.dequantize())
    part = next(iter(q._parts))
    assert np.shares_memory(copy.copy(q)._parts[part], q._parts[part])
    assert not np.shares_memory(copy.deepcopy(q)._parts[part], q._parts[part])
    assert q != make(rng, name, *shape)
    assert q != "text"
    assert repr(q) == f"QuantizedTensor({name}, {shape}, {q.bits_per_weight:.4g} bits per weight)"


@pytest.mark.parametrize("name", MADE)
def test_experts(rng, name):
    w = normal(rng, 3, 4, 256, dtype=np.float32)
    q = fc.quantize(w, name)
    for e in range(3):
        assert q[e] == fc.quantize(w[e], name)
        np.testing.assert_array_equal(q[e].dequantize(), q.dequantize()[e])
    assert q[-1] == q[2]
    with pytest.raises(IndexError):
        q[3]
    with pytest.raises(TypeError, match="one matrix; expected one of experts for an index"):
        q[0][0]


def test_it_cannot_be_changed(rng):
    q = make(rng, "q8_0", 2, 32)
    with pytest.raises(AttributeError, match="QuantizedTensor cannot be changed; shape was"):
        q.shape = (1, 64)
    with pytest.raises(TypeError, match=r"cannot be constructed; expected fc.quantize"):
        QuantizedTensor()
    with pytest.raises(ValueError, match="read-only"):
        q.parts()["blocks"][0] = 0
    with pytest.raises(TypeError, match="unhashable"):
        hash(q)


def test_bytes_are_not_copied(rng):
    data = random_blocks(rng, "q4_0", 4, 1).reshape(-1)
    q = QuantizedTensor.from_bytes("q4_0", data, (4, 32))
    assert np.shares_memory(q.parts()["blocks"], data)
    assert data.flags.writeable
    with mmap.mmap(-1, data.size) as mapped:
        mapped[:] = data.tobytes()
        for buffer in (data.tobytes(), bytearray(data), memoryview(data), mapped):
            again = QuantizedTensor.from_bytes("q4_0", buffer, [4, 32])
            assert again == q
            assert again.shape == (4, 32)
        del again, buffer


BAD_BYTES = [
    (("q4_0", b"", 5), TypeError, "shape of data is 5; expected a tuple of integers"),
    (("q4_0", b"", (2.0, 32)), TypeError, "shape of data is (2.0, 32); expected a tuple of"),
    (("q4_0", b"", (32,)), ValueError, "shape of data is (32,); expected (out, in) or (n_exp"),
    (("q4_0", b"", (0, 32)), ValueError, "shape of data is (0, 32); expected (out, in)"),
    (("q4_0", b"", (-2, 32)), ValueError, "shape of data is (-2, 32); expected (out, in)"),
    (("q4_0", b"", (2**40, 2**40)), ValueError, "expected at most 144115188075855872 weights"),
    (("q4_0", "text", (2, 32)), TypeError, "data is of type str; expected bytes, or a uint8"),
    (("q4_0", None, (2, 32)), TypeError, "data is of type NoneType; expected bytes"),
    (("q4_0", np.zeros(36), (2, 32)), TypeError, "data has dtype float64; expected uint8"),
    (("int8", b"", (2, 32)), ValueError, "format 'int8' consists of codes, scales, zeros, g_idx;"),
]


@pytest.mark.parametrize("arguments, error, sentence", BAD_BYTES)
def test_bad_bytes(arguments, error, sentence):
    with pytest.raises(error, match=re.escape(sentence)):
        QuantizedTensor.from_bytes(*arguments)


def test_the_other_way_to_make_it(rng):
    ones = np.ones((2, 32), "u1")
    with pytest.raises(ValueError, match=r"format 'q4_0' is one block of bytes; expected .*from_b"):
        QuantizedTensor.from_parts("q4_0", (2, 32), codes=ones, scales=ones)
    q = make(rng, "int4", 2, 128)
    with pytest.raises(ValueError, match=r"format 'int4' consists of codes, .*expected parts\(\)"):
        q.to_bytes()
    with pytest.raises(ValueError, match=r"^w.up.codes has shape"):
        QuantizedTensor.from_parts("int4", (2, 3), **q.parts(), name="w.up")


def test_a_changed_pickle_is_refused(rng):
    q = make(rng, "q8_0", 2, 32)
    make_again, (name, _, parts, scale) = q.__reduce__()
    with pytest.raises(ValueError, match="data has 68 bytes; expected 136 for q8_0 weights"):
        make_again(name, (4, 32), parts, scale)
    q = make(rng, "int4", 2, 128)
    make_again, (name, _, parts, scale) = q.__reduce__()
    assert parts["codes"].nbytes == 128
    with pytest.raises(
        ValueError, match=r"codes of 4 bits have shape \(2, 64\) .*expected 32 bytes"
    ):
        make_again(name, (2, 64), parts, scale)
