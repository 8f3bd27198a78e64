"""Codes in bytes: where each one is, and back."""

import numpy as np
import pytest

from ffncore.encodings.bits import Trits, pack, unpack


@pytest.mark.parametrize(
    "bits, width", [(1, 1), (2, 1), (4, 1), (1, 32), (2, 32), (4, 16), (4, 32), (4, 64), (8, 32)]
)
def test_each_code_is_where_the_formula_says(rng, bits, width):
    data = rng.integers(0, 256, (3, 128), dtype=np.uint8)
    codes = unpack(data, bits, width)
    per = 8 // bits
    assert codes.shape == (3, 128 * per)
    for e in range(128 * per):
        run, rest = divmod(e, per * width)
        shift, byte = divmod(rest, width)
        expected = data[:, run * width + byte] >> shift * bits & (1 << bits) - 1
        np.testing.assert_array_equal(codes[:, e], expected)
    np.testing.assert_array_equal(pack(codes, bits, width), data)


def test_every_number_of_five_ternary_digits():
    dtype = np.dtype([("qs", "u1", 48), ("qh", "u1", 4), ("d", "<f2")])
    numbers = np.arange(243)
    codes = np.ones((243, 256), np.uint8)
    for n in range(5):
        codes[:, 32 * n] = numbers // 3 ** (4 - n) % 3
    blocks = np.zeros(243, dtype)
    Trits().pack(codes, blocks)
    np.testing.assert_array_equal(blocks["qs"][:, 0], -(-256 * numbers // 243))
    np.testing.assert_array_equal(Trits().unpack(blocks), codes)
