"""Wrong types and dtypes: a TypeError with one clear sentence, and nothing is changed."""

# ruff: noqa: ARG005 (every case is called with the setting)

import numpy as np
import pytest
from bad_input import D, F, Setting, T, backward, check, f32, ffn

import ffncore as fc
from ffncore.arrays.dtypes import SUPPORTED

TYPES = [
    (lambda s: ffn(s, [[1.0] * D]), "x is of type list; expected a numpy array"),
    (lambda s: ffn(s, 3.0), "x is of type float; expected a numpy array"),
    (lambda s: ffn(s, np.ma.array(s.x)), "x is a masked array; expected a plain numpy array"),
    (lambda s: ffn(s, s.x.astype(object)), f"x has dtype object; expected {SUPPORTED}"),
    (lambda s: ffn(s, s.x.astype(np.int32)), f"x has dtype int32; expected {SUPPORTED}"),
    (lambda s: ffn(s, s.x.astype(np.complex64)), f"x has dtype complex64; expected {SUPPORTED}"),
    (
        lambda s: ffn(s, s.x.astype(">f4")),
        f"x has dtype >f4, which is not this machine's byte order; expected {SUPPORTED}",
    ),
    (
        lambda s: ffn(s, s.x.astype(np.float16)),
        "x has dtype float16; expected float32 to match the weights",
    ),
    (
        lambda s: ffn(s, s.x.astype(np.float64)),
        "x has dtype float64; expected float32 to match the weights",
    ),
    (
        lambda s: ffn(s, w=s.double),
        "x has dtype float32; expected float64 to match the weights",
    ),
    (
        lambda s: fc.FFNWeights(up=f32(F, D), down=np.ones((D, F))),
        "down has dtype float64; expected float32 to match up",
    ),
    (
        lambda s: fc.FFNWeights(up=f32(F, D).astype(np.float16), down=f32(D, F)),
        "down has dtype float32; expected float16 to match up",
    ),
    (
        lambda s: fc.FFNWeights(up=f32(F, D), down=f32(D, F), b_up=f32(F).astype(np.float16)),
        "b_up has dtype float16; expected float32 to match up",
    ),
    (
        lambda s: fc.FFNWeights(up=np.ones((F, D), "V2"), down=f32(D, F)),
        f"up has dtype void16; expected {SUPPORTED} (bfloat16 stored as raw bytes? pass "
        "up.view(ml_dtypes.bfloat16))",
    ),
    (
        lambda s: ffn(s, s.x.astype(np.float16).view("V2")),
        f"x has dtype void16; expected {SUPPORTED} (bfloat16 stored as raw bytes? pass x.view(",
    ),
    (
        lambda s: fc.FFNWeights.from_gate_up(f32(2 * F, D).astype(int), f32(D, F)),
        f"gate_up has dtype int64; expected {SUPPORTED}",
    ),
    (
        lambda s: fc.FFNWeights.from_gate_up(f32(2 * F, D), np.ones((D, F))),
        "down has dtype float64; expected float32 to match gate_up",
    ),
    (
        lambda s: fc.FFNWeights.from_gate_up(f32(4, D), f32(D, 2), b_gate_up=np.ones(4)),
        "b_gate_up has dtype float64; expected float32 to match gate_up",
    ),
    (
        lambda s: fc.FFNWeights(up=[[1.0]], down=f32(1, 1)),
        "up is of type list; expected a numpy array",
    ),
    (
        lambda s: fc.FFNWeights(up=f32(F, D), down=None),
        "down is of type NoneType; expected a numpy array",
    ),
    (
        lambda s: ffn(s, w=(s.w.up, s.w.down)),
        "weights is of type tuple; expected FFNWeights or PackedWeights",
    ),
    (
        lambda s: fc.pack({"up": s.w.up}),
        "weights is of type dict; expected FFNWeights or PackedWeights",
    ),
    (lambda s: fc.pack(s.packed), "weights are packed already; expected FFNWeights"),
    (lambda s: fc.pack(s.w, dtype="int8"), f"dtype is int8; expected {SUPPORTED}"),
    (lambda s: fc.pack(s.w, dtype="floaty"), f"dtype is 'floaty'; expected {SUPPORTED}"),
    (lambda s: fc.pack(s.w, dtype=s), "dtype is"),
    (lambda s: fc.pack(s.w, out=s.out), "out is of type ndarray; expected PackedWeights"),
    (lambda s: fc.pack(s.double, out=s.packed), "out has dtype float32; expected float64"),
    (lambda s: ffn(s, out=[1]), "out is of type list; expected a numpy array"),
    (
        lambda s: ffn(s, out=np.empty((T, D))),
        "out has dtype float64; expected float32 to match x",
    ),
    (
        lambda s: ffn(s, activation=None),
        "activation is of type NoneType; expected a name or an Activation",
    ),
    (
        lambda s: ffn(s, activation=["silu"]),
        "activation is of type list; expected a name or an Activation",
    ),
    (lambda s: fc.Activation(3), "activation is of type int; expected a name"),
    (lambda s: fc.Activation("silu", alpha="1"), "option alpha is of type str; expected a number"),
    (
        lambda s: fc.Activation("silu", limit=True),
        "option limit is of type bool; expected a number",
    ),
    (
        lambda s: fc.Activation("silu", alhpa=1.0),
        "option 'alhpa' is not known; the nearest known name is 'alpha'",
    ),
    (
        lambda s: fc.Activation("silu", up_offset=None),
        "option up_offset is None; expected a number",
    ),
    (
        lambda s: fc.ffn_backward(s.x, {"x": s.x}),
        "saved is of type dict; expected the second result of ffn_forward",
    ),
    (
        lambda s: fc.ffn_backward(s.saved, s.x),
        "saved is of type ndarray; expected the second result of ffn_forward",
    ),
    (
        lambda s: backward(s, s.x.astype(np.float64)),
        "grad_y has dtype float64; expected float32 to match saved",
    ),
    (lambda s: backward(s, [1.0]), "grad_y is of type list; expected a numpy array"),
    (
        lambda s: backward(s, needs="x"),
        "needs is of type str; expected a tuple of names like ('x',)",
    ),
    (lambda s: backward(s, needs=(1,)), "needs has an entry of type int; expected a name"),
    (
        lambda s: backward(s, out=[s.out]),
        "out is of type list; expected FFNGrads or a mapping",
    ),
    (
        lambda s: backward(s, out={"x": np.empty((T, D))}),
        "out.x has dtype float64; expected float32 to match x",
    ),
    (
        lambda s: fc.activation(s.x, s.x.astype(np.float64), activation="silu"),
        "up has dtype float64; expected float32 to match x",
    ),
    (
        lambda s: fc.activation_backward(s.x, s.x, activation="silu", out=s.out),
        "out is of type ndarray; expected a tuple (x, up)",
    ),
    (lambda s: fc.cost(1.5, s.w), "tokens is of type float; expected an integer"),
    (lambda s: fc.cost(1, d_model=5), "d_ff is of type NoneType; expected an integer"),
]


@pytest.mark.parametrize("call, sentence", TYPES)
def test_type_errors(call, sentence):
    check(call, TypeError, sentence)


def test_bfloat16_is_named():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = f32(T, D).astype(ml_dtypes.bfloat16)
    with pytest.raises(TypeError, match="x has dtype bfloat16; expected float32 to match"):
        fc.ffn(x, Setting().w, activation="silu")


def test_there_is_no_default_activation():
    s = Setting()
    with pytest.raises(TypeError, match="activation"):
        fc.ffn(s.x, s.w)
    with pytest.raises(TypeError, match="positional"):
        fc.ffn(s.x, s.w, "silu")
    with pytest.raises(TypeError, match="positional"):
        fc.FFNWeights(s.w.gate, s.w.up, s.w.down)
    with pytest.raises(TypeError, match="made by ffn_forward"):
        fc.Saved()
