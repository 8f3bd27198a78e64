"""Bad values and shapes: a ValueError with one clear sentence, and nothing is changed."""

# ruff: noqa: ARG005 (every case is called with the setting)

import numpy as np
import pytest
from bad_input import D, F, Setting, T, backward, check, f32, ffn, huge
from support import make_weights

import ffncore as fc

WEIGHTS = [
    (
        lambda s: fc.FFNWeights(gate=f32(F, D), up=f32(F, D), down=f32(D, F + 1)),
        "down has shape (5, 8); expected (5, 7) to match up (7, 5)",
    ),
    (
        lambda s: fc.FFNWeights(up=f32(F, D), down=f32(F, D)),
        "down has shape (7, 5); expected (5, 7) to match up (7, 5) (transposed? pass down.T)",
    ),
    (
        lambda s: fc.FFNWeights.from_gate_up(f32(8, D), f32(4, D)),
        "down has shape (4, 5); expected (5, 4) to match gate_up (8, 5) (transposed? pass down.T)",
    ),
    (
        lambda s: fc.FFNWeights(gate=f32(F, D + 1), up=f32(F, D), down=f32(D, F)),
        "gate has shape (7, 6); expected (7, 5) to match up (7, 5)",
    ),
    (
        lambda s: fc.FFNWeights(up=f32(F, 0), down=f32(0, F)),
        "up has shape (7, 0); expected at least 1 in each dimension",
    ),
    (
        lambda s: fc.FFNWeights(up=f32(F, D), down=f32(D, F), b_up=f32(D)),
        "b_up has shape (5,); expected (7,) to match up (7, 5)",
    ),
    (
        lambda s: fc.FFNWeights(up=f32(1, 2, F, D), down=f32(D, F)),
        "up has shape (1, 2, 7, 5); expected 2-dimensional [d_ff, d_model], or "
        "[n_experts, d_ff, d_model]",
    ),
    (
        lambda s: fc.FFNWeights(up=f32(2, F, D), down=f32(D, F)),
        "down has shape (5, 7); expected 3-dimensional [n_experts, d_model, d_ff]",
    ),
    (
        lambda s: fc.FFNWeights(up=f32(2, F, D), down=f32(2, D, F), b_up=f32(F)),
        "b_up has shape (7,); expected 2-dimensional [n_experts, d_ff]",
    ),
    (
        lambda s: fc.FFNWeights(up=f32(2, F, D), down=f32(3, D, F)),
        "down has shape (3, 5, 7); expected (2, 5, 7) to match up (2, 7, 5)",
    ),
    (
        lambda s: fc.FFNWeights.from_gate_up(f32(2, 8, D), f32(2, D, 4), b_gate_up=f32(8)),
        "b_gate_up has shape (8,); expected 2-dimensional [n_experts, 2 * d_ff]",
    ),
    (
        lambda s: fc.FFNWeights(up=f32(F, D), down=f32(D, F), b_down=f32(1, D)),
        "b_down has shape (1, 5); expected 1-dimensional [d_model]",
    ),
    (
        lambda s: fc.FFNWeights(up=f32(F, D), down=f32(D, F), b_gate=f32(F)),
        "b_gate is given and gate is None; expected gate, too",
    ),
    (
        lambda s: fc.FFNWeights.from_gate_up(f32(7, D), f32(D, 3)),
        "gate_up has shape (7, 5); expected an even number of rows",
    ),
    (
        lambda s: fc.FFNWeights.from_gate_up(f32(8, D), f32(D, 4), layout="interleave"),
        "layout is 'interleave'; expected 'concat' or 'interleaved'",
    ),
    (
        lambda s: fc.FFNWeights.from_gate_up(f32(8, D), f32(D, 4), order="gate"),
        "order is 'gate'; expected 'gate_first' or 'up_first'",
    ),
    (
        lambda s: fc.FFNWeights.from_gate_up(f32(8, D), f32(D, 4), b_gate_up=f32(4)),
        "b_gate_up has shape (4,); expected (8,) to match gate_up (8, 5)",
    ),
    (
        lambda s: fc.FFNWeights(up=huge(2**30, 2**29), down=huge(2**29, 2**30)),
        "the dimensions of up make 1073741824 x 536870912 elements; expected at most",
    ),
    (
        lambda s: fc.pack(s.double, out=fc.pack(make_weights(np.random.default_rng(0), D, F + 1))),
        "out is PackedWeights(gated, shape=(8, 5)",
    ),
]

