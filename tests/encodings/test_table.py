"""fc.formats and the names of formats."""

import numpy as np
import pytest

import ffncore as fc

BITS = {
    "q8_0": 8.5, "q4_0": 4.5, "q4_1": 5.0, "q4_k": 4.5, "q5_k": 5.5, "q6_k": 6.5625, "q1_0": 1.125,
    "q2_0": 2.25, "tq1_0": 1.6875, "tq2_0": 2.0625, "mxfp4": 4.25, "int8": 8.0, "int4": 4.1875,
    "fp8_e4m3": 8.0, "nvfp4": 4.5, "nf4": 4.5,
}  # fmt: skip


def test_formats_and_their_bits():
    found = fc.formats()
    assert {name: info.bits_per_weight for name, info in found.items()} == BITS
    assert {name for name, info in found.items() if not info.can_quantize} == {"nvfp4", "nf4"}
    assert found["q6_k"].group == 16
    assert found["int8"].group is None
    assert isinstance(found["q4_0"], fc.FormatInfo)


def test_unknown_formats():
    with pytest.raises(ValueError, match=r"format 'q4_K' is not known; the nearest .* 'q4_k'"):
        fc.quantize(np.ones((1, 1)), "q4_K")
    with pytest.raises(ValueError, match="format 'iq3' is not known; known are q8_0, "):
        fc.QuantizedTensor.from_bytes("iq3", b"", (1, 1))
    with pytest.raises(TypeError, match="format is of type int; expected a name"):
        fc.QuantizedTensor.from_bytes(42, b"", (1, 1))
