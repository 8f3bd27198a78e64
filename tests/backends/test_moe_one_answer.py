"""A mixture has the same bits for every ISA, thread count, batch, packing, save mode and plan, and
the rows of an expert have the bits of a dense layer.

csrc/README.md has the rule. The sizes reach several blocks of 512 in each summed dimension, also in
the rows of an expert, and several chunks and batches. Each case is computed once with the defaults,
and then in every other way. Here small calls use several threads, too.
"""

# ruff: noqa: ARG001 (a test names the fixtures that it runs under)

import itertools
import threading

import numpy as np
import pytest
from support import (
    FLUSH_TO_ZERO,
    all_biases,
    make_experts,
    mxcsr_bits,
    normal,
    own_kernels,
    same_bits,
)
from support_moe import backward, both, forward, make_routing, moe, part, to_one
from test_one_answer import ACTIVATIONS, HUGE

import ffncore as fc

pytestmark = pytest.mark.usefixtures("always_threads")

THREADS = (1, 2, 3, 5)

# (token_chunk, ff_chunk, token_slice, tokens_in_rows); 0 and -1 stand for the plan's own values.
# Chunks are tokens in the forward pass, and whole blocks of 512 rows in the backward pass.
PLANS = {
    "chunks of 100 tokens": (100, 0, 0, -1),
    "small chunks, tokens in rows": (37, 1, 1, 1),
    "small chunks, tokens in panels": (37, 1, 1, 0),
    "whole, tokens in rows": (HUGE, HUGE, HUGE, 1),
    "whole, tokens in panels": (HUGE, HUGE, HUGE, 0),
}

# T, E, k, d, f: an expert with more rows than two blocks, alone and among others; then several
# blocks of each of the other dimensions.
SIZES = [
    *((1, 3, 2, 33, 70), (1150, 1, 1, 9, 11), (420, 2, 3, 7, 9), (9, 3, 2, 1100, 17)),
    *((9, 3, 2, 17, 1100), (130, 3, 2, 35, 67), (9, 2, 2, 7, 1700)),
]
LARGE = (900, 3, 2, 530, 130)


def place(size, gated):
    """on_input: each size is computed with both, half as often."""
    return (SIZES.index(size) + gated) % 2 == 1


class Case:
    """A mixture, its input, and its results with the defaults."""

    def __init__(self, rng, size, gated, dtype, on_input):
        t, n, k, d, f = size
        self.w = make_experts(rng, n, d, f, gated=gated, biases=all_biases(gated), dtype=dtype)
        self.x, self.grad_y = normal(rng, t, d, dtype=dtype), normal(rng, t, d, dtype=dtype)
        self.routing = make_routing(rng, t, n, k, dtype, none=0.1)
        self.options = {"activation": ACTIVATIONS[gated], "on_input": on_input}
        self.y, self.grads = self.run()
        self.wide = self.in_float32()

    def run(self, **options):
        return both(self.x, self.routing, self.w, self.grad_y, **self.options, **options)

    def in_float32(self):
        """16-bit gradients before they are rounded, where batches end within experts."""
        if self.x.dtype.itemsize > 2:
            return {}
        _, saved = forward(self.x, self.routing, self.w, **self.options)
        out = {name: np.empty(a.shape, np.float32) for name, a in self.w.arrays().items()}
        return backward(self.grad_y, saved, needs=tuple(out), out=out)

    def check(self, where, **options):
        y, grads = self.run(**options)
        assert same_bits(y, self.y), f"y: {where}"
        plain = moe(self.x, self.routing, self.w, **self.options)
        assert same_bits(plain, self.y), f"y of moe: {where}"
        assert list(grads) == list(self.grads)
        for name, gradient in grads.items():
            assert same_bits(gradient, self.grads[name]), f"{name}: {where}"
        for name, gradient in self.in_float32().items():
            assert same_bits(gradient, self.wide[name]), f"{name} in float32: {where}"
            assert same_bits(gradient.astype(self.x.dtype), self.grads[name]), f"{name}: {where}"

    def check_packed(self, where, **options):
        p = fc.pack(self.w)
        y, grads = both(self.x, self.routing, p, self.grad_y, **self.options, **options)
        assert same_bits(y, self.y), f"packed y: {where}"
        plain = moe(self.x, self.routing, p, **self.options)
        assert same_bits(plain, self.y), f"packed y of moe: {where}"
        assert set(grads) == {"x", "routing_weights"}
        for name, gradient in grads.items():
            assert same_bits(gradient, self.grads[name]), f"packed {name}: {where}"


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_isas_and_threads(size, gated, dtype, rng):
    case = Case(rng, size, gated, dtype, place(size, gated))
    for isa, threads in itertools.product(own_kernels(dtype), THREADS):
        if isa == "scalar" and threads != 3:
            continue
        with fc.using_isa(isa), fc.num_threads(threads):
            case.check(f"{isa}, {threads} threads")
            case.check_packed(f"{isa}, {threads} threads")


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_plans_and_save_modes(size, gated, dtype, rng, plan):
    case = Case(rng, size, gated, dtype, place(size, gated))
    for isa, (name, sizes) in itertools.product(own_kernels(dtype), PLANS.items()):
        if isa == "scalar" and not name.startswith("small"):
            continue
        plan(*sizes)
        with fc.using_isa(isa), fc.num_threads(2):
            case.check(f"{isa}, {name}")
            case.check_packed(f"{isa}, {name}, save='input'", save="input")
            if sizes[0] != HUGE:  # batches are recomputed separately, and saved by chunks
                case.check(f"{isa}, {name}, save='input'", save="input")
                case.check_packed(f"{isa}, {name}")


