"""The formats of GGUF against the numpy code of the gguf package, bit by bit.

The package dequantises all of them but q1_0 and q2_0, for which support_quantised.py has decoders.
It does not make q4_k, q5_k and q6_k.
"""

import numpy as np
import pytest
from support_quantised import BLOCKS, random_blocks, relative

import ffncore as fc

gguf = pytest.importorskip("gguf")
Type, quants = gguf.GGMLQuantizationType, gguf.quants

KNOWN = [name for name in BLOCKS if hasattr(Type, name.upper()) and name not in ("q1_0", "q2_0")]
MADE = ["q8_0", "q4_0", "q4_1", "mxfp4", "tq1_0", "tq2_0"]


def test_every_format_of_the_package_is_compared():
    assert set(KNOWN) == {name.split()[0] for name in BLOCKS} - {"q1_0", "q2_0"}


def theirs(name, data, shape):
    return quants.dequantize(data.reshape(*shape[:-1], -1), Type[name.upper()])


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("lead", [(7,), (2, 3)], ids=str)
def test_any_bytes(name, lead):
    rng = np.random.default_rng(3)
    shape = (*lead, 3 * BLOCKS[name][1])
    data = random_blocks(rng, name, *lead, 3)
    found = fc.QuantizedTensor.from_bytes(name, data, shape).dequantize()
    expected = theirs(name, data, shape)
    assert found.dtype == expected.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", MADE)
def test_tensors_that_the_package_made(name):
    rng = np.random.default_rng(4)
    w = (rng.standard_normal((5, 512)) / 20).astype("f4")
    data = quants.quantize(w, Type[name.upper()])
    q = fc.QuantizedTensor.from_bytes(name, data, w.shape)
    np.testing.assert_array_equal(q.dequantize(), theirs(name, data, w.shape))
    assert q.to_bytes() == data.tobytes()
    ours = fc.quantize(w, name)
    assert relative(ours.dequantize(), w) <= 1.001 * relative(q.dequantize(), w)


@pytest.mark.parametrize("name", KNOWN)
def test_the_package_reads_what_we_write(name):
    rng = np.random.default_rng(5)
    w = (rng.standard_normal((5, 512)) / 20).astype("f4")
    q = fc.quantize(w, name)
    data = np.frombuffer(q.to_bytes(), np.uint8)
    np.testing.assert_array_equal(theirs(name, data, w.shape), q.dequantize())


def test_the_scalar_decoders_agree():
    """Those with which the other formats are tested."""
    rng = np.random.default_rng(6)
    for name in KNOWN:
        decode, block, _ = BLOCKS[name]
        data = random_blocks(rng, name, 4, 1)
        numbers = [decode(row.tobytes()) for row in data[:, 0]]
        np.testing.assert_array_equal(theirs(name, data, (4, block)), np.float32(numbers))
