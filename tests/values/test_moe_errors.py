"""Bad arguments of mixtures: an error with one clear sentence, and nothing is changed."""

# ruff: noqa: ARG005 (every case is called with the setting)

import numpy as np
import pytest
from bad_input import D, F, T, check, f32
from support import NARROW, make_experts, make_weights, normal
from support_moe import make_routing, part, turned

import ffncore as fc

E, K = 4, 2


class Setting:
    """Arrays for a call; after the error all of them are compared with their old content."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.w = make_experts(rng, E, D, F, biases=("b_up",), dtype=np.float32)
        self.plain = make_experts(rng, E, D, F, gated=False, dtype=np.float32)
        self.double = make_experts(rng, E, D, F)
        self.block = make_weights(rng, D, F, dtype=np.float32)
        self.packed = fc.pack(self.w)
        self.x = normal(rng, T, D, dtype=np.float32)
        self.out = normal(rng, T, D, dtype=np.float32)
        self.base = normal(rng, 4, T, D, dtype=np.float32)
        self.frozen = normal(rng, T, D, dtype=np.float32)
        self.frozen.flags.writeable = False
        self.routing = make_routing(rng, T, E, K, np.float32)
        self.y, self.saved = forward(self)
        self.saved_packed = forward(self, w=self.packed)[1]
        self.saved_plain = forward(self, w=self.plain, activation="relu")[1]

    def bytes(self):
        arrays = [self.x, self.out, self.base, self.frozen, self.y, self.packed._buffer]
        arrays += [self.routing.experts, self.routing.weights, self.saved._panels]
        for w in (self.w, self.plain, self.double):
            arrays += w.arrays().values()
        return [a.tobytes() for a in arrays]


def moe(s, x=None, routing=None, w=None, activation="silu", call=fc.moe, **options):
    x, w = s.x if x is None else x, s.w if w is None else w
    routing = s.routing if routing is None else routing
    return call(x, routing, w, activation=activation, **options)


def forward(s, **options):
    return moe(s, call=fc.moe_forward, **options)


def backward(s, grad=None, saved=None, **options):
    grad = s.x if grad is None else grad
    return fc.moe_backward(grad, s.saved if saved is None else saved, **options)


def routed(s, experts=None, weights=None, n_experts=None):
    experts = s.routing.experts if experts is None else experts
    weights = s.routing.weights if weights is None else weights
    return fc.Routing(experts=experts, weights=weights, n_experts=n_experts)


def with_id(s, expert):
    """A routing whose ids were changed after it was made."""
    routing = routed(s, experts=s.routing.experts.copy())
    routing.experts[1, 1] = expert
    return routing


def over_weights(s):
    """x, and an out that shares memory with the routing weights."""
    room = np.ones((T, D), np.float32)
    routing = routed(s, weights=room.reshape(-1)[: T * K].reshape(T, K))
    return {"routing": routing, "out": room}


def over_ids(s):
    """x, and an out that shares memory with the ids of the experts."""
    room = np.zeros((T, D), np.float32)
    ids = room.reshape(-1)[: T * K].view(np.int32).reshape(T, K)
    return {"routing": routed(s, experts=ids), "out": room}


def saved_over_weights(s):
    room = over_weights(s)
    return forward(s, routing=room["routing"])[1], room["out"]


ARGUMENTS = [
    (
        lambda s: moe(s, f32(T, D + 1)),
        "x has shape (3, 6); expected a last dimension of 5 to match w.up (4, 7, 5)",
    ),
    (
        lambda s: moe(s, f32()[...]),
        "x has shape (); expected [..., d_model]",
    ),
    (
        lambda s: moe(s, w=s.block),
        "weights are those of a single layer; expected weights of experts",
    ),
    (
        lambda s: moe(s, w=fc.pack(s.block)),
        "weights are those of a single layer; expected weights of experts",
    ),
    (
        lambda s: moe(s, w=s.w.expert(1)),
        "weights are those of a single layer; expected weights of experts",
    ),
    (
        lambda s: fc.ffn(s.x, s.w, activation="silu"),
        "weights are those of 4 experts; expected those of a single layer (weights.expert(e)), or "
        "a call of fc.moe with a routing",
    ),
    (
        lambda s: fc.ffn_forward(s.x, s.packed, activation="silu"),
        "weights are those of 4 experts; expected those of a single layer",
    ),
    (
        lambda s: moe(s, w=backward(s, needs=("up",)).weights),
        "weights are gradients, some of which are None; expected all of them",
    ),
    (
        lambda s: moe(s, routing=part(s.routing, slice(2))),
        "routing.experts has shape (2, 2); expected (3, 2) to match x",
    ),
    (
        lambda s: moe(s, f32(1, T, D)),
        "routing.experts has shape (3, 2); expected (1, 3, 2) to match x",
    ),
    (
        lambda s: moe(s, routing=part(s.routing, 0)),
        "routing.experts has shape (2,); expected (3, 2) to match x",
    ),
    (
        lambda s: moe(s, f32(D)),
        "routing.experts has shape (3, 2); expected (2,) to match x",
    ),
    (
        lambda s: moe(s, routing=routed(s, n_experts=E + 1)),
        "routing.n_experts is 5; expected 4, the number of experts in weights",
    ),
    (
        lambda s: moe(s, routing=routed(s, np.full((T, K), E))),
        "routing.experts has 4; expected -1 (no expert) to 3",
    ),
    (
        lambda s: moe(s, routing=with_id(s, -2)),
        "routing.experts has -2; expected -1 (no expert) to 3",
    ),
    (
        lambda s: moe(s, w=s.packed, routing=with_id(s, 2**31 - 1)),
        "routing.experts has 2147483647; expected -1 (no expert) to 3",
    ),
    (lambda s: moe(s, activation="sillu"), "activation 'sillu' is not known; the nearest known"),
    (
        lambda s: moe(s, w=s.plain, activation=fc.Activation("silu", limit=7)),
        "option limit is for layers with a gate; got Activation('silu', limit=7.0, clamp='pre')",
    ),
    (
        lambda s: forward(s, save="everything"),
        "save is 'everything'; expected 'preactivations' or 'input'",
    ),
]

OUT = [
    (lambda s: moe(s, out=f32(T + 1, D)), "out has shape (4, 5); expected (3, 5) to match x"),
    (lambda s: moe(s, out=s.frozen), "out is read-only; expected a writable array"),
    (lambda s: moe(s, out=s.x), "out overlaps x; expected memory of its own"),
    (lambda s: forward(s, out=s.x[:]), "out overlaps x; expected memory of its own"),
    (
        lambda s: moe(s, s.base[0], out=s.base.reshape(-1)[7:22].reshape(T, D)),
        "out overlaps x; expected memory of its own",
    ),
    (
        lambda s: moe(s, out=s.w.up[1, :T]),
        "out overlaps w.up; expected memory of its own",
    ),
    (
        lambda s: moe(s, w=s.packed, out=s.packed._buffer.view(np.float32)[:15].reshape(T, D)),
        "out overlaps the packed weights; expected memory of its own",
    ),
    (
        lambda s: moe(s, **over_weights(s)),
        "out overlaps routing.weights; expected memory of its own",
    ),
    (
        lambda s: moe(s, **over_ids(s)),
        "out overlaps routing.experts; expected memory of its own",
    ),
    (
        lambda s: moe(s, out=np.lib.stride_tricks.as_strided(f32(9), (T, D), (8, 4))),
        "out has strides (8, 4) for shape (3, 5), so that elements share memory",
    ),
    (
        lambda s: moe(s, out=np.zeros((T, D), [("a", "u1"), ("b", "f4")])["b"]),
        "expected an aligned array",
    ),
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
        lambda s: backward(s, needs=("x", "routing_weight")),
        "needs has 'routing_weight', which is not known; the nearest known name is "
        "'routing_weights'",
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
        "needs has 'up', but packed weights give only the gradient of x and routing_weights",
    ),
    (
        lambda s: fc.ffn_backward(
            s.x, fc.ffn_forward(s.x, s.block, activation="silu")[1], needs=("routing_weights",)
        ),
        "needs has 'routing_weights', which is not known",
    ),
    (
        lambda s: backward(s, out={"routing": f32(T, K)}),
        "out has 'routing', which is not known; the nearest known name is 'routing_weights'",
    ),
    (
        lambda s: backward(s, out={"up": f32(E, F, D)}, needs=("x",)),
        "out.up is given, but needs is ('x',); expected 'up' in needs",
    ),
    (
        lambda s: backward(s, out={"down": f32(D, F)}),
        "out.down has shape (5, 7); expected (4, 5, 7) to match w.down",
    ),
    (
        lambda s: backward(s, out={"b_up": f32(F)}),
        "out.b_up has shape (7,); expected (4, 7) to match w.b_up",
    ),
    (
        lambda s: backward(s, out={"routing_weights": f32(T, K + 1)}),
        "out.routing_weights has shape (3, 3); expected (3, 2) to match routing_weights",
    ),
    (
        lambda s: backward(s, s.y, out={"x": s.y}),
        "out.x overlaps grad_y; expected memory of its own",
    ),
    (lambda s: backward(s, s.y, out={"x": s.x}), "out.x overlaps x; expected memory of its own"),
    (
        lambda s: backward(s, out={"x": s.w.down.reshape(-1)[:15].reshape(T, D)}),
        "out.x overlaps w.down; expected memory of its own",
    ),
    (
        lambda s: backward(
            s, out={"x": s.base[0], "routing_weights": s.base.reshape(-1)[14:20].reshape(T, K)}
        ),
        "out.routing_weights overlaps out.x; expected memory of its own",
    ),
    (
        lambda s: backward(s, out={"x": s.saved._panels[:15].reshape(T, D)}),
        "out.x overlaps the saved activations; expected memory of its own",
    ),
    (
        lambda s: backward(s, out={"routing_weights": s.routing.weights}),
        "out.routing_weights overlaps routing.weights; expected memory of its own",
    ),
    (
        lambda s: (lambda saved, room: backward(s, saved=saved, out={"x": room}))(
            *saved_over_weights(s)
        ),
        "out.x overlaps routing.weights; expected memory of its own",
    ),
    (
        lambda s: backward(s, accumulate=True),
        "accumulate is True and out is None; expected arrays to add into",
    ),
]


@pytest.mark.parametrize("call, sentence", ARGUMENTS + OUT + BACKWARD)
def test_value_errors(call, sentence):
    check(call, ValueError, sentence, Setting)


TYPES = [
    (
        lambda s: moe(s, routing=(s.routing.experts, s.routing.weights)),
        "routing is of type tuple; expected Routing",
    ),
    (
        lambda s: moe(s, routing=routed(s, weights=s.routing.weights.astype(np.float64))),
        "routing.weights has dtype float64; expected float32 for x of dtype float32",
    ),
    (
        lambda s: moe(s, s.x.astype(np.float64), w=s.double),
        "routing.weights has dtype float32; expected float64 for x of dtype float64",
    ),
    (lambda s: moe(s, [[1.0] * D] * T), "x is of type list; expected a numpy array"),
    (lambda s: moe(s, np.ma.array(s.x)), "x is a masked array; expected a plain numpy array"),
    (
        lambda s: moe(s, s.x.astype(np.float16)),
        "x has dtype float16; expected float32 to match the weights",
    ),
    (
        lambda s: moe(s, w=s.double),
        "x has dtype float32; expected float64 to match the weights",
    ),
    (
        lambda s: moe(s, w=(s.w.up, s.w.down)),
        "weights is of type tuple; expected FFNWeights or PackedWeights",
    ),
    (
        lambda s: moe(s, activation=None),
        "activation is of type NoneType; expected a name or an Activation",
    ),
    (lambda s: moe(s, out=[1]), "out is of type list; expected a numpy array"),
    (lambda s: moe(s, out=np.empty((T, D))), "out has dtype float64; expected float32 to match x"),
    (
        lambda s: fc.moe_backward(s.x, {"x": s.x}),
        "saved is of type dict; expected the second result of moe_forward",
    ),
    (
        lambda s: backward(s, saved=fc.ffn_forward(s.x, s.block, activation="silu")[1]),
        "saved is of type Saved; expected the second result of moe_forward",
    ),
    (
        lambda s: fc.ffn_backward(s.x, s.saved),
        "saved is of type MoESaved; expected the second result of ffn_forward",
    ),
    (
        lambda s: backward(s, s.x.astype(np.float64)),
        "grad_y has dtype float64; expected float32 to match saved",
    ),
    (lambda s: backward(s, [1.0]), "grad_y is of type list; expected a numpy array"),
    (lambda s: backward(s, needs="x"), "needs is of type str; expected a tuple of names"),
    (lambda s: backward(s, needs=(1,)), "needs has an entry of type int; expected a name"),
    (lambda s: backward(s, out=[s.out]), "out is of type list; expected "),
    (
        lambda s: backward(s, out={"routing_weights": np.empty((T, K))}),
        "out.routing_weights has dtype float64; expected float32 to match routing_weights",
    ),
    (
        lambda s: backward(s, out={"up": np.empty((E, F, D))}),
        "out.up has dtype float64; expected float32 to match w.up",
    ),
    (
        lambda s: backward(s, out={"activation": 3.0}),
        "out.activation is not a pair of numbers; expected (alpha_p, alpha_n)",
    ),
    (lambda s: fc.MoESaved(), "MoESaved is made by moe_forward"),
]


@pytest.mark.parametrize("call, sentence", TYPES)
def test_type_errors(call, sentence):
    check(call, TypeError, sentence, Setting)


def test_there_is_no_default_activation():
    s = Setting()
    with pytest.raises(TypeError, match="activation"):
        fc.moe(s.x, s.routing, s.w)
    with pytest.raises(TypeError, match="positional"):
        fc.moe(s.x, s.routing, s.w, "silu")


@pytest.mark.parametrize("narrow", NARROW, ids=str)
def test_dtypes_beside_16_bits(narrow, rng):
    w, routing = make_experts(rng, E, D, F, dtype=narrow), make_routing(rng, T, E, K, narrow)
    x = normal(rng, T, D, dtype=narrow)
    double = fc.Routing(experts=routing.experts, weights=routing.weights.astype(np.float64))
    with pytest.raises(TypeError, match=f"expected float32 for x of dtype {narrow}"):
        fc.moe(x, double, w, activation="silu")
    with pytest.raises(TypeError, match=f"out has dtype float32; expected {narrow} to match x"):
        fc.moe(x, routing, w, activation="silu", out=f32(T, D))
    with pytest.raises(TypeError, match="x has dtype float64"):
        fc.moe(x.astype(np.float64), routing, w, activation="silu")
    wide = turned(w, lambda a: a.astype(np.float32))
    with pytest.raises(TypeError, match="expected float32 to match the weights"):
        fc.moe(x, routing, wide, activation="silu")
