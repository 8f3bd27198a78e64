"""Results have the same bits for every ISA, thread count, batch, packing, save mode and plan.

csrc/README.md has the rule. The sizes reach several blocks of 512 in each summed dimension, several
chunks and several threads. A case that is large in one dimension is small in the others, so that
the scalar level is fast enough. Each case is computed once with the defaults, and then in every
other way. Here small calls use several threads, too.
"""

# ruff: noqa: ARG001 (a test names the fixtures that it runs under)

import itertools

import numpy as np
import pytest
from support import (
    FLUSH_TO_ZERO,
    all_biases,
    make_weights,
    mxcsr_bits,
    normal,
    own_kernels,
    same_bits,
)

import ffncore as fc

pytestmark = pytest.mark.usefixtures("always_threads")

THREADS = (1, 2, 3, 5)
HUGE = 2**40

# (token_chunk, ff_chunk, token_slice, tokens_in_rows); 0 and -1 stand for the plan's own values.
PLANS = {
    "default": (0, 0, 0, -1),
    "smallest, tokens in rows": (1, 1, 1, 1),
    "smallest, tokens in panels": (1, 1, 1, 0),
    "whole, tokens in rows": (HUGE, HUGE, HUGE, 1),
    "whole, tokens in panels": (HUGE, HUGE, HUGE, 0),
    "few tokens": (1, 0, 0, -1),
    "few hidden units": (0, 1, 0, -1),
    "few tokens packed": (0, 0, 1, -1),
}

# T, d, f: several blocks of 512 of one dimension each, then all of them at once in the fast levels.
# From 1536 on the micro-kernel takes a sum over packed weights in steps.
SIZES = [(1, 33, 70), (9, 1100, 35), (9, 35, 1100), (1090, 19, 23), (70, 67, 130), (17, 7, 1700)]
LARGE = (530, 530, 1600)

ACTIVATIONS = {
    True: fc.Activation("silu", alpha=1.702, limit=0.9, up_offset=1.0),
    False: fc.Activation("xielu", alpha_p=0.3, alpha_n=-0.4, eps=-0.2),
}


class Case:
    """A layer, its input, and its results with the defaults."""

    def __init__(self, rng, size, gated, dtype, save="preactivations"):
        t, d, f = size
        self.w = make_weights(rng, d, f, gated=gated, biases=all_biases(gated), dtype=dtype)
        self.x, self.grad_y = normal(rng, t, d, dtype=dtype), normal(rng, t, d, dtype=dtype)
        self.activation = ACTIVATIONS[gated]
        self.y, self.grads = self.run(save=save)

    def run(self, save="preactivations"):
        y, saved = fc.ffn_forward(self.x, self.w, activation=self.activation, save=save)
        return y, self.backward(saved)

    def backward(self, saved):
        grads = fc.ffn_backward(self.grad_y, saved)
        numbers = {} if grads.activation is None else {"activation": np.array(grads.activation)}
        return {**grads.arrays(), **numbers}

    def check(self, where, save="preactivations"):
        y, grads = self.run(save)
        assert same_bits(y, self.y), f"y: {where}"
        plain = fc.ffn(self.x, self.w, activation=self.activation)
        assert same_bits(plain, self.y), f"y of ffn: {where}"
        assert list(grads) == list(self.grads)
        for name, gradient in grads.items():
            assert same_bits(gradient, self.grads[name]), f"{name}: {where}"

    def check_packed(self, where):
        p = fc.pack(self.w)
        y, saved = fc.ffn_forward(self.x, p, activation=self.activation)
        assert same_bits(y, self.y), f"packed y: {where}"
        plain = fc.ffn(self.x, p, activation=self.activation)
        assert same_bits(plain, self.y), f"packed y of ffn: {where}"
        grads = fc.ffn_backward(self.grad_y, saved)
        assert same_bits(grads.x, self.grads["x"]), f"packed x: {where}"


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_isas_and_threads(size, gated, dtype, rng):
    case = Case(rng, size, gated, dtype)
    for isa, threads in itertools.product(own_kernels(dtype), THREADS):
        if isa == "scalar" and threads not in (1, 3):
            continue
        with fc.using_isa(isa), fc.num_threads(threads):
            case.check(f"{isa}, {threads} threads")
            case.check_packed(f"{isa}, {threads} threads")


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_plans_and_save_modes(size, gated, dtype, rng, plan):
    case = Case(rng, size, gated, dtype)
    for isa, (name, sizes) in itertools.product(own_kernels(dtype), PLANS.items()):
        if isa == "scalar" and not name.startswith(("default", "smallest")):
            continue
        plan(*sizes)
        with fc.using_isa(isa), fc.num_threads(2):
            case.check(f"{isa}, {name}")
            case.check_packed(f"{isa}, {name}")
            case.check(f"{isa}, {name}, save='input'", save="input")


@pytest.mark.parametrize(
    "dtype",
    [np.dtype("float32"), pytest.param(np.dtype("float64"), marks=pytest.mark.slow)],
    ids=str,
)
def test_large(gated, dtype, rng, plan):
    """Several blocks, chunks and threads in all dimensions at once; the fast levels alone."""
    isas = [isa for isa in own_kernels(dtype) if isa != "scalar"]
    if not isas:
        pytest.skip("the scalar level is too slow for this size")
    case = Case(rng, LARGE, gated, dtype)
    ways = list(zip(PLANS.items(), itertools.cycle((1, 2, 5))))
    for isa, ((name, sizes), threads) in itertools.product(isas, ways):
        plan(*sizes)
        where = f"{isa}, {name}, {threads} threads"
        with fc.using_isa(isa), fc.num_threads(threads):
            case.check_packed(where)
            if name.startswith(("default", "smallest")):  # with 1, 2 and 5 threads
                case.check(where)
                case.check(f"{where}, save='input'", save="input")


