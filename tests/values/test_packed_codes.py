"""Packed quantised weights: bits of the dequantised weights on every level, and memory."""

import copy
import pickle
from itertools import product

import numpy as np
import pytest

import ffncore as fc

MADE = [name for name, info in fc.formats().items() if info.can_quantize]
# Codes with a scale for each row or for 128 inputs have no block size that rows must fill.
FREE = ("int8", "fp8_e4m3")


def layer(name, gated, d=256, f=512, seed=0):
    rng = np.random.default_rng(seed)
    if name in FREE:
        d, f = 133, 301
    sizes = {"up": (f, d), "down": (d, f)} | ({"gate": (f, d)} if gated else {})
    arrays = {n: rng.standard_normal(s, dtype="f4") / 16 for n, s in sizes.items()}
    biases = {"b_up": f, "b_down": d}
    arrays |= {n: rng.standard_normal(s, dtype="f4") for n, s in biases.items()}
    return fc.quantize(fc.FFNWeights(**arrays), name)


def inputs(weights, tokens, seed=1):
    return np.random.default_rng(seed).standard_normal((tokens, weights.d_model), dtype="f4")


@pytest.mark.parametrize(("name", "gated"), [*product(MADE, (False, True))])
def test_bits_are_those_of_the_dequantised_weights(name, gated):
    weights = layer(name, gated)
    packed, plain = fc.pack(weights), weights.dequantize()
    activation = "silu" if gated else "gelu"
    for isa in fc.available_isas():
        with fc.using_isa(isa):
            for tokens in (1, 2, 4, 5, 7, 8, 15, 40):
                x = inputs(weights, tokens)
                y, saved = fc.ffn_forward(x, packed, activation=activation)
                expected, known = fc.ffn_forward(x, plain, activation=activation)
                np.testing.assert_array_equal(y, expected)
                np.testing.assert_array_equal(fc.ffn(x, packed, activation=activation), expected)
                grads = fc.ffn_backward(x, saved)
                np.testing.assert_array_equal(grads.x, fc.ffn_backward(x, known, needs=["x"]).x)


@pytest.mark.parametrize("name", MADE)
def test_unpack_gives_the_numbers(name):
    weights = layer(name, True)
    unpacked, plain = fc.pack(weights).unpack(), weights.dequantize()
    for field, array in plain.arrays().items():
        np.testing.assert_array_equal(getattr(unpacked, field), array)


def test_matrices_may_have_formats_of_their_own():
    rng = np.random.default_rng(2)
    up, gate = rng.standard_normal((2, 260, 256), dtype="f4")
    down = rng.standard_normal((256, 260), dtype="f4")
    formats = {"gate": "q4_k", "up": "q6_k", "down": "int8"}
    weights = fc.quantize(fc.FFNWeights(gate=gate, up=up, down=down), formats)
    packed = fc.pack(weights)
    assert packed.quantized
    assert packed.formats == formats
    for tokens in (1, 3, 20):
        x = inputs(weights, tokens)
        expected = fc.ffn(x, weights.dequantize(), activation="silu")
        for isa in fc.available_isas():
            with fc.using_isa(isa):
                np.testing.assert_array_equal(fc.ffn(x, packed, activation="silu"), expected)


@pytest.mark.parametrize("d", [3, 15, 16, 17, 700])
@pytest.mark.parametrize("f", [1, 16, 31, 530])
def test_odd_sizes(d, f):
    rng = np.random.default_rng(d)
    up, down = rng.standard_normal((f, d), dtype="f4"), rng.standard_normal((d, f), dtype="f4")
    weights = fc.quantize(fc.FFNWeights(up=up, down=down), "int8")
    packed, plain = fc.pack(weights), weights.dequantize()
    for isa, tokens in product(fc.available_isas(), (0, 1, 6, 9)):
        x = inputs(weights, tokens)
        with fc.using_isa(isa):
            y = fc.ffn(x, packed, activation="relu")
        np.testing.assert_array_equal(y, fc.ffn(x, plain, activation="relu"))