SHAPES = [
    (
        lambda s: ffn(s, f32(T, D + 1)),
        "x has shape (3, 6); expected a last dimension of 5 to match w.up (7, 5)",
    ),
    (lambda s: ffn(s, f32()[...]), "x has shape (); expected [..., d_model]"),
    (
        lambda s: ffn(s, out=f32(T + 1, D)),
        "out has shape (4, 5); expected (3, 5) to match x",
    ),
    (lambda s: ffn(s, out=s.frozen), "out is read-only; expected a writable array"),
    (lambda s: ffn(s, out=s.x), "out overlaps x; expected memory of its own"),
    (
        lambda s: ffn(s, s.base[0], out=s.base.reshape(-1)[7:22].reshape(T, D)),
        "out overlaps x; expected memory of its own",
    ),
    (
        lambda s: ffn(s, w=fc.FFNWeights(up=s.base[0, :1], down=f32(D, 1)), out=s.base[0]),
        "out overlaps w.up; expected memory of its own",
    ),
    # Arrays that own their memory, and views of those.
    (
        lambda s: ffn(s, f32(F, D), out=s.w.up),
        "out overlaps w.up; expected memory of its own",
    ),
    (
        lambda s: ffn(s, f32(F, D), out=s.w.up[:]),
        "out overlaps w.up; expected memory of its own",
    ),
    (
        lambda s: (lambda room: ffn(s, w=fc.FFNWeights(up=room[:1], down=f32(D, 1)), out=room))(
            f32(T, D)
        ),
        "out overlaps w.up; expected memory of its own",
    ),
    (lambda s: ffn(s, s.x[:], out=s.x), "out overlaps x; expected memory of its own"),
    (
        lambda s: ffn(s, w=s.packed, out=s.packed._buffer.view(np.float32)[:15].reshape(T, D)),
        "out overlaps the packed weights; expected memory of its own",
    ),
    (
        lambda s: ffn(s, out=np.lib.stride_tricks.as_strided(f32(D), (T, D), (0, 4))),
        "out has strides (0, 4) for shape (3, 5), so that elements share memory",
    ),
    (
        lambda s: ffn(s, out=np.lib.stride_tricks.as_strided(f32(9), (T, D), (8, 4))),
        "out has strides (8, 4) for shape (3, 5), so that elements share memory",
    ),
    (
        lambda s: ffn(s, out=np.zeros((T, D), [("a", "u1"), ("b", "f4")])["b"]),
        "expected an aligned array",
    ),
    (
        lambda s: ffn(s, huge(2**57, 1), fc.FFNWeights(up=f32(4, 1), down=f32(1, 4))),
        "the tokens of x and the rows of w.up make 144115188075855872 x 4 elements",
    ),
    (
        lambda s: fc.ffn_forward(
            huge(2**40, 1), fc.FFNWeights(up=huge(2**30, 1), down=huge(1, 2**30)), activation="relu"
        ),
        "the tokens of x and the rows of w.up make 1099511627776 x 1073741824 elements",
    ),
    (
        lambda s: fc.ffn_forward(s.x, s.w, activation="silu", save="everything"),
        "save is 'everything'; expected 'preactivations' or 'input'",
    ),
    (
        lambda s: fc.ffn_forward(s.x, s.w, activation="silu", out=s.x),
        "out overlaps x; expected memory of its own",
    ),
    (
        lambda s: fc.activation(s.x, f32(T, D + 1), activation="silu"),
        "up has shape (3, 6); expected (3, 5) to match x",
    ),
    (
        lambda s: fc.activation(s.x, activation="silu", out=s.x),
        "out overlaps x; expected memory of its own",
    ),
    (
        lambda s: fc.activation_backward(s.x[:2], s.x, activation="silu"),
        "grad has shape (2, 5); expected (3, 5) to match x",
    ),
    (
        lambda s: fc.activation_backward(s.x, s.x, s.y, activation="silu", out=(s.out, s.out)),
        "out.up overlaps out.x; expected memory of its own",
    ),
    (
        lambda s: fc.activation_backward(s.x, s.x, activation="silu", out=(None, s.out)),
        "out has an array for up, but up is None; expected None in its place",
    ),
    (lambda s: fc.cost(1, d_model=0, d_ff=3), "d_model is 0; expected at least 1"),
    (lambda s: fc.cost(-1, s.w), "tokens is -1; expected at least 0"),
    (
        lambda s: fc.cost(1, s.w, d_ff=3),
        "weights and d_model or d_ff are given; expected weights, or d_model and d_ff",
    ),
    (
        lambda s: fc.cost(1, s.w, op="ffn_back"),
        "op is 'ffn_back'; expected one of ffn, ffn_forward",
    ),
    (lambda s: fc.cost(2**50, d_model=2**20, d_ff=1), "tokens and the layer's dimensions make"),
    (lambda s: fc.cost(1, s.w, needs=("x",)), "needs is given and op is 'ffn'; expected op="),
]

