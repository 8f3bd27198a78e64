"""fc.moe_backward against a loop in numpy: sizes, needs=, out=, accumulate=, dtypes, packed."""

# ruff: noqa: ARG001 (a test names the fixtures that it runs under)

import numpy as np
import pytest
from support import (
    CASE_IDS,
    CASES,
    NARROW,
    TOLERANCE,
    Accuracy,
    all_biases,
    in_every_isa,
    make_experts,
    normal,
    same_bits,
    strided_copies,
    yardsticks,
)
from support_moe import backward, both, compare, forward, loop, make_routing, part, rough, turned
from test_moe import SIZES

import ffncore as fc
from ffncore.values.weights import NAMES

XIELU = fc.Activation("xielu", alpha_p=0.3, alpha_n=-0.4, beta=0.4, eps=-0.3)


def layer(rng, tokens, n, k, d, f, gated, dtype, none=0.0, biases=True):
    """x, routing, experts, grad_y"""
    names = all_biases(gated) if biases else ()
    w = make_experts(rng, n, d, f, gated=gated, biases=names, dtype=dtype)
    x, grad_y = normal(rng, tokens, d, dtype=dtype), normal(rng, tokens, d, dtype=dtype)
    return x, make_routing(rng, tokens, n, k, dtype, none=none), w, grad_y


def test_odd_sizes(dtype, gated, on_input, rng):
    accuracy = Accuracy()
    for t, n, k, d, f in SIZES:
        given = layer(rng, t, n, k, d, f, gated, dtype, none=0.1)
        options = {"activation": "gelu", "on_input": on_input}
        names = list(both(*given, **options)[1])
        y, *grads = in_every_isa(
            lambda: (lambda y, grads: (y, *grads.values()))(*both(*given, **options))  # noqa: B023
        )
        answer = y, dict(zip(names, grads, strict=True))
        exact, yardstick = loop(*given, **options), rough(*given, **options)
        compare(accuracy, answer, exact, yardstick, f"T={t} E={n} k={k} d={d} f={f}")
    accuracy.check()


@pytest.mark.parametrize("gated, act", CASES, ids=CASE_IDS)
def test_every_activation_and_option(gated, act, isa, on_input, rng):
    given = layer(rng, 23, 3, 2, 17, 35, gated, np.float64)
    for save in ("preactivations", "input"):
        answer = both(*given, activation=act, on_input=on_input, save=save)
        exact = loop(*given, activation=act, on_input=on_input)
        yardstick = rough(*given)
        compare(Accuracy(), answer, exact, yardstick)


def test_save_modes(isa, dtype, gated, on_input, rng):
    for tokens in (5, 90):
        given = layer(rng, tokens, 3, 2, 17, 33, gated, dtype)
        x, routing, w, grad_y = given
        options = {"activation": XIELU, "on_input": on_input}
        y, grads = both(*given, **options)
        y_input, light = forward(x, routing, w, save="input", **options)
        assert (light.nbytes, light.gate, light.up, light.save) == (0, None, None, "input")
        assert same_bits(y_input, y)
        for again in (backward(grad_y, light), backward(grad_y, light)):
            assert list(again) == list(grads)
            assert all(same_bits(again[name], a) for name, a in grads.items())


def test_xielu_parameters(isa, dtype, gated, on_input, rng):
    x, routing, w, grad_y = layer(rng, 41, 3, 2, 17, 70, gated, dtype, none=0.1)
    _, exact = loop(x, routing, w, grad_y, activation=XIELU, on_input=on_input)
    _, saved = forward(x, routing, w, activation=XIELU, on_input=on_input)
    numbers = fc.moe_backward(grad_y, saved).activation
    np.testing.assert_allclose(numbers, exact["activation"], rtol=20 * TOLERANCE[dtype])
    only = fc.moe_backward(grad_y, saved, needs=("activation",))
    assert only.activation == numbers
    assert (only.x, only.weights, only.routing_weights) == (None, None, None)
    twice = fc.moe_backward(grad_y, saved, needs=("activation",), out=only, accumulate=True)
    assert twice.activation.alpha_p == 2 * numbers.alpha_p
    nobody = fc.Routing(experts=np.full((41, 2), -1), weights=routing.weights)
    _, saved = forward(x, nobody, w, activation=XIELU, on_input=on_input)
    assert fc.moe_backward(grad_y, saved).activation == (0, 0)