def test_large(gated, on_input, rng, plan):
    """Several blocks, chunks, batches and threads at once; the fast levels alone."""
    dtype = np.dtype(np.float32)
    isas = [isa for isa in own_kernels(dtype) if isa != "scalar"]
    if not isas:
        pytest.skip("the scalar level is too slow for this size")
    case = Case(rng, LARGE, gated, dtype, on_input)
    for isa, (threads, chunk) in itertools.product(isas, ((2, 0), (5, 300))):
        plan(chunk)
        with fc.using_isa(isa), fc.num_threads(threads):
            case.check(f"{isa}, {threads} threads")
            case.check(f"{isa}, {threads} threads", save="input")
            case.check_packed(f"{isa}, {threads} threads")


# ---- a token does not depend on the others -------------------------------------------------------


def check_rows(case, index, weights):
    """The same tokens in another call: the forward pass, and the gradients of a token."""
    x, routing = case.x[index], part(case.routing, index)
    y, grads = both(x, routing, weights, case.grad_y[index], **case.options)
    assert same_bits(y, case.y[index])
    assert same_bits(moe(x, routing, weights, **case.options), y)
    for name in ("x", "routing_weights"):
        assert same_bits(grads[name], case.grads[name][index]), name


def test_a_token_alone_and_among_others(isa, gated, dtype, on_input, rng):
    case = Case(rng, (331, 3, 3, 35, 40), gated, dtype, on_input)
    p = fc.pack(case.w)
    for start, count in ((0, 1), (136, 1), (5, 2), (60, 7), (31, 16), (3, 93), (1, 230)):
        for weights in (case.w, p):
            check_rows(case, slice(start, start + count), weights)


def test_tokens_in_another_order(isa, gated, dtype, on_input, rng):
    case = Case(rng, (200, 3, 2, 33, 40), gated, dtype, on_input)
    order = rng.permutation(200)
    check_rows(case, order, case.w)
    check_rows(case, np.repeat(order, 2), case.w)


def test_needs_do_not_matter(isa, gated, dtype, on_input, rng):
    case = Case(rng, (230, 3, 2, 35, 70), gated, dtype, on_input)
    _, saved = forward(case.x, case.routing, case.w, **case.options)
    for name, gradient in case.grads.items():
        assert same_bits(backward(case.grad_y, saved, needs=(name,))[name], gradient), name


def test_nan_and_infinity_stay_in_their_tokens(isa, gated, dtype, on_input, rng):
    case = Case(rng, (200, 3, 2, 33, 40), gated, dtype, on_input)
    case.x[5, 3], case.x[120, 0], case.grad_y[7, 2] = np.nan, np.inf, np.nan
    ids, factors = case.routing.experts.copy(), case.routing.weights.copy()
    ids[5], ids[9], factors[9, 0] = 0, 1, np.nan
    case.routing = fc.Routing(experts=ids, weights=factors)
    y, grads = case.run()
    clean = np.delete(np.arange(200), [5, 7, 9, 120])
    assert same_bits(y[clean], case.y[clean])
    assert np.isnan(y[[5, 9]]).all()
    for name in ("x", "routing_weights"):
        assert same_bits(grads[name][clean], case.grads[name][clean]), name
    with fc.using_isa("scalar"):
        case.y, case.grads = case.run()
        case.wide = case.in_float32()
    case.check("scalar")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("bits", [0x2000, 0x4000, 0x6000, FLUSH_TO_ZERO], ids=hex)
def test_the_callers_float_mode_does_not_matter(bits, threads, isa, dtype, on_input, rng):
    case = Case(rng, (40, 3, 2, 33, 40), True, dtype, on_input)
    with fc.num_threads(threads), mxcsr_bits(bits) as read:
        before = read()
        y, grads = case.run()
        packed = moe(case.x, case.routing, fc.pack(case.w), **case.options)
        assert read() & ~0x3F == before & ~0x3F
    assert same_bits(y, case.y)
    assert same_bits(packed, case.y)
    assert all(same_bits(grads[name], a) for name, a in case.grads.items())