BACKWARD = [
    (
        lambda s: backward(s, f32(T, D + 1)),
        "grad_y has shape (3, 6); expected (3, 5) to match saved.x",
    ),
    (
        lambda s: backward(s, f32(1, T, D)),
        "grad_y has shape (1, 3, 5); expected (3, 5) to match saved.x",
    ),
    (
        lambda s: backward(s, needs=("x", "gat")),
        "needs has 'gat', which is not known; the nearest known name is 'gate'",
    ),
    (
        lambda s: backward(s, needs=("b_gate",)),
        "needs has 'b_gate', but the weights have no b_gate",
    ),
    (
        lambda s: backward(s, saved=s.saved_plain, needs=("gate",)),
        "needs has 'gate', but the weights have no gate",
    ),
    (
        lambda s: backward(s, needs=("activation",)),
        "needs has 'activation', but silu has no trainable parameters",
    ),
    (
        lambda s: backward(s, saved=s.saved_packed, needs=("x", "up")),
        "needs has 'up', but packed weights give only the gradient of x",
    ),
    (
        lambda s: backward(s, out={"upp": f32(F, D)}),
        "out has 'upp', which is not known; the nearest known name is 'up'",
    ),
    (
        lambda s: backward(s, out={"up": f32(F, D)}, needs=("x",)),
        "out.up is given, but needs is ('x',); expected 'up' in needs",
    ),
    (
        lambda s: backward(s, out={"down": f32(F, D)}),
        "out.down has shape (7, 5); expected (5, 7) to match w.down",
    ),
    (
        lambda s: backward(s, out={"x": s.w.down.reshape(-1)[:15].reshape(T, D)}),
        "out.x overlaps w.down",
    ),
    (
        lambda s: backward(s, s.y, out={"x": s.y}),
        "out.x overlaps grad_y; expected memory of its own",
    ),
    (lambda s: backward(s, s.y, out={"x": s.x}), "out.x overlaps x; expected memory of its own"),
    (
        lambda s: backward(s, out={"x": s.base[0], "b_up": s.base.reshape(-1)[14:21]}),
        "out.b_up overlaps out.x; expected memory of its own",
    ),
    (
        lambda s: backward(s, out={"x": s.saved._panels[:15].reshape(T, D)}),
        "out.x overlaps the saved activations; expected memory of its own",
    ),
    (
        lambda s: backward(s, accumulate=True),
        "accumulate is True and out is None; expected arrays to add into",
    ),
]

ACTIVATIONS = [
    (
        lambda s: ffn(s, activation="sillu"),
        "activation 'sillu' is not known; the nearest known name is 'silu'",
    ),
    (
        lambda s: fc.Activation("geluu"),
        "activation 'geluu' is not known; the nearest known name is 'gelu'",
    ),
    (lambda s: ffn(s, activation="zzz"), "activation 'zzz' is not known; known are identity, relu"),
    (lambda s: fc.Activation("gelu", alpha=1.0), "option alpha belongs to silu; got gelu"),
    (
        lambda s: fc.Activation("gelu", gate_softcap=1.0),
        "option gate_softcap belongs to silu and quick_gelu; got gelu",
    ),
    (
        lambda s: fc.Activation("relu", negative_slope=0.1),
        "option negative_slope belongs to leaky_relu; got relu",
    ),
    (lambda s: fc.Activation("silu", beta=0.5), "option beta belongs to xielu; got silu"),
    (
        lambda s: fc.Activation("silu", clamp="pre"),
        "option clamp is 'pre' without a limit; expected both or neither",
    ),
    (
        lambda s: fc.Activation("silu", clamp="before", limit=1),
        "option clamp is 'before'; expected 'pre' or 'post'",
    ),
    (lambda s: fc.Activation("silu", limit=-7), "option limit is -7.0; expected a number above 0"),
    (lambda s: fc.Activation("silu", limit=0), "option limit is 0.0; expected a number above 0"),
    (
        lambda s: fc.Activation("silu", limit=np.inf),
        "option limit is inf; expected a finite number",
    ),
    (
        lambda s: fc.Activation("silu", limit=10**400),
        "option limit is larger than any float; expected a finite number",
    ),
    (
        lambda s: ffn(s, activation=fc.Activation("silu", gate_softcap=1e-300)),
        "option gate_softcap is 1e-300, which is too small for float32; expected a number that",
    ),
    (
        lambda s: fc.Activation("silu", alpha=np.nan),
        "option alpha is nan; expected a finite number",
    ),
    (
        lambda s: fc.Activation("silu", up_softcap=-1),
        "option up_softcap is -1.0; expected a number above 0",
    ),
    (
        lambda s: fc.Activation("xielu", eps=0.1),
        "option eps is 0.1; expected a number not above 0",
    ),
    (
        lambda s: ffn(s, w=s.plain, activation=fc.Activation("silu", limit=7)),
        "option limit is for layers with a gate; got Activation('silu', limit=7.0, clamp='pre')",
    ),
    (
        lambda s: ffn(s, w=s.plain, activation=fc.Activation("silu", up_offset=1)),
        "option up_offset is for layers with a gate",
    ),
    (
        lambda s: fc.activation(s.x, activation=fc.Activation("silu", up_softcap=1)),
        "option up_softcap is for layers with a gate",
    ),
]


@pytest.mark.parametrize("call, sentence", WEIGHTS + SHAPES + BACKWARD + ACTIVATIONS)
def test_value_errors(call, sentence):
    check(call, ValueError, sentence)


def test_partial_gradients_are_no_weights():
    s = Setting()
    grads = fc.ffn_backward(s.x, s.saved, needs=("up",))
    with pytest.raises(ValueError, match="are gradients, some of which are None"):
        fc.ffn(s.x, grads.weights, activation="silu")