def test_needs_computes_what_is_asked_for(isa, dtype, gated, on_input, rng):
    given = layer(rng, 37, 4, 2, 17, 35, gated, dtype, none=0.1)
    x, routing, w, grad_y = given
    for save in ("preactivations", "input"):
        _, saved = forward(x, routing, w, activation=XIELU, on_input=on_input, save=save)
        everything = backward(grad_y, saved)
        names = ["x", "routing_weights", *(n for n in NAMES if n in w.arrays()), "activation"]
        assert sorted(everything) == sorted(names)
        pairs = [("routing_weights", "x"), ("up", "b_down"), ("down", "routing_weights"), ()]
        for needs in [(n,) for n in names] + pairs:
            grads = backward(grad_y, saved, needs=needs)
            assert set(grads) == set(needs)
            assert all(same_bits(grads[name], everything[name]) for name in needs), needs


def test_a_partial_answer(rng):
    x, routing, w, grad_y = layer(rng, 9, 3, 2, 5, 7, True, np.float64)
    _, saved = forward(x, routing, w)
    grads = fc.moe_backward(grad_y, saved, needs=("up",))
    assert isinstance(grads, fc.MoEGrads)
    assert (grads.x, grads.routing_weights, grads.weights.gate) == (None, None, None)
    assert grads.weights.up.shape == (3, 7, 5)
    everything = fc.moe_backward(grad_y, saved)
    assert everything.weights.n_experts == 3
    assert everything.routing_weights.shape == (9, 2)
    assert fc.moe_backward(grad_y, saved, needs=iter(["x", "x"])).weights is None


# ---- what no token reaches -----------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [6, 90])
def test_experts_and_tokens_that_are_not_routed(tokens, isa, dtype, gated, on_input, rng):
    """Gradients of experts without tokens are 0; with accumulate= they stay as they were."""
    x, few, w, grad_y = layer(rng, tokens, 5, 2, 17, 35, gated, dtype)
    ids = np.array([1, 4, 3, 1, 1])[few.experts]
    ids[2], ids[5, 1] = -1, -1
    grad_y[2] = np.nan
    routing = fc.Routing(experts=ids, weights=few.weights)
    _, saved = forward(x, routing, w, on_input=on_input)
    room = {n: np.full_like(a, np.nan) for n, a in backward(grad_y, saved).items()}
    for grads in (backward(grad_y, saved), backward(grad_y, saved, out=room)):
        for name in w.arrays():
            assert not grads[name][[0, 2]].any(), name
            assert np.isfinite(grads[name].astype(np.float64)).all(), name
            assert grads[name][[1, 3, 4]].any(), name
        assert not grads["x"][2].any()
        assert not grads["routing_weights"][ids < 0].any()
    old = {name: np.full_like(a, 7) for name, a in room.items()}
    backward(grad_y, saved, out=old, accumulate=True)
    assert all((old[name][[0, 2]] == 7).all() for name in w.arrays())
    assert (old["x"][2] == 7).all()
    assert (old["routing_weights"][ids < 0] == 7).all()
    assert not any((old[name][[1, 3, 4]] == 7).all() for name in w.arrays())


def test_nobody_is_routed(isa, dtype, gated, on_input, rng):
    for tokens in (0, 3):
        x, routing, w, grad_y = layer(rng, tokens, 3, 2, 7, 19, gated, dtype)
        nobody = fc.Routing(experts=np.full((tokens, 2), -1), weights=routing.weights)
        for save in ("preactivations", "input"):
            _, saved = forward(x, nobody, w, on_input=on_input, save=save)
            grads = backward(grad_y, saved)
            assert grads["x"].shape == x.shape
            assert grads["routing_weights"].shape == (tokens, 2)
            assert not any(a.any() for a in grads.values())
            kept = {name: np.ones_like(a) for name, a in grads.items()}
            backward(grad_y, saved, out=kept, accumulate=True)
            assert all((a == 1).all() for a in kept.values())


# ---- out and accumulate --------------------------------------------------------------------------


