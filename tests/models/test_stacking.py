"""Rows of quantised matrices, and stacks of experts."""

import numpy as np
import pytest

import ffncore as fc
from ffncore.models.stacking import rows, select, stacked

W = (np.random.default_rng(5).standard_normal((3, 512, 256)) / 16).astype("f4")
MADE = [name for name, info in fc.formats().items() if info.can_quantize]


@pytest.mark.parametrize("format", MADE)
def test_the_numbers_stay(format):
    q = fc.quantize(W, format)
    whole = q.dequantize()
    np.testing.assert_array_equal(rows(q, slice(256, None)).dequantize(), whole[:, 256:])
    np.testing.assert_array_equal(rows(q[0], slice(0, 256)).dequantize(), whole[0, :256])
    assert stacked([q[e] for e in range(3)]) == q
    np.testing.assert_array_equal(select(q, [0, 2]).dequantize(), whole[[0, 2]])
    assert select(q, range(3)) is q


def test_what_cannot_be():
    with pytest.raises(ValueError, match="share a matrix of fp8_e4m3"):
        rows(fc.quantize(W[0], "fp8_e4m3"), slice(0, None, 2))
    with pytest.raises(ValueError, match=r"stored as q8_0 .* and as q4_0"):
        stacked([fc.quantize(W[0], "q8_0"), fc.quantize(W[1], "q4_0")])
