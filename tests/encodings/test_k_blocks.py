"""q4_k, q5_k and q6_k: scales that are codes."""

import numpy as np
import pytest
from support import normal
from support_quantised import relative, scale_and_minimum

import ffncore as fc
from ffncore.encodings.k_blocks import _joined, _split


def test_twelve_bytes_hold_sixteen_numbers_of_six_bits(rng):
    s, m = rng.integers(0, 64, (2, 200, 8), dtype=np.uint8)
    packed = _joined(s, m)
    assert packed.shape == (200, 12)
    for found, expected in zip(_split(packed), (s, m), strict=True):
        np.testing.assert_array_equal(found, expected)
    for row, b in enumerate(packed.astype(int)):
        assert [scale_and_minimum(b, j) for j in range(8)] == [*zip(s[row], m[row], strict=True)]


@pytest.mark.parametrize("name, error", [("q4_k", 0.08), ("q5_k", 0.04), ("q6_k", 0.02)])
def test_groups_of_different_sizes(rng, name, error):
    w = normal(rng, 4, 512, dtype=np.float32)
    w *= np.repeat(rng.uniform(0.3, 1, (4, 16)), 32, axis=1).astype("f4")
    assert relative(fc.quantize(w, name).dequantize(), w) < error


@pytest.mark.parametrize("name", ["q4_k", "q5_k", "q6_k"])
@pytest.mark.parametrize("sign", [1, -1])
def test_weights_of_one_sign(rng, name, sign):
    w = sign * (np.abs(normal(rng, 2, 256, dtype=np.float32)) + 1)
    assert relative(fc.quantize(w, name).dequantize(), w) < 0.06