def test_out_and_accumulate(isa, dtype, gated, on_input, rng):
    x, routing, w, grad_y = layer(rng, 37, 3, 2, 17, 35, gated, dtype)
    _, saved = forward(x, routing, w, on_input=on_input)
    fresh = backward(grad_y, saved)
    for turned_over in (False, True):

        def room(a, turned_over=turned_over):
            shape = a.shape[::-1] if turned_over else a.shape
            a = np.full(shape, np.nan, a.dtype)
            return a.T if turned_over else a

        out = {name: room(a) for name, a in fresh.items()}
        filled = fc.moe_backward(grad_y, saved, out=out)
        for name, a in filled.arrays().items():
            assert a is out[name]
            assert same_bits(a, fresh[name]), name
        again = fc.moe_backward(grad_y, saved, out=filled, accumulate=True)
        for name, a in again.arrays().items():
            assert a is out[name]
            twice, allowed = 2 * fresh[name].astype(np.float64), TOLERANCE[a.dtype]
            np.testing.assert_allclose(a.astype(np.float64), twice, rtol=allowed, atol=allowed)


def test_accumulate_leaves_tokens_without_an_expert_alone(dtype, rng):
    """Rows of dx without experts are 0, whatever an earlier call has left in the workspace."""
    x, routing, w, grad_y = layer(rng, 37, 3, 2, 17, 35, True, dtype)
    backward(grad_y, forward(x, routing, w)[1])
    nobody = np.full((37, 2), -1)
    nobody[5] = 0, 2
    idle = fc.Routing(experts=nobody, weights=routing.weights)
    dx = np.ones_like(x)
    backward(grad_y, forward(x, idle, w)[1], needs=("x",), out={"x": dx}, accumulate=True)
    assert (np.delete(dx, 5, axis=0) == 1).all()
    assert (dx[5] != 1).any()


def test_out_may_hold_some_of_the_gradients(rng):
    x, routing, w, grad_y = layer(rng, 9, 3, 2, 5, 7, True, np.float64)
    _, saved = forward(x, routing, w)
    fresh = backward(grad_y, saved)
    up, factors = np.ones((3, 7, 5)), np.ones((9, 2))
    out = {"up": up, "x": None, "routing_weights": factors}
    grads = backward(grad_y, saved, out=out, accumulate=True)
    np.testing.assert_allclose(up, 1 + fresh["up"], rtol=1e-13)
    np.testing.assert_allclose(factors, 1 + fresh["routing_weights"], rtol=1e-13)
    assert all(same_bits(grads[n] + 0.0, fresh[n] + 0.0) for n in fresh if n not in out)
    assert same_bits(grads["x"] + 0.0, fresh["x"] + 0.0)


def test_gradient_of_a_fused_array_lands_in_its_halves(isa, dtype, rng):
    fused, down = normal(rng, 3, 38, 17, dtype=dtype), normal(rng, 3, 17, 19, dtype=dtype)
    x, grad_y = normal(rng, 20, 17, dtype=dtype), normal(rng, 20, 17, dtype=dtype)
    routing = make_routing(rng, 20, 3, 2, dtype)
    for layout in ("concat", "interleaved"):
        w = fc.FFNWeights.from_gate_up(fused, down, layout=layout)
        _, saved = forward(x, routing, w, activation="tanh")
        room = np.empty_like(fused)
        mirror = fc.FFNWeights.from_gate_up(room, np.empty_like(down), layout=layout)
        out = fc.MoEGrads(weights=mirror)
        grads = fc.moe_backward(grad_y, saved, needs=("gate", "up", "down"), out=out)
        assert np.shares_memory(grads.weights.gate, room)
        fresh = fc.moe_backward(grad_y, saved).weights
        assert all(same_bits(a, getattr(fresh, name)) for name, a in mirror.arrays().items())


