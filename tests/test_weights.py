"""FFNWeights, from_gate_up, pack and unpack."""

# ruff: noqa: ARG001 (a test names the fixtures that it runs under)

import copy
import dataclasses
import pickle

import numpy as np
import pytest
from support import all_biases, make_weights, normal, same_bits

import ffncore as fc
from ffncore.weights import NAMES


def test_holds_the_arrays_that_were_given(rng):
    up, down = normal(rng, 7, 5), normal(rng, 5, 7)
    w = fc.FFNWeights(up=up, down=down)
    assert w.up is up
    assert w.down is down
    assert w.gate is None
    assert (w.d_ff, w.d_model, w.shape, w.gated, w.dtype) == (7, 5, (7, 5), False, np.float64)
    assert w.nbytes == up.nbytes + down.nbytes


def test_is_frozen_and_can_be_replaced_and_pickled(rng):
    w = make_weights(rng, 3, 4, biases=("b_up",))
    with pytest.raises(dataclasses.FrozenInstanceError):
        w.up = None
    assert dataclasses.replace(w, b_up=None).b_up is None
    for other in (pickle.loads(pickle.dumps(w)), copy.deepcopy(w)):
        assert list(other.arrays()) == list(w.arrays())
        assert all(
            same_bits(a, b)
            for a, b in zip(other.arrays().values(), w.arrays().values(), strict=True)
        )


def test_an_array_reshaped_in_place_later_does_no_harm(rng):
    w = make_weights(rng, 4, 4, gated=False)
    x = normal(rng, 2, 4)
    expected = fc.ffn(x, w, activation="relu")
    up = w._arrays[1]
    assert up is not w.up
    assert np.shares_memory(up, w.up)
    assert same_bits(fc.ffn(x, w, activation="relu"), expected)


@pytest.mark.parametrize("layout", ["concat", "interleaved"])
@pytest.mark.parametrize("order", ["gate_first", "up_first"])
def test_from_gate_up_makes_views(layout, order, rng):
    gate, up = normal(rng, 2, 6, 5)
    b_gate, b_up = normal(rng, 2, 6)
    first, second = (gate, up) if order == "gate_first" else (up, gate)
    b_first, b_second = (b_gate, b_up) if order == "gate_first" else (b_up, b_gate)
    if layout == "concat":
        fused, bias = np.concatenate([first, second]), np.concatenate([b_first, b_second])
    else:
        fused = np.stack([first, second], axis=1).reshape(12, 5)
        bias = np.stack([b_first, b_second], axis=1).reshape(12)
    down = normal(rng, 5, 6)
    w = fc.FFNWeights.from_gate_up(fused, down, layout=layout, order=order, b_gate_up=bias)
    for given, expected in ((w.gate, gate), (w.up, up), (w.b_gate, b_gate), (w.b_up, b_up)):
        assert np.array_equal(given, expected)
    assert np.shares_memory(w.gate, fused)
    assert np.shares_memory(w.b_up, bias)
    x = normal(rng, 3, 5)
    separate = fc.FFNWeights(gate=gate, up=up, down=down, b_gate=b_gate, b_up=b_up)
    assert same_bits(fc.ffn(x, w, activation="silu"), fc.ffn(x, separate, activation="silu"))


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
