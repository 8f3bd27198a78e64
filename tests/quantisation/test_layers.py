"""Layers with quantised weights: the bits of the layer with the dequantised float32 weights."""

import copy
import pickle
import re

import numpy as np
import pytest
from support import NARROW, make_experts, make_weights, normal
from support_quantised import relative

import ffncore as fc

D, F, T = 256, 128, 5
FORMATS = ("q8_0", "q6_k", "q1_0", "mxfp4", "int8", "int4", "fp8_e4m3")


def make(rng, gated=True, dtype=np.float32, **options):
    biases = ("b_gate", "b_up", "b_down") if gated else ("b_up", "b_down")
    return make_weights(rng, D, F, gated=gated, biases=biases, dtype=dtype, **options)


def quantized(w, name):
    """Rows of down have 128 weights, so that formats with larger blocks are not for down."""
    down = "q8_0" if name in ("q4_k", "q6_k") else name
    formats = {n: name for n in ("gate", "up") if getattr(w, n) is not None}
    return fc.quantize(w, formats | {"down": down})


@pytest.mark.parametrize("name", FORMATS)
def test_ffn(rng, name, gated):
    w = make(rng, gated)
    wq = quantized(w, name)
    exact = wq.dequantize()
    assert wq.quantized
    assert not exact.quantized
    assert exact.dequantize() is exact
    assert wq.dtype == np.float32
    assert wq.shape == w.shape
    assert wq.nbytes < w.nbytes
    x = normal(rng, 2, T, D, dtype=np.float32)
    expected = fc.ffn(x, exact, activation="silu")
    np.testing.assert_array_equal(fc.ffn(x, wq, activation="silu"), expected)
    np.testing.assert_array_equal(fc.ffn(x[0], wq, activation="silu"), expected[0])
    np.testing.assert_array_equal(fc.ffn(x, fc.pack(wq), activation="silu"), expected)
    out = np.empty((2, D, T), "f4").swapaxes(1, 2)
    assert fc.ffn(x, wq, activation="silu", out=out) is out
    np.testing.assert_array_equal(out, expected)
    layer = fc.FFN(wq, "silu")
    np.testing.assert_array_equal(layer(x), expected)
    np.testing.assert_array_equal(layer.packed()(x), expected)
    assert f"up=({F}, {D}) {name}" in repr(wq)


def test_every_instruction_set(rng, isa):  # noqa: ARG001
    w = quantized(make(rng), "q4_k")
    x = normal(rng, T, D, dtype=np.float32)
    y = fc.ffn(x, w, activation="silu")
    np.testing.assert_array_equal(y, fc.ffn(x, w.dequantize(), activation="silu"))


@pytest.mark.parametrize("narrow", NARROW, ids=str)
@pytest.mark.parametrize("save", ["preactivations", "input"])
def test_16_bits_are_widened_and_rounded_once(rng, narrow, save):
    w = quantized(make(rng, dtype=narrow), "q8_0")
    exact = w.dequantize()
    x, grad = normal(rng, 2, T, D, dtype=narrow), normal(rng, 2, T, D, dtype=narrow)
    y, saved = fc.ffn_forward(x, w, activation="xielu", save=save)
    wide, wide_saved = fc.ffn_forward(x.astype("f4"), exact, activation="xielu", save=save)
    assert y.dtype == narrow
    np.testing.assert_array_equal(y, wide.astype(narrow))
    np.testing.assert_array_equal(y, fc.ffn(x, w, activation="xielu"))
    assert saved.nbytes == wide_saved.nbytes
    again = pickle.loads(pickle.dumps(saved))
    for own in (saved, copy.deepcopy(saved), again):
        grads = fc.ffn_backward(grad, own)
        expected = fc.ffn_backward(grad.astype("f4"), wide_saved)
        assert set(grads.arrays()) == {"x", "b_gate", "b_up", "b_down"}
        for name, array in grads.arrays().items():
            assert array.dtype == narrow
            np.testing.assert_array_equal(array, expected.arrays()[name].astype(narrow))
        assert grads.activation == expected.activation
    if save == "preactivations":
        np.testing.assert_array_equal(saved.up, wide_saved.up)