# ---- dtypes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("narrow", NARROW, ids=str)
def test_float32_gradients(narrow, isa, gated, on_input, rng, plan):
    """Rounded once they are the 16-bit gradients; sums over several calls stay in float32."""
    for tokens in (1, 37, 300):
        x, routing, w, grad_y = layer(rng, tokens, 3, 2, 17, 35, gated, narrow)
        _, saved = forward(x, routing, w, on_input=on_input)
        for chunk in (0, 1):
            plan(chunk)
            grads = backward(grad_y, saved)
            wide = {name: np.empty(a.shape, np.float32) for name, a in grads.items()}
            backward(grad_y, saved, out=wide)
            for name, a in grads.items():
                assert a.dtype == (np.float32 if name == "routing_weights" else narrow)
                assert same_bits(a, wide[name].astype(a.dtype)), (name, tokens)
            mixed = {"up": np.empty(w.up.shape, np.float32)}
            some = backward(grad_y, saved, out=mixed)
            assert same_bits(mixed["up"], wide["up"])
            assert same_bits(some["down"], grads["down"])
            before = {name: a.copy() for name, a in wide.items()}
            backward(grad_y, saved, out=wide, accumulate=True)
            for name, a in wide.items():
                np.testing.assert_allclose(a, 2 * before[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("narrow", NARROW, ids=str)
def test_float32_x_with_narrow_experts_is_exact(narrow, isa, gated, on_input, rng):
    x, routing, w, grad_y = layer(rng, 150, 3, 2, 35, 67, gated, narrow)
    x, grad_y = (a.astype(np.float32) for a in (x, grad_y))
    wide = turned(w, lambda a: a.astype(np.float32))
    y, grads = both(x, routing, wide, grad_y, on_input=on_input)
    _, saved = forward(x, routing, w, on_input=on_input)
    out = {name: np.empty_like(a) for name, a in grads.items()}
    backward(grad_y, saved, out=out)
    assert all(same_bits(out[name], a) for name, a in grads.items())
    for name, a in backward(grad_y, saved).items():
        assert a.dtype == (narrow if name in NAMES else np.float32)
        assert same_bits(a, grads[name].astype(a.dtype)), name
    for p in (fc.pack(w), fc.pack(wide, dtype=narrow)):
        y2, packed = both(x, routing, p, grad_y, on_input=on_input)
        assert same_bits(y2, y)
        assert all(same_bits(a, grads[name]) for name, a in packed.items())


@pytest.mark.parametrize("narrow", NARROW, ids=str)
def test_biases_may_be_float32(narrow, isa, gated, rng):
    x, routing, w, grad_y = layer(rng, 40, 3, 2, 17, 35, gated, narrow)
    biases = {name: getattr(w, name).astype(np.float32) for name in all_biases(gated)}
    other = fc.FFNWeights(**{**w.arrays(), **biases})
    y, grads = both(x, routing, w, grad_y)
    y2, grads2 = both(x, routing, other, grad_y)
    assert same_bits(y2, y)
    for name, a in grads2.items():
        assert a.dtype == (np.float32 if name in {*biases, "routing_weights"} else narrow), name
        assert same_bits(a.astype(grads[name].dtype), grads[name]), name


def test_nothing_between_is_kept_in_float16(isa, gated, rng):
    """A weight times a gradient may exceed the largest float16, even if their sum does not."""
    x, routing, w, grad_y = layer(rng, 2, 1, 1, 9, 17, gated, np.float16)
    grad_y[0], grad_y[1] = 3e4, -2.9e4
    factors = np.full((2, 1), 4, np.float32)
    routing = fc.Routing(experts=routing.experts, weights=factors)
    _, saved = forward(x, routing, turned(w, lambda a: a / np.float16(64)))
    grads = backward(grad_y, saved)
    assert all(np.isfinite(a.astype(np.float64)).all() for a in grads.values())
    exact = 4 * grad_y.astype(np.float64).sum(0)
    np.testing.assert_allclose(grads["b_down"][0].astype(np.float64), exact, rtol=1e-3)


@pytest.mark.parametrize("narrow", NARROW, ids=str)
def test_many_tokens_are_summed_in_float32(narrow, rng):
    """Long sums are as exact as short ones; kept in 16 bits, they would stop growing."""
    x, routing, w, grad_y = layer(rng, 2500, 1, 2, 5, 7, True, narrow, biases=False)
    x, grad_y = np.abs(x), np.abs(grad_y)
    routing = fc.Routing(experts=routing.experts, weights=np.ones((2500, 2), np.float32))
    _, exact = loop(x, routing, w, grad_y)
    twice = (np.concatenate([a, a]) for a in (x, grad_y))
    rows, grad_rows = twice
    _, yardstick = yardsticks(rows, w.expert(0), grad_rows, "silu")
    _, grads = both(x, routing, w, grad_y)
    for name in ("gate", "up", "down"):
        ours, allowed = (
            np.abs(g.astype(np.float64) - exact[name][0]) for g in (grads[name][0], yardstick[name])
        )
        assert ours.max() <= 1.5 * allowed.max() + 1e-12, name


# ---- packed experts, arrays ----------------------------------------------------------------------


def test_packed_experts_give_the_gradients_of_inputs(isa, dtype, gated, on_input, rng):
    for tokens in (1, 9, 200):
        x, routing, w, grad_y = layer(rng, tokens, 3, 2, 17, 35, gated, dtype, none=0.1)
        _, expected = both(x, routing, w, grad_y, on_input=on_input)
        for save in ("preactivations", "input"):
            _, saved = forward(x, routing, fc.pack(w), on_input=on_input, save=save)
            grads = fc.moe_backward(grad_y, saved)
            assert grads.weights is None
            assert set(grads.arrays()) == {"x", "routing_weights"}
            assert all(same_bits(a, expected[name]) for name, a in grads.arrays().items())
            only = backward(grad_y, saved, needs=("routing_weights",))
            assert same_bits(only["routing_weights"], expected["routing_weights"])


def test_strides(isa, dtype, gated, on_input, rng):
    x, routing, w, grad_y = layer(rng, 37, 3, 2, 17, 35, gated, dtype)
    _, grads = both(x, routing, w, grad_y, on_input=on_input)
    arrays = {name: list(strided_copies(a)) for name, a in w.arrays().items()}
    givens = (strided_copies(a) for a in (x, grad_y, routing.weights))
    for i, (x2, grad2, factors) in enumerate(zip(*givens, strict=True)):
        w2 = fc.FFNWeights(**{name: a[i] for name, a in arrays.items()})
        given = fc.Routing(experts=routing.experts, weights=factors)
        for save in ("preactivations", "input"):
            _, again = both(x2, given, w2, grad2, on_input=on_input, save=save)
            assert all(same_bits(again[name], a) for name, a in grads.items())
    one = np.broadcast_to(np.ones((), dtype), x.shape)
    _, saved = forward(x, routing, w, on_input=on_input)
    summed, ones = backward(one, saved), backward(np.ones_like(x), saved)
    assert all(same_bits(summed[name], a) for name, a in ones.items())


def test_leading_dimensions(isa, dtype, on_input, rng):
    x, flat, w, grad_y = layer(rng, 24, 3, 2, 7, 19, True, dtype)
    _, expected = both(x, flat, w, grad_y, on_input=on_input)
    index = np.arange(24).reshape(4, 6)
    over = np.array(index.T).T  # leading dimensions that do not merge
    for x2, grad2 in ((x[index], grad_y[index]), (np.asfortranarray(x[over]), grad_y[index])):
        _, grads = both(x2, part(flat, index), w, grad2, on_input=on_input)
        for name, a in grads.items():
            assert same_bits(a.reshape(expected[name].shape), expected[name]), name
        assert grads["routing_weights"].shape == (4, 6, 2)
        out = {
            name: np.ones((*a.shape[:2][::-1], a.shape[2]), a.dtype).swapaxes(0, 1)
            for name, a in grads.items()
            if name in ("x", "routing_weights")
        }
        _, saved = forward(x2, part(flat, index), w, on_input=on_input)
        backward(grad2, saved, out=out, needs=tuple(out))
        assert all(same_bits(a, grads[name]) for name, a in out.items())
        backward(grad2, saved, out=out, needs=tuple(out), accumulate=True)
        for name, a in out.items():
            twice, allowed = 2 * grads[name].astype(np.float64), TOLERANCE[a.dtype]
            np.testing.assert_allclose(a.astype(np.float64), twice, rtol=allowed, atol=allowed)
    _, grads = both(x[3], part(flat, 3), w, grad_y[3], on_input=on_input)
    assert grads["x"].shape == (7,)
    assert same_bits(grads["routing_weights"], expected["routing_weights"][3])
