"""compute="int8": the specification against single sums in Python, and its error."""

import itertools
import math
import re

import numpy as np
import pytest
from support import NARROW, make_weights, normal
from support_quantised import relative

import ffncore as fc
from ffncore import QuantizedTensor, reference

INTEGERS = [n for n, info in fc.formats().items() if info.can_quantize and n != "fp8_e4m3"]


def fma(a, b, c):
    """One rounding: exact in fractions of integers, then to float32 by way of a decimal."""
    from fractions import Fraction

    exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    nearest = np.float32(float(exact))
    candidates = [nearest, np.nextafter(nearest, np.float32(np.inf)),
                  np.nextafter(nearest, np.float32(-np.inf))]  # fmt: skip
    distances = [abs(Fraction(float(n)) - exact) for n in candidates]
    best = min(distances)
    tied = [n for n, d in zip(candidates, distances, strict=True) if d == best]
    return next((n for n in tied if not n.view(np.uint32) & 1), tied[0])


def dot(x, planes, row, fractions=False):
    """One output: a chain over the pieces, weight by weight."""
    s, codes = reference.round_to_int8(x[None])[::-1]
    total, k = np.float32(0), len(x)
    edges = sorted({*range(0, k, 32), *range(0, k, planes.group), k})
    for start, end in itertools.pairwise(edges):
        g = start // planes.group if planes.grid.scales.shape[1] > 1 else 0
        r = row if len(planes.grid.scales) > 1 else 0
        t = planes.grid.scales[r, g]
        z = 0 if planes.grid.zeros is None else planes.grid.zeros[r, g]
        o = None if planes.grid.offsets is None else planes.grid.offsets[r, g]
        if fractions:
            z, o = 0, -(z * t)
        a = sum(int(codes[0, i]) for i in range(start, end))
        values = planes.levels.values[planes.codes[row]]
        product = sum(int(codes[0, i]) * (int(values[i]) - int(z)) for i in range(start, end))
        scale = s[0, start // 32]
        total = fma(np.float32(product), scale * t, total)
        if o is not None:
            total = fma(o, np.float32(a) * scale, total)
    return total


def up_of(x, q):
    return reference.quantised._integer_product(x, q, "up")


@pytest.mark.parametrize("name", INTEGERS)
def test_sums_of_single_weights(rng, name):
    k = 256 if fc.formats()[name].group else 100
    q = fc.quantize(normal(rng, 4, k, dtype=np.float32), name)
    x = normal(rng, 2, k, dtype=np.float32)
    found = up_of(x, q)
    for t in range(2):
        for row in range(4):
            assert found[t, row] == dot(x[t], q._planes(), row)


@pytest.mark.parametrize("kind", ["integers", "fractions", "groups of 24", "none"])
def test_zeros_and_odd_groups(rng, kind):
    k, groups = (96, 4) if kind == "groups of 24" else (128, 2)
    zeros = {
        "integers": rng.integers(0, 17, (4, groups)),
        "fractions": rng.uniform(0, 15, (4, groups)).astype("f4"),
    }.get(kind)
    codes = rng.integers(0, 16, (4, k), dtype=np.uint8)
    scales = normal(rng, 4, groups, dtype=np.float32)
    q = QuantizedTensor.from_parts("int4", (4, k), codes=codes, scales=scales, zeros=zeros)
    x = normal(rng, 1, k, dtype=np.float32)
    found = up_of(x, q)
    for row in range(4):
        assert found[0, row] == dot(x[0], q._planes(), row, kind == "fractions")


def test_sums_cannot_saturate():
    k = 28672
    for code in (-127, -128, 127):
        codes = np.full((1, k), code, "i1")
        q = QuantizedTensor.from_parts("int8", (1, k), codes=codes, scales=np.ones(1, "f4"))
        x = np.full((1, k), 127, "f4")
        assert up_of(x, q)[0, 0] == 127.0 * float(codes[0, 0]) * k


def test_rounding_of_rows():
    x = np.zeros((4, 40), "f4")
    x[0, :4] = 127, 0.5, 1.5, -2.5
    x[1, 33] = -3
    x[2, 5] = np.inf
    x[3, :2] = 190 * 2.0**-149, 2.0**-149
    q, s = reference.round_to_int8(x)
    assert q.dtype == np.int8
    assert s.shape == (4, 2)
    np.testing.assert_array_equal(q[0, :4], [127, 0, 2, -2])
    assert s[0, 0] == 1
    assert s[0, 1] == s[1, 0] == 0
    assert q[1, 33] == -127
    assert np.isnan(s[2]).all()
    np.testing.assert_array_equal(q[3, :2], [127, 1])


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_token_that_is_not_finite_gives_nan(rng, bad):
    w = make_weights(rng, 64, 32, dtype=np.float32)
    wq = fc.quantize(w, "q8_0")
    x = normal(rng, 3, 64, dtype=np.float32)
    good = reference.ffn_int8(x, wq, activation="silu")
    x[1, 7] = bad
    y = reference.ffn_int8(x, wq, activation="silu")
    assert np.isnan(y[1]).all()
    np.testing.assert_array_equal(y[::2], good[::2])


def test_tokens_of_zeros(rng):
    wq = fc.quantize(make_weights(rng, 64, 32, dtype=np.float32, biases=("b_down",)), "q8_0")
    y = reference.ffn_int8(np.zeros((2, 64), "f4"), wq, activation="silu")
    np.testing.assert_array_equal(y, np.tile(wq.b_down, (2, 1)))


@pytest.mark.parametrize("narrow", NARROW, ids=str)
def test_16_bits(rng, narrow):
    wq = fc.quantize(make_weights(rng, 64, 32, dtype=narrow, biases=("b_up",)), "int8")
    x = normal(rng, 2, 3, 64, dtype=narrow)
    y = reference.ffn_int8(x, wq, activation="gelu")
    wide = reference.ffn_int8(x.astype("f4"), wq, activation="gelu")
    assert y.shape == x.shape
    np.testing.assert_array_equal(y, wide.astype(narrow))


def test_the_activation_is_that_of_the_kernels(rng):
    """With inputs that int8 holds exactly, the hidden units are those of fc.ffn."""
    codes = rng.integers(-5, 6, (32, 64)).astype("i1")
    up = QuantizedTensor.from_parts("int8", (32, 64), codes=codes, scales=np.full(1, 2.0**-6, "f4"))
    w = fc.FFNWeights(up=up, gate=up, down=np.eye(64, 32, dtype="f4"))
    x = rng.integers(-126, 127, (4, 64)).astype("f4") / 64
    x[:, ::32] = 127 / 64
    y = reference.ffn_int8(x, w, activation="silu")
    np.testing.assert_array_equal(y, fc.ffn(x, w, activation="silu"))


# A plain and a gated layer of d = 512, d_ff = 1024 with normal weights and inputs.
ERRORS = {
    "q8_0": (0.0093, 0.0151),
    "int8": (0.0132, 0.0177),
    "q4_k": (0.1266, 0.1273),
    "q4_0": (0.1500, 0.1504),
    "mxfp4": (0.2038, 0.2040),
    "int4": (0.1770, 0.1773),
    "q2_0": (0.685, 0.685),
    "q1_0": (0.871, 0.871),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_of_a_layer(name):
    rng = np.random.default_rng(5)
    d, f = 512, 1024
    gate, up = (rng.standard_normal((2, f, d)) / math.sqrt(d)).astype("f4")
    down = (rng.standard_normal((d, f)) / math.sqrt(f)).astype("f4")
    w = fc.FFNWeights(gate=gate, up=up, down=down)
    x = rng.standard_normal((16, d)).astype("f4")
    exact = reference.ffn(x, w, activation="silu")
    wq = fc.quantize(w, name)
    floats, integers = ERRORS[name]
    assert relative(fc.ffn(x, wq, activation="silu"), exact) <= 1.08 * floats
    found = reference.ffn_int8(x, wq, activation="silu")
    assert relative(found, exact) <= 1.08 * integers
    # Against the dequantised weights the only error is that of rounding x and h to int8.
    assert 0.002 < relative(found, fc.ffn(x, wq, activation="silu")) < 0.015


BAD = [
    ("fp8_e4m3", "weights.up has format 'fp8_e4m3'; expected weights with compute='int8'"),
    ("int4", "weights.up has g_idx; expected weights with compute='int8'"),
]


@pytest.mark.parametrize("name, sentence", BAD)
def test_formats_that_have_no_integer_products(rng, name, sentence):
    up = fc.quantize(normal(rng, 8, 128, dtype=np.float32), name)
    if name == "int4":
        up = QuantizedTensor.from_parts(name, up.shape, **up.parts(), g_idx=np.zeros(128, np.int32))
    w = fc.FFNWeights(up=up, down=normal(rng, 128, 8, dtype=np.float32))
    with pytest.raises(ValueError, match=re.escape(sentence)):
        reference.ffn_int8(normal(rng, 1, 128, dtype=np.float32), w, activation="relu")