def test_calls_from_several_threads(dtype, on_input, rng):
    """Concurrent calls do not share workspace or threads."""
    cases = [Case(rng, (60, 3, 2, 17, 35), i % 2 == 0, dtype, on_input) for i in range(3)]
    wrong = []

    def use(case):
        for _ in range(10):
            y, grads = case.run()
            if not all(same_bits(a, case.grads[n]) for n, a in grads.items()):
                wrong.append(case)
            if not same_bits(y, case.y):
                wrong.append(case)

    threads = [threading.Thread(target=use, args=(case,)) for case in cases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# ---- the dense layer -----------------------------------------------------------------------------


def dense(x, w, grad_y, activation, save="preactivations"):
    y, saved = fc.ffn_forward(x, w, activation=activation, save=save)
    grads = fc.ffn_backward(grad_y, saved)
    numbers = {} if grads.activation is None else {"activation": np.array(grads.activation)}
    return y, {**grads.arrays(), **numbers}


@pytest.mark.parametrize("tokens", [1, 9, 71, 130, 1090])
def test_one_expert_with_weight_1_is_the_dense_layer(tokens, isa, dtype, gated, on_input, rng):
    d, f = (35, 67) if tokens < 1000 else (9, 17)
    w = make_experts(rng, 3, d, f, gated=gated, biases=all_biases(gated), dtype=dtype)
    x, grad_y = normal(rng, tokens, d, dtype=dtype), normal(rng, tokens, d, dtype=dtype)
    act = ACTIVATIONS[gated]
    y, grads = dense(x, w.expert(1), grad_y, act)
    routing = to_one(tokens, 1, dtype)
    for save in ("preactivations", "input"):
        options = {"activation": act, "on_input": on_input, "save": save}
        y2, grads2 = both(x, routing, w, grad_y, **options)
        assert same_bits(y2, y)
        for name, a in grads.items():
            ours = grads2[name][1] if name in w.arrays() else grads2[name]
            assert same_bits(ours, a), (name, save)
        y2, grads2 = both(x, routing, fc.pack(w), grad_y, **options)
        assert same_bits(y2, y)
        assert same_bits(grads2["x"], grads["x"])


@pytest.mark.parametrize("size", [(40, 5, 3, 17, 35), (230, 3, 2, 67, 40), (400, 1, 3, 9, 11)])
def test_a_mixture_is_made_of_dense_layers(size, isa, dtype, gated, on_input, rng):
    """Routing weights that are powers of two do not round: results are those of dense layers.

    The outputs of slots are added in their order, gradients of x in the order of experts. In 16
    bits the unrounded terms of a sum are not available, so that a token has only one slot.
    """
    t, n, k, d, f = size
    k = 1 if dtype.itemsize == 2 else k
    w = make_experts(rng, n, d, f, gated=gated, biases=all_biases(gated), dtype=dtype)
    x, grad_y = normal(rng, t, d, dtype=dtype), normal(rng, t, d, dtype=dtype)
    routing = make_routing(rng, t, n, k, dtype, none=0.1)
    factors = rng.choice([-2, -1, 1, 2, 4], routing.weights.shape).astype(routing.weights.dtype)
    routing, act = fc.Routing(experts=routing.experts, weights=factors), "gelu"
    y, grads = both(x, routing, w, grad_y, activation=act, on_input=on_input)

    outputs = np.zeros((t, k, d), dtype)
    dx, seen = np.zeros_like(x), np.zeros(t, bool)
    for e in range(n):
        tokens, slots = np.nonzero(routing.experts == e)
        c = factors[tokens, slots][:, None].astype(dtype)
        of_x, of_y = (c, dtype.type(1)) if on_input else (dtype.type(1), c)
        out, own = dense(of_x * x[tokens], w.expert(e), of_y * grad_y[tokens], act)
        outputs[tokens, slots] = of_y * out
        for name in w.arrays():
            assert same_bits(grads[name][e] + 0, own[name] + 0), (name, e)
        for i, token in enumerate(tokens):
            row = (of_x * own["x"])[i]
            dx[token] = dx[token] + row if seen[token] else row
            seen[token] = True
    expected = np.zeros_like(x)
    for token, s in np.argwhere(routing.experts >= 0):
        first = s == np.argmax(routing.experts[token] >= 0)
        row = outputs[token, s]
        expected[token] = row if first else expected[token] + row
    assert same_bits(y, expected)
    assert same_bits(grads["x"], dx)