def test_read_only_formats():
    rng = np.random.default_rng(3)
    d = f = 128
    scales = rng.random((f, d // 64), dtype="f4")
    codes = rng.integers(0, 16, (f, d), dtype=np.uint8)
    nf4 = fc.QuantizedTensor.from_parts("nf4", (f, d), codes=codes, scales=scales.ravel())
    e4m3 = rng.integers(0, 120, (d, f // 16), dtype=np.uint8)
    nvfp4 = fc.QuantizedTensor.from_parts("nvfp4", (d, f), codes=codes, scales=e4m3)
    weights = fc.FFNWeights(up=nf4, down=nvfp4)
    packed = fc.pack(weights)
    assert packed.formats == {"up": "nf4", "down": "nvfp4"}
    x = inputs(weights, 3)
    expected = fc.ffn(x, weights.dequantize(), activation="relu")
    np.testing.assert_array_equal(fc.ffn(x, packed, activation="relu"), expected)


def test_experts():
    rng = np.random.default_rng(4)
    up, gate = rng.standard_normal((2, 3, 96, 64), dtype="f4")
    down = rng.standard_normal((3, 64, 96), dtype="f4")
    weights = fc.quantize(fc.FFNWeights(gate=gate, up=up, down=down), "q4_0")
    packed, plain = fc.pack(weights), weights.dequantize()
    assert packed.n_experts == 3
    assert packed.nbytes < 1.2 * weights.nbytes
    for tokens in (1, 5, 60):
        x = inputs(weights, tokens)
        routing = fc.route(rng.standard_normal((tokens, 3), dtype="f4"), 2)
        for isa in fc.available_isas():
            with fc.using_isa(isa):
                y, saved = fc.moe_forward(x, routing, packed, activation="silu")
                expected, known = fc.moe_forward(x, routing, plain, activation="silu")
                np.testing.assert_array_equal(y, expected)
                dx = fc.moe_backward(x, saved).x
                np.testing.assert_array_equal(dx, fc.moe_backward(x, known, needs=["x"]).x)
    one = fc.ffn(x, packed.expert(1), activation="silu")
    np.testing.assert_array_equal(one, fc.ffn(x, plain.expert(1), activation="silu"))


def test_threads_and_plans_give_the_same_bits():
    weights = layer("q4_k", True, d=512, f=1536)
    packed = fc.pack(weights)
    x = inputs(weights, 5)
    expected = fc.ffn(x, weights.dequantize(), activation="silu")
    for threads in (1, 2, 3):
        with fc.num_threads(threads):
            np.testing.assert_array_equal(fc.ffn(x, packed, activation="silu"), expected)
    try:
        fc._core.debug_plan(ff_chunk=512)
        np.testing.assert_array_equal(fc.ffn(x, packed, activation="silu"), expected)
        _, saved = fc.ffn_forward(x, packed, activation="silu", save="input")
        _, known = fc.ffn_forward(x, weights.dequantize(), activation="silu", save="input")
        dx = fc.ffn_backward(x, saved).x
        np.testing.assert_array_equal(dx, fc.ffn_backward(x, known, needs=["x"]).x)
    finally:
        fc._core.debug_plan()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_x_may_have_16_bits(dtype):
    weights = layer("q8_0", False)
    x = inputs(weights, 3).astype(dtype)
    y = fc.ffn(x, fc.pack(weights), activation="gelu")
    expected = fc.ffn(x.astype("f4"), weights.dequantize(), activation="gelu").astype(dtype)
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("name", [n for n in MADE if n not in FREE])
def test_memory(name):
    weights = layer(name, True, d=1024, f=2048)
    split = name == "tq1_0"  # its five digits a byte become 2 bits each
    assert fc.pack(weights).nbytes <= (1.25 if split else 1.06) * weights.nbytes


def test_copies_pickles_and_files(tmp_path):
    weights = layer("q5_k", True)
    packed = fc.pack(weights)
    packed.save(tmp_path / "layer.packed")
    x = inputs(weights, 2)
    expected = fc.ffn(x, packed, activation="silu")
    again = (
        copy.copy(packed),
        copy.deepcopy(packed),
        pickle.loads(pickle.dumps(packed)),
        fc.load_packed(tmp_path / "layer.packed"),
    )
    for other in again:
        assert other.formats == packed.formats
        assert repr(other) == repr(packed)
        np.testing.assert_array_equal(fc.ffn(x, other, activation="silu"), expected)


def test_a_damaged_header_is_refused():
    packed = fc.pack(layer("q4_0", True))
    state = packed._state()
    rng = np.random.default_rng(5)
    for _ in range(300):
        damaged = packed._buffer.copy()
        at = rng.integers(0, 600)
        damaged[at] ^= rng.integers(1, 256)
        buffer = fc.arrays.memory.allocate(damaged.nbytes)
        buffer[:] = damaged
        try:
            other = fc.PackedWeights._remade(**{**state, "memory": fc.arrays.memory.Memory(buffer)})
            x = np.zeros((1, other.d_model), "f4")
            fc.ffn(x, other, activation="silu")
        except ValueError:
            pass


def test_groups_that_are_no_neighbours_are_packed_as_numbers():
    rng = np.random.default_rng(6)
    codes = rng.integers(0, 16, (32, 64), dtype=np.uint8)
    scales = rng.random((32, 2), dtype="f4")
    g_idx = rng.integers(0, 2, 64)
    up = fc.QuantizedTensor.from_parts("int4", (32, 64), codes=codes, scales=scales, g_idx=g_idx)
    weights = fc.FFNWeights(up=up, down=rng.standard_normal((64, 32), dtype="f4"))
    packed = fc.pack(weights)
    assert not packed.quantized
    x = inputs(weights, 2)
    expected = fc.ffn(x, weights.dequantize(), activation="relu")
    np.testing.assert_array_equal(fc.ffn(x, packed, activation="relu"), expected)


def test_out_is_refused():
    weights = layer("q8_0", False)
    with pytest.raises(ValueError, match="out is given"):
        fc.pack(weights, out=fc.pack(weights))