def test_a_token_alone_and_among_others(isa, gated, dtype, rng):
    case = Case(rng, (137, 67, 130), gated, dtype)
    p = fc.pack(case.w)
    for start, count in ((0, 1), (136, 1), (5, 2), (60, 7), (31, 16), (3, 33), (64, 64), (1, 130)):
        rows = slice(start, start + count)
        for weights in (case.w, p):
            y, saved = fc.ffn_forward(case.x[rows], weights, activation=case.activation)
            assert same_bits(y, case.y[rows]), (start, count)
            grad_x = fc.ffn_backward(case.grad_y[rows], saved, needs=("x",)).x
            assert same_bits(grad_x, case.grads["x"][rows]), (start, count)
            y = fc.ffn(case.x[rows], weights, activation=case.activation)
            assert same_bits(y, case.y[rows]), (start, count)


def test_strides_do_not_matter(isa, gated, dtype, rng):
    case = Case(rng, (70, 67, 130), gated, dtype)
    arrays = {name: np.asfortranarray(a) for name, a in case.w.arrays().items()}
    case.w = fc.FFNWeights(**arrays)
    case.x, case.grad_y = np.asfortranarray(case.x), np.asfortranarray(case.grad_y)
    case.check("Fortran order")


def test_needs_do_not_matter(isa, gated, dtype, rng):
    case = Case(rng, (70, 67, 130), gated, dtype)
    _, saved = fc.ffn_forward(case.x, case.w, activation=case.activation)
    for name, gradient in case.grads.items():
        grads = fc.ffn_backward(case.grad_y, saved, needs=(name,))
        if name == "activation":
            assert same_bits(np.array(grads.activation), gradient)
        else:
            assert same_bits(grads.arrays()[name], gradient), name


def test_nan_and_infinity_stay_in_their_rows(isa, gated, dtype, rng):
    case = Case(rng, (37, 33, 40), gated, dtype)
    x = case.x.copy()
    x[5, 3], x[20, 0] = np.nan, np.inf
    y = fc.ffn(x, case.w, activation=case.activation)
    clean = np.delete(np.arange(37), [5, 20])
    assert same_bits(y[clean], case.y[clean])
    assert np.isnan(y[5]).all()
    with fc.using_isa("scalar"):
        assert same_bits(y, fc.ffn(x, case.w, activation=case.activation))


@pytest.mark.parametrize("threads", [1, 2])
def test_the_callers_float_mode_does_not_matter(threads, isa, dtype, rng):
    """Subnormal results would be zero in a flush-to-zero mode, in any thread.

    The arithmetic of bfloat16 makes them zero in any mode.
    """
    keeps = dtype.name != "bfloat16"
    tiny = np.finfo(dtype).tiny if keeps else 2.0**-126
    small = np.sqrt(tiny) / (64 if tiny < 1e-10 else 4)
    w = make_weights(rng, 67, 130, dtype=dtype)
    arrays = {name: a * dtype.type(small) for name, a in w.arrays().items()}
    w = fc.FFNWeights(gate=None, up=arrays["up"], down=w.down)
    x = normal(rng, 70, 67, dtype=dtype) * dtype.type(small)
    with fc.num_threads(threads):
        y, saved = fc.ffn_forward(x, w, activation="identity")
        expected = [y, *fc.ffn_backward(x, saved).arrays().values()]
        wide = np.abs(y.astype(np.float64))
        assert (wide < tiny).mean() > 0.5
        assert ((wide != 0).mean() > 0.5) == keeps
        assert keeps or not ((wide > 0) & (wide < tiny)).any()
        with mxcsr_bits(FLUSH_TO_ZERO) as read:
            before = read()
            y, saved = fc.ffn_forward(x, w, activation="identity")
            results = [y, *fc.ffn_backward(x, saved).arrays().values()]
            packed = fc.ffn(x, fc.pack(w), activation="identity")
            h = fc.activation(x, activation="identity")
            # The exception flags are sticky; the mode is what has to come back.
            assert read() & ~0x3F == before & ~0x3F
    assert all(same_bits(a, b) for a, b in zip(results, expected, strict=True))
    assert same_bits(packed, expected[0])
    assert same_bits(h, x)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rounding", [0x2000, 0x4000, 0x6000], ids=["down", "up", "zero"])
def test_the_callers_rounding_does_not_matter(rounding, threads, isa, dtype, rng):
    case = Case(rng, (70, 67, 130), True, dtype)
    h = fc.activation(case.x, activation="gelu")
    with fc.num_threads(threads), mxcsr_bits(rounding):
        y, grads = case.run()
        packed = fc.ffn(case.x, fc.pack(case.w), activation=case.activation)
        rounded_h = fc.activation(case.x, activation="gelu")
    assert same_bits(y, case.y)
    assert same_bits(packed, case.y)
    assert same_bits(rounded_h, h)
    assert all(same_bits(grads[name], case.grads[name]) for name in case.grads)
