"""A few tokens read several packed panels side by side, and the backward pass transposes packed
panels in registers. How many panels, and how far ahead they are prefetched, changes no bit. The
numbers are those of the same tokens among others, and of raw weights.
"""

# ruff: noqa: ARG001 (a test names the fixtures that it runs under)

import numpy as np
import pytest
from support import DTYPES, all_biases, make_experts, make_weights, normal, same_bits
from support_moe import make_routing

import ffncore as fc
from ffncore import _core

# d, f: from one panel to more than a group of them, with a rest of each length; sums of several
# blocks, of several steps, and of several partial sums.
SIZES = [(16, 16), (33, 100), (530, 161), (70, 600), (1700, 40), (40, 1700)]
LONG = (33000, 40)


@pytest.fixture
def streams():
    yield _core.debug_streams
    _core.debug_streams()


def outputs(x, packed, activation):
    """y of the first 1, 2, ... rows of x."""
    return [fc.ffn(x[:t], packed, activation=activation) for t in range(1, len(x) + 1)]


@pytest.mark.parametrize("d, f", SIZES)
def test_any_number_of_panels(d, f, isa, dtype, gated, streams, plan, rng):
    w = make_weights(rng, d, f, gated=gated, biases=all_biases(gated), dtype=dtype)
    packed, x = fc.pack(w), normal(rng, 9, d, dtype=dtype)
    all_rows = fc.ffn(np.concatenate([x, x]), packed, activation="gelu")
    for panels, ahead in ((1, 0), (1, 512), (2, 512), (3, 0), (8, 0), (8, 4096)):
        streams(panels, ahead)
        for t, y in enumerate(outputs(x, packed, "gelu"), 1):
            assert same_bits(y, all_rows[:t]), (panels, ahead, t)
    plan(0, 1)  # running sums are carried from chunk to chunk
    for t, y in enumerate(outputs(x, packed, "gelu"), 1):
        assert same_bits(y, all_rows[:t]), t


@pytest.mark.slow
@pytest.mark.parametrize("d, f", [LONG, LONG[::-1]])
def test_sums_of_several_partial_sums(d, f, isa, streams, rng):
    w = make_weights(rng, d, f, gated=False)
    packed, x = fc.pack(w), normal(rng, 3, d)
    all_rows = fc.ffn(np.concatenate([x] * 6), packed, activation="relu")
    for panels in (1, 8):
        streams(panels, 0)
        for t, y in enumerate(outputs(x, packed, "relu"), 1):
            assert same_bits(y, all_rows[:t]), (panels, t)


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d.itemsize == 2], ids=str)
def test_16_bit_weights_with_float32_x(isa, dtype, streams, rng):
    w = make_weights(rng, 530, 161, dtype=dtype)
    packed, x = fc.pack(w), normal(rng, 8, 530, dtype=np.float32)
    all_rows = fc.ffn(np.concatenate([x, x]), packed, activation="silu")
    for panels in (1, 8):
        streams(panels, 0)
        for t, y in enumerate(outputs(x, packed, "silu"), 1):
            assert same_bits(y, all_rows[:t]), (panels, t)


def test_experts(isa, dtype, gated, streams, rng):
    w = make_experts(rng, 3, 70, 161, gated=gated, biases=all_biases(gated), dtype=dtype)
    packed, x = fc.pack(w), normal(rng, 9, 70, dtype=dtype)
    routing = make_routing(rng, 9, 3, 2, dtype)
    expected = fc.moe(x, routing, w, activation="silu")
    for panels, ahead in ((1, 0), (3, 512), (8, 0)):
        streams(panels, ahead)
        assert same_bits(fc.moe(x, routing, packed, activation="silu"), expected)


def test_raw_weights_without_prefetching(isa, dtype, gated, streams, rng):
    w = make_weights(rng, 530, 161, gated=gated, dtype=dtype)
    x = normal(rng, 5, 530, dtype=dtype)
    expected = fc.ffn(x, w, activation="silu")
    streams(-1, 0)
    assert same_bits(fc.ffn(x, w, activation="silu"), expected)


@pytest.mark.parametrize("d, f", [*SIZES, (64, 515)])
def test_the_backward_pass_transposes_packed_panels(d, f, isa, dtype, gated, streams, plan, rng):
    w = make_weights(rng, d, f, gated=gated, biases=all_biases(gated), dtype=dtype)
    packed = fc.pack(w)
    for tokens in (1, 4, 5, 16, 17):
        x, grad = normal(rng, 2, tokens, d, dtype=dtype)
        saved = fc.ffn_forward(x, w, activation="silu")[1]
        expected = fc.ffn_backward(grad, saved, needs=["x"]).x
        for ahead in (0, 512):
            streams(-1, ahead)
            saved = fc.ffn_forward(x, packed, activation="silu")[1]
            assert same_bits(fc.ffn_backward(grad, saved, needs=["x"]).x, expected), tokens
            columns = np.asfortranarray(grad)  # a token's numbers are not contiguous
            assert same_bits(fc.ffn_backward(columns, saved, needs=["x"]).x, expected), tokens
    plan(0, 512)  # running sums are carried from chunk to chunk
    assert same_bits(fc.ffn_backward(grad, saved, needs=["x"]).x, expected)


@pytest.mark.slow
@pytest.mark.parametrize("d, f", [(32100, 40), (40, 33000)])
def test_backward_sums_of_several_partial_sums(d, f, isa, gated, rng):
    w = make_weights(rng, d, f, gated=gated)
    x, grad = normal(rng, 2, 5, d)
    want, got = (
        fc.ffn_backward(grad, fc.ffn_forward(x, v, activation="relu")[1], needs=["x"]).x
        for v in (w, fc.pack(w))
    )
    assert same_bits(got, want)


def test_the_backward_pass_of_experts(isa, dtype, gated, rng):
    w = make_experts(rng, 3, 70, 161, gated=gated, biases=all_biases(gated), dtype=dtype)
    routing = make_routing(rng, 9, 3, 2, dtype)
    x, grad = normal(rng, 2, 9, 70, dtype=dtype)
    want, got = (
        fc.moe_backward(grad, fc.moe_forward(x, routing, v, activation="silu")[1], needs=["x"]).x
        for v in (w, fc.pack(w))
    )
    assert same_bits(got, want)
