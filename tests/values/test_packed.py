"""fc.pack and PackedWeights, of a single layer and of experts."""

# ruff: noqa: ARG001 (a test names the fixtures that it runs under)

import pickle

import numpy as np
import pytest
from support import all_biases, make_experts, make_weights, normal, same_bits, strided_copies

import ffncore as fc
from ffncore.values.weights import NAMES


@pytest.mark.parametrize("d, f", [(1, 1), (5, 7), (33, 65), (64, 31), (17, 97), (16, 32)])
@pytest.mark.parametrize("with_biases", [False, True])
def test_unpack_gives_the_bits_back(d, f, with_biases, gated, dtype, rng):
    biases = all_biases(gated) if with_biases else ()
    w = make_weights(rng, d, f, gated=gated, biases=biases, dtype=dtype)
    p = fc.pack(w)
    assert (p.shape, p.dtype, p.gated) == (w.shape, w.dtype, gated)
    assert p.nbytes >= w.nbytes
    unpacked = p.unpack()
    for name in NAMES:
        a, b = getattr(w, name), getattr(unpacked, name)
        assert (a is None and b is None) or same_bits(a, b), name


def test_packed_weights_are_the_same_in_every_isa(gated, dtype, rng):
    w = make_weights(rng, 35, 70, gated=gated, biases=all_biases(gated), dtype=dtype)
    packed = []
    for isa in fc.available_isas():
        with fc.using_isa(isa):
            packed.append(fc.pack(w)._buffer)
    assert all(np.array_equal(packed[0], other) for other in packed)


def test_pack_takes_any_strides(isa, dtype, rng):
    w = make_weights(rng, 35, 70, biases=all_biases(True), dtype=dtype)
    strided = fc.FFNWeights(
        gate=np.asfortranarray(w.gate),
        up=np.repeat(w.up, 2, axis=1)[:, ::2],
        down=w.down[::-1].copy()[::-1],
        b_gate=w.b_gate[::-1].copy()[::-1],
        b_up=np.repeat(w.b_up, 3)[::3],
        b_down=w.b_down,
    )
    assert np.array_equal(fc.pack(strided)._buffer, fc.pack(w)._buffer)


def test_pack_converts_only_when_told(rng):
    w = make_weights(rng, 5, 7)
    assert fc.pack(w).dtype == np.float64
    p = fc.pack(w, dtype="float32")
    assert p.dtype == np.float32
    assert np.array_equal(p.unpack().up, w.up.astype(np.float32))
    assert fc.pack(w, dtype=np.float64).dtype == np.float64


def test_pack_fills_again(rng, dtype):
    w, other = (make_weights(rng, 35, 70, biases=("b_up",), dtype=dtype) for _ in range(2))
    x = normal(rng, 3, 35, dtype=dtype)
    p = fc.pack(w)
    assert fc.pack(other, out=p) is p
    assert same_bits(fc.ffn(x, p, activation="silu"), fc.ffn(x, other, activation="silu"))


def test_large_packed_weights_start_at_a_huge_page(rng):
    d, f = 512, 600
    p = fc.pack(make_weights(rng, d, f, dtype=np.float32))
    assert p._buffer.ctypes.data % 2**21 == 0
    small = fc.pack(make_weights(rng, 5, 7, dtype=np.float32))
    assert small._buffer.ctypes.data % 64 == 0


def test_packed_weights_can_be_pickled_and_not_changed(rng):
    w = make_weights(rng, 5, 7, biases=("b_gate",))
    p = fc.pack(w)
    again = pickle.loads(pickle.dumps(p))
    assert np.array_equal(again._buffer, p._buffer)
    with pytest.raises(AttributeError):
        p.dtype = np.float32
    with pytest.raises(TypeError):
        fc.PackedWeights()


@pytest.mark.parametrize("n, d, f", [(1, 1, 1), (3, 5, 7), (4, 33, 65), (2, 64, 31)])
@pytest.mark.parametrize("with_biases", [False, True])
def test_experts_are_packed_as_blocks_a_stride_apart(n, d, f, with_biases, gated, dtype, rng):
    biases = all_biases(gated) if with_biases else ()
    w = make_experts(rng, n, d, f, gated=gated, biases=biases, dtype=dtype)
    p = fc.pack(w)
    assert (p.n_experts, p.shape, p.dtype, p.gated) == (n, (f, d), dtype, gated)
    buffer, (*sizes, count, stride) = p._buffer, p._sizes
    assert sizes == [d, f, gated, *(name in biases for name in NAMES[3:])]
    assert (count, stride % 64, n * stride) == (n, 0, p.nbytes)
    for e in range(n):
        alone = fc.pack(w.expert(e))
        assert 0 <= stride - alone.nbytes < 64
        assert np.array_equal(buffer[e * stride :][: alone.nbytes], alone._buffer)
        assert np.shares_memory(p.expert(e)._buffer, buffer)
        x = normal(rng, 3, d, dtype=dtype)
        results = (fc.ffn(x, block, activation="tanh") for block in (p.expert(e), alone))
        assert same_bits(*results)
    unpacked = p.unpack()
    for name in NAMES:
        a, b = getattr(w, name), getattr(unpacked, name)
        assert (a is None and b is None) or same_bits(a, b), name


def test_experts_of_any_strides(dtype, rng):
    w = make_experts(rng, 3, 17, 20, biases=all_biases(True), dtype=dtype)
    expected = fc.pack(w)._buffer
    for copies in zip(*(strided_copies(a) for a in w.arrays().values()), strict=True):
        strided = fc.FFNWeights(**dict(zip(w.arrays(), copies, strict=True)))
        assert np.array_equal(fc.pack(strided)._buffer, expected)


@pytest.mark.parametrize("given, wanted", [("f8", "f4"), ("f8", "f2"), ("f4", "f2"), ("f2", "f4")])
def test_experts_are_converted_as_blocks_are(given, wanted, rng):
    w = make_experts(rng, 3, 5, 7, biases=all_biases(True), dtype=given)
    p = fc.pack(w, dtype=wanted)
    assert p.dtype == wanted
    for e in range(3):
        alone = fc.pack(w.expert(e), dtype=wanted).unpack()
        for name, array in alone.arrays().items():
            assert same_bits(getattr(p.unpack(), name)[e], array)


def test_experts_fill_again(rng):
    w, other = (make_experts(rng, 3, 5, 7, biases=("b_up",)) for _ in range(2))
    p = fc.pack(w)
    assert fc.pack(other, out=p) is p
    assert same_bits(p.unpack().up, other.up)
    for wrong in (make_experts(rng, 2, 5, 7, biases=("b_up",)), other.expert(0)):
        with pytest.raises(ValueError, match="expected the sizes and biases of FFNWeights"):
            fc.pack(wrong, out=p)
    assert same_bits(p.unpack().up, other.up)


def test_packed_experts_can_be_pickled_and_told(rng):
    p = fc.pack(make_experts(rng, 3, 5, 7, biases=("b_gate",)))
    again = pickle.loads(pickle.dumps(p))
    assert np.array_equal(again._buffer, p._buffer)
    assert again.n_experts == 3
    assert repr(p) == f"PackedWeights(gated, 3 experts, shape=(7, 5), float64, {p.nbytes} bytes)"