def test_gradients_may_be_added_to_arrays(rng):
    w = quantized(make(rng), "int8")
    x = normal(rng, T, D, dtype=np.float32)
    y, saved = fc.ffn_forward(x, w, activation="silu")
    once = fc.ffn_backward(y, saved, needs=("x", "b_up"))
    twice = fc.ffn_backward(y, saved, needs=("x", "b_up"), out=copy.deepcopy(once), accumulate=True)
    np.testing.assert_array_equal(twice.x, 2 * once.x)
    np.testing.assert_array_equal(twice.weights.b_up, 2 * once.weights.b_up)


def test_fields_that_are_left_out_stay_as_they_are(rng):
    w = make(rng)
    wq = fc.quantize(w, {"down": "q8_0"})
    assert wq.up is w.up
    assert wq.gate is w.gate
    assert wq.down == fc.quantize(w.down, "q8_0")
    assert wq.b_down is w.b_down
    x = normal(rng, T, D, dtype=np.float32)
    y, saved = fc.ffn_forward(x, wq, activation="silu")
    grads = fc.ffn_backward(y, saved)
    exact = fc.ffn_backward(y, fc.ffn_forward(x, wq.dequantize(), activation="silu")[1])
    assert set(grads.arrays()) == {"x", "gate", "up", "b_gate", "b_up", "b_down"}
    for name, array in grads.arrays().items():
        np.testing.assert_array_equal(array, exact.arrays()[name])
    both = fc.quantize(wq, {"up": "int8"})
    assert both.down == wq.down
    assert both.up.format == "int8"


@pytest.mark.parametrize("name", ["q8_0", "int4", "fp8_e4m3"])
@pytest.mark.parametrize("dtype", [np.dtype("f4"), *NARROW], ids=str)
def test_mixtures(rng, name, dtype, on_input):
    w = fc.quantize(make_experts(rng, 3, D, F, dtype=dtype), name)
    exact = w.dequantize()
    assert w.n_experts == 3
    assert w.expert(1).up == w.up[1]
    x = normal(rng, T, D, dtype=dtype)
    routing = fc.route(normal(rng, T, 3, dtype=np.float32), 2)
    options = {"activation": "silu", "apply_router_weight_on_input": on_input}
    y, saved = fc.moe_forward(x, routing, w, **options)
    wide, wide_saved = fc.moe_forward(x.astype("f4"), routing, exact, **options)
    np.testing.assert_array_equal(y, wide.astype(dtype))
    np.testing.assert_array_equal(fc.moe(x, routing, w, **options), y)
    grads, expected = fc.moe_backward(y, saved), fc.moe_backward(y.astype("f4"), wide_saved)
    assert set(grads.arrays()) == {"x", "routing_weights"}
    np.testing.assert_array_equal(grads.x, expected.x.astype(dtype))
    np.testing.assert_array_equal(grads.routing_weights, expected.routing_weights)
    again = pickle.loads(pickle.dumps(saved))
    np.testing.assert_array_equal(fc.moe_backward(y, again).x, grads.x)
    if dtype == np.float32:
        packed = fc.pack(w)
        np.testing.assert_array_equal(fc.moe(x, routing, packed, **options), y)


def test_layer_objects(rng):
    experts = fc.quantize(make_experts(rng, 3, D, F, dtype=np.float32), "q8_0")
    shared = fc.FFN(fc.quantize(make(rng), "q8_0"), "silu")
    router = fc.Router(normal(rng, 3, D, dtype=np.float32), top_k=2)
    layer = fc.MoE(experts, "silu", router, shared=shared)
    exact = fc.MoE(
        experts.dequantize(), "silu", router, shared=fc.FFN(shared.weights.dequantize(), "silu")
    )
    x = normal(rng, T, D, dtype=np.float32)
    np.testing.assert_array_equal(layer(x), exact(x))
    y, saved = layer.forward(x)
    grads = layer.backward(y, saved)
    expected = exact.backward(y, exact.forward(x)[1])
    np.testing.assert_array_equal(grads.x, expected.x)
    np.testing.assert_array_equal(grads.router_weight, expected.router_weight)
    assert set(layer.parameters()) == {"router_weight", "shared.b_gate", "shared.b_up",
                                       "shared.b_down"}  # fmt: skip


@pytest.mark.parametrize("narrow", NARROW, ids=str)
def test_layer_objects_of_16_bits(rng, narrow):
    """Routers and shared experts beside quantised experts may have 16 bits, as x."""
    experts = fc.quantize(make_experts(rng, 3, D, F, dtype=narrow), "q8_0")
    shared = fc.FFN(make(rng, dtype=narrow), "silu")
    router = fc.Router(normal(rng, 3, D, dtype=narrow), top_k=2)
    layer = fc.MoE(experts, "silu", router, shared=shared)
    x = normal(rng, T, D, dtype=narrow)
    y, saved = layer.forward(x)
    assert y.dtype == narrow
    routed = fc.moe(x, saved.routing, experts, activation="silu")
    expected = routed.astype("f4") + shared(x).astype("f4")
    np.testing.assert_array_equal(y, expected.astype(narrow))
    assert layer.backward(y, saved).x.dtype == narrow
    with pytest.raises(TypeError, match=r"^x has dtype float64; expected float32 or 16 bits"):
        layer(x.astype("f8"))
    with pytest.raises(TypeError, match=r"^shared has dtype float64; expected float32"):
        fc.MoE(experts, "silu", router, shared=fc.FFN(make(rng, dtype=np.float64), "silu"))


# Relative errors of a GELU layer and a SwiGLU layer of d = 512, d_ff = 1024 with normal weights and
# inputs, which others reach by rounding. Ours may be smaller.
ERRORS = {
    "q8_0": (0.0076, 0.0093),
    "int8": (0.0109, 0.0132),
    "fp8_e4m3": (0.0377, 0.0469),
    "q4_k": (0.1016, 0.1266),
    "q4_1": (0.1114, 0.1368),
    "q4_0": (0.1215, 0.1500),
    "int4": (0.1429, 0.1770),
    "mxfp4": (0.1647, 0.2038),
    "q2_0": (0.585, 0.685),
    "tq1_0": (0.587, 0.691),
    "tq2_0": (0.587, 0.691),
    "q1_0": (0.773, 0.871),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_of_a_layer(name):
    rng = np.random.default_rng(11)
    d, f = 512, 1024
    gate, up = (rng.standard_normal((2, f, d)) / np.sqrt(d)).astype("f4")
    down = (rng.standard_normal((d, f)) / np.sqrt(f)).astype("f4")
    x = rng.standard_normal((64, d)).astype("f4")
    plain, gated = fc.FFNWeights(up=up, down=down), fc.FFNWeights(gate=gate, up=up, down=down)
    for w, activation, expected in zip((plain, gated), ("gelu", "silu"), ERRORS[name], strict=True):
        exact = fc.ffn(x, w, activation=activation)
        found = relative(fc.ffn(x, fc.quantize(w, name), activation=activation), exact)
        assert found <= 1.08 * expected
    one_scale = fc.quantize(gated, "tq2_0", scale="tensor")
    assert relative(fc.ffn(x, one_scale, activation="silu"), exact) <= 1.08 * 0.834


def test_copies_and_pickles(rng):
    w = quantized(make(rng), "q4_k")
    x = normal(rng, T, D, dtype=np.float32)
    y = fc.ffn(x, w, activation="silu")
    for again in (copy.copy(w), copy.deepcopy(w), pickle.loads(pickle.dumps(w))):
        assert again.up == w.up
        np.testing.assert_array_equal(fc.ffn(x, again, activation="silu"), y)


def test_packing_into_other_dtypes(rng):
    w = quantized(make(rng, dtype=np.float16), "q8_0")
    for dtype in ("float64", "float16"):
        packed = fc.pack(w, dtype=dtype)
        expected = fc.pack(w.dequantize(), dtype=dtype)
        np.testing.assert_array_equal(packed._buffer, expected._buffer)
        assert fc.pack(w, dtype=dtype, out=packed) is packed


def test_the_reference_takes_them(rng):
    w = quantized(make(rng), "q8_0")
    x = normal(rng, T, D, dtype=np.float32)
    y = fc.reference.ffn(x, w, activation="silu")
    np.testing.assert_array_equal(y, fc.reference.ffn(x, w.dequantize(), activation="silu"))


class Arguments:
    def __init__(self):
        rng = np.random.default_rng(0)
        self.w = make(rng)
        self.wq = fc.quantize(self.w, "int8")
        self.double = make(rng, dtype=np.float64)
        self.x = normal(rng, T, D, dtype=np.float32)
        self.y, self.saved = fc.ffn_forward(self.x, self.wq, activation="silu")


def weights(up, down, **more):
    return fc.FFNWeights(up=up, down=down, **more)


# The call, the error, and how its sentence begins.
BAD = [
    (
        lambda s: weights(s.wq.up, s.wq.up),
        (ValueError, f"down has shape ({F}, {D}); expected ({D}, {F}) to match up"),
    ),
    (
        lambda s: weights(s.wq.up, s.double.down),
        (TypeError, "down has dtype float64; expected float32 or 16 bits beside quantised weights"),
    ),
    (
        lambda s: weights(s.double.up, s.wq.down),
        (TypeError, "up has dtype float64; expected float32 or 16 bits beside quantised weights"),
    ),
    (
        lambda s: weights(s.wq.up, s.wq.down, b_up=s.wq.up),
        (TypeError, "b_up is of type QuantizedTensor; expected a numpy array"),
    ),
    (
        lambda s: weights(s.wq.up, s.wq.down, b_up=s.double.b_up),
        (TypeError, "b_up has dtype float64; expected float32 or 16 bits"),
    ),
    (
        lambda s: fc.ffn(s.x.astype("f8"), s.wq, activation="silu"),
        (TypeError, "x has dtype float64; expected float32 or 16 bits beside quantised weights"),
    ),
    (
        lambda s: fc.ffn(s.x[:, 1:], s.wq, activation="silu"),
        (ValueError, f"x has shape ({T}, {D - 1}); expected a last dimension of {D}"),
    ),
    (
        lambda s: fc.ffn_backward(s.y, s.saved, needs=("up",)),
        (ValueError, "needs has 'up', but w.up is quantised, so that it has no gradient"),
    ),
    (
        lambda s: fc.quantize(s.wq, "int8"),
        (TypeError, "w.gate is quantised already; expected an array"),
    ),
    (
        lambda s: fc.quantize(fc.pack(s.w), "int8"),
        (TypeError, "w is of type PackedWeights; expected FFNWeights (packed.unpack())"),
    ),
    (
        lambda s: fc.quantize(s.w, {"side": "int8"}),
        (ValueError, "format has 'side', which is not known"),
    ),
    (
        lambda s: fc.quantize(weights(s.w.up, s.w.down), {"gate": "int8"}),
        (ValueError, "format has 'gate', but w has no gate"),
    ),
    (
        lambda s: fc.quantize(s.w, {"up": 4}),
        (TypeError, "format is of type int; expected a name"),
    ),
    (
        lambda s: fc.quantize(s.w, "q4_k"),
        (ValueError, f"w.down has rows of {F} weights; expected a multiple of 256 for q4_k"),
    ),
    (
        lambda s: fc.FFNWeights.from_gate_up(s.wq.up, s.wq.down),
        (TypeError, "gate_up is of type QuantizedTensor; expected a numpy array"),
    ),
]


@pytest.mark.parametrize("call, expected", BAD)
def test_bad_arguments(call, expected):
    error, sentence = expected
    with pytest.raises(error, match="^" + re.escape(sentence)):
        call(Arguments())


def test_outputs_must_not_overlap_codes(rng):
    data = np.zeros(D * F * 4 + 4, np.uint8)
    codes = data[: D * F].view(np.int8).reshape(F, D)
    up = fc.QuantizedTensor.from_parts("int8", (F, D), codes=codes, scales=np.ones(1, "f4"))
    w = fc.FFNWeights(up=up, down=normal(rng, D, F, dtype=np.float32))
    out = data[: T * D * 4].view("f4").reshape(T, D)
    with pytest.raises(ValueError, match=r"out overlaps w.up; expected memory of its own"):
        fc.ffn(normal(rng, T, D, dtype=np.float32), w, activation="silu", out=out)
