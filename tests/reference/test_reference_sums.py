"""The order of sums: tests of the numpy specification, and of the kernels against it, bit by bit.

Sums over hidden units, inputs and tokens all have several partial sums, and the chunks of the plan
do not end where partial sums end.
"""

# ruff: noqa: ARG001 (a test names the fixtures that it runs under)

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from support import BFLOAT16, normal, same_bits

import ffncore as fc
from ffncore import reference
from ffncore.reference.sums import BLOCK, PARTIAL_SUM, additions, fma

# One or two complete partial sums and another one that ends in the middle of a block.
LONG = 2 * PARTIAL_SUM + 3 * BLOCK + 77
WIDE = PARTIAL_SUM + 3 * BLOCK + 77


def rounded(exact):
    """Round a Fraction to float32, once."""
    near = np.float32(float(exact))
    around = [np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf))]
    return min(around, key=lambda x: (abs(Fraction(float(x)) - exact), int(x.view(np.int32)) % 2))


def test_fma_rounds_once(rng):
    # Sums close to a tie, 1 + 2^-24 + tiny, which rounding to float64 first would make a tie.
    ties = np.array([[1 + 2**-12, 1 + 2**-12, 2**-60], [1 + 2**-23, 1, 2**-70]], np.float32)
    numbers = rng.standard_normal((500, 3)).astype(np.float32)
    numbers[:, 2] *= 2.0 ** rng.integers(-40, 20, 500)
    for a, b, c in np.concatenate([ties, -ties, numbers]):
        exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
        assert fma(a[None], b[None], c[None])[0] == rounded(exact), (a, b, c)


def test_sum_in_order_is_the_loop(rng):
    values = normal(rng, 2 * PARTIAL_SUM + BLOCK + 3, 2, dtype=np.float32)
    total = None
    for p in range(0, len(values), PARTIAL_SUM):
        partial = None
        for b in range(p, min(p + PARTIAL_SUM, len(values)), BLOCK):
            block = np.zeros(2, np.float32)
            for v in values[b : min(b + BLOCK, p + PARTIAL_SUM)]:
                block = block + v
            partial = block if partial is None else partial + block
        total = partial if total is None else total + partial
    assert same_bits(reference.sum_in_order(values), total)
    ones = np.ones((len(values), 1), np.float32)
    assert same_bits(reference.product_in_order(values, ones)[:, 0], total)


@pytest.mark.parametrize("n", [0, 1, BLOCK, BLOCK + 1])
def test_short_sums(n, rng):
    values = normal(rng, n, 3, dtype=np.float64)
    np.testing.assert_allclose(reference.sum_in_order(values), values.sum(axis=0), atol=1e-12)


def test_error_bound():
    assert [additions(n) for n in (0, 1, 512, 513, 1024, 32768, 32769)] == [
        *(0, 1, 512, 513, 513, 575, 576)
    ]
    assert reference.error_bound(4_000_000) < 4.3e-5
    assert reference.error_bound(10, np.float64) == pytest.approx(10 * 2.0**-53)


# ---- kernels: sums over tokens ------------------------------------------------------------------


def layer(rng, d, f, dtype=np.float32):
    """A layer without gate and activation, whose sums are those of its factors."""
    arrays = {"up": (f, d), "down": (d, f), "b_up": (f,), "b_down": (d,)}
    return fc.FFNWeights(**{n: normal(rng, *shape, dtype=dtype) for n, shape in arrays.items()})


def expected(x, grad_y, w):
    """y and every gradient of such a layer, summed in the specified order."""
    h = reference.product_in_order(x.T, w.up.T) + w.b_up
    y = reference.product_in_order(h.T, w.down.T) + w.b_down
    dh = reference.product_in_order(grad_y.T, w.down)
    gradients = {
        "x": reference.product_in_order(dh.T, w.up),
        "up": reference.product_in_order(dh, x),
        "down": reference.product_in_order(grad_y, h),
        "b_up": reference.sum_in_order(dh),
        "b_down": reference.sum_in_order(grad_y),
    }
    return y, gradients


def test_many_tokens(plan, rng):
    w = layer(rng, 2, 3)
    x, grad_y = normal(rng, LONG, 2, dtype=np.float32), normal(rng, LONG, 2, dtype=np.float32)
    want_y, want = expected(x, grad_y, w)
    for where in itertools.product(fc.available_isas(), [(0, 0), (5 * BLOCK, 0), (BLOCK, BLOCK)]):
        isa, chunks = where
        plan(*chunks)
        with fc.using_isa(isa):
            y, saved = fc.ffn_forward(x, w, activation="identity")
            grads = fc.ffn_backward(grad_y, saved)
        assert same_bits(y, want_y), where
        for name, gradient in grads.arrays().items():
            assert same_bits(gradient, want[name]), (name, where)


@pytest.mark.parametrize("tokens", [PARTIAL_SUM, PARTIAL_SUM + 1, LONG])
def test_many_tokens_added_to_a_gradient(tokens, isa, rng):
    # The first partial sum is added to the gradient block by block, the others as a whole.
    w = layer(rng, 2, 3)
    x, grad_y = (normal(rng, tokens, 2, dtype=np.float32) for _ in range(2))
    saved = fc.ffn_forward(x, w, activation="identity")[1]
    out = fc.ffn_backward(grad_y, saved, needs=("down", "b_down"))
    first = out.weights.b_down.copy()
    fc.ffn_backward(grad_y, saved, needs=("down", "b_down"), out=out, accumulate=True)
    want = first
    for block in range(0, PARTIAL_SUM, BLOCK):
        want = want + reference.sum_in_order(grad_y[block : block + BLOCK])
    for partial in range(PARTIAL_SUM, tokens, PARTIAL_SUM):
        want = want + reference.sum_in_order(grad_y[partial : partial + PARTIAL_SUM])
    assert same_bits(out.weights.b_down, want)


@pytest.mark.parametrize("chunk", [0, 3 * BLOCK])
def test_many_rows_of_an_expert(chunk, isa, plan, rng):
    # Two experts: one with all tokens, one with those of the first 1000.
    w = layer(rng, 2, 3)
    experts = fc.FFNWeights(**{n: np.stack([a, 2 * a]) for n, a in w.arrays().items()})
    x, grad_y = normal(rng, LONG, 2, dtype=np.float32), normal(rng, LONG, 2, dtype=np.float32)
    ids = np.zeros((LONG, 2), np.int32)
    ids[:, 1] = np.where(np.arange(LONG) < 1000, 1, -1)
    routing = fc.Routing(experts=ids, weights=np.ones((LONG, 2), np.float32), n_experts=2)
    plan(chunk)
    _, saved = fc.moe_forward(x, routing, experts, activation="identity")
    grads = fc.moe_backward(grad_y, saved, needs=("up", "down", "b_up", "b_down"))
    first, second = expected(x, grad_y, w)[1], expected(x[:1000], grad_y[:1000], experts.expert(1))
    for name, gradient in grads.weights.arrays().items():
        assert same_bits(gradient[0], first[name]), name
        assert same_bits(gradient[1], second[1][name]), name


@pytest.mark.parametrize("dtype", [*BFLOAT16, np.dtype(np.float16)], ids=str)
@pytest.mark.parametrize("accumulate", [False, True])
def test_narrow_gradients_of_many_tokens(dtype, accumulate, plan, rng):
    # A gradient of 16 bits is the float32 one, rounded once; numbers are such that h is exact.
    w = layer(rng, 2, 3)
    w = fc.FFNWeights(**{n: np.round(a * 2).astype(dtype) for n, a in w.arrays().items()})
    x, grad_y = (np.round(normal(rng, LONG, 2) * 2).astype(dtype) for _ in range(2))
    wide = fc.FFNWeights(**{n: a.astype(np.float32) for n, a in w.arrays().items()})
    want = expected(x.astype(np.float32), grad_y.astype(np.float32), wide)[1]
    names = ("up", "down", "b_up", "b_down")
    for where in itertools.product(fc.available_isas(), [(0, 0), (5 * BLOCK, 0), (BLOCK, BLOCK)]):
        isa, chunks = where
        plan(*chunks)
        out = {n: np.full(a.shape, 3, dtype) for n, a in w.arrays().items()}
        with fc.using_isa(isa):
            saved = fc.ffn_forward(x, w, activation="identity")[1]
            fc.ffn_backward(grad_y, saved, needs=names, out=out, accumulate=accumulate)
        for name in names:
            exact = want[name] + np.float32(3) if accumulate else want[name]
            assert same_bits(out[name], exact.astype(dtype)), (name, where)


@pytest.mark.slow
def test_many_tokens_of_a_wide_layer(rng):
    # The layer's partial sums would fill the workspace: dx is computed first, then a few units'
    # gradients at a time. A corner of each gradient is compared.
    if fc.available_isas() == ("scalar",):
        pytest.skip("takes minutes in the scalar level")
    tokens, d, f = PARTIAL_SUM + BLOCK + 3, 600, 3500
    w = fc.FFNWeights(up=normal(rng, f, d, dtype=np.float32), down=normal(rng, d, f).astype("f4"))
    x, grad_y = normal(rng, tokens, d, dtype=np.float32), normal(rng, tokens, d, dtype=np.float32)
    saved = fc.ffn_forward(x, w, activation="identity")[1]
    grads = fc.ffn_backward(grad_y, saved)
    dh = reference.product_in_order(grad_y.T, w.down[:, -2:])
    want_up = reference.product_in_order(dh, x[:, :3])
    assert same_bits(np.ascontiguousarray(grads.weights.up[-2:, :3]), want_up)
    h = reference.product_in_order(x.T, w.up[:2].T)
    want_down = reference.product_in_order(grad_y[:, -3:], h)
    assert same_bits(np.ascontiguousarray(grads.weights.down[-3:, :2]), want_down)
    few = fc.ffn_forward(x[:5], w, activation="identity")[1]
    assert same_bits(grads.x[:5], fc.ffn_backward(grad_y[:5], few, needs=("x",)).x)


# ---- kernels: sums over hidden units and inputs -------------------------------------------------


def check_every_way(w, tokens, chunks, plan, rng):
    """Every level and plan, tokens as panels and as rows, raw and packed weights."""
    x, grad_y = (normal(rng, tokens, w.d_model, dtype=np.float32) for _ in range(2))
    want_y, want = expected(x, grad_y, w)
    for where in itertools.product(fc.available_isas(), chunks, (0, 1)):
        isa, (of_tokens, of_units), rows = where
        plan(of_tokens, of_units, 0, rows)
        with fc.using_isa(isa):
            y, saved = fc.ffn_forward(x, w, activation="identity")
            assert same_bits(y, want_y), where
            grads = fc.ffn_backward(grad_y, saved)
            for name, gradient in grads.arrays().items():
                assert same_bits(gradient, want[name]), (name, where)
            y, saved = fc.ffn_forward(x, fc.pack(w), activation="identity")
            assert same_bits(y, want_y), where
            assert same_bits(fc.ffn_backward(grad_y, saved).x, want["x"]), where


@pytest.mark.parametrize("tokens", [1, 70], ids="T={}".format)
def test_many_hidden_units(tokens, plan, rng):
    chunks = [(0, 0), (0, 5 * BLOCK), (0, BLOCK)]
    check_every_way(layer(rng, 2, WIDE), tokens, chunks, plan, rng)


@pytest.mark.parametrize("tokens", [1, 70], ids="T={}".format)
def test_many_inputs(tokens, plan, rng):
    check_every_way(layer(rng, WIDE, 2), tokens, [(0, 0)], plan, rng)


@pytest.mark.parametrize("dtype", BFLOAT16, ids=str)
def test_long_sums_of_pairs(dtype, plan, rng):
    # All levels add pairs of bfloat16 in the same order, which the numpy specification does not
    # have: their bits are equal, and their error is within the bound.
    w = layer(rng, 2, WIDE, dtype)
    x = normal(rng, 70, 2, dtype=dtype)
    exact = reference.ffn(x, w, activation="identity")
    h = np.abs(reference.preactivations(x, w)[1]).astype(dtype).astype(np.float64)
    terms = h @ np.abs(w.down.astype(np.float64)).T + np.abs(w.b_down.astype(np.float64))
    answers = []
    for level in fc.available_isas():
        for weights in (w, fc.pack(w)):
            for chunks in [(0, 0), (0, 5 * BLOCK)]:
                plan(*chunks)
                with fc.using_isa(level):
                    answers.append(fc.ffn(x, weights, activation="identity"))
    for y in answers:
        assert same_bits(y, answers[0])
    # h and y are rounded to bfloat16, to 2^-9 of their size at most.
    bound = terms * (reference.error_bound(WIDE) + 2.0**-9) + np.abs(exact) * 2.0**-9
    assert (np.abs(answers[0].astype(np.float64) - exact) <= bound).all()


# ---- the bound ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("equal", [True, False], ids=["equal", "random"])
def test_gradients_of_four_million_tokens(equal, isa, rng):
    n = 4_000_000
    w = layer(rng, 1, 1)
    x, grad_y = (np.full((n, 1), 0.7, np.float32) for _ in range(2))
    if not equal:
        x, grad_y = normal(rng, n, 1, dtype=np.float32), normal(rng, n, 1, dtype=np.float32)
    saved = fc.ffn_forward(x, w, activation="identity")[1]
    grads = fc.ffn_backward(grad_y, saved, needs=("up", "down", "b_up", "b_down"))
    # The factors are those of the kernels, so that only the sums are tested.
    h = (x * w.up[0, 0] + w.b_up).astype(np.float64)
    dh = (grad_y * w.down[0, 0]).astype(np.float64)
    factors = {
        "up": (dh, x.astype(np.float64)),
        "down": (grad_y.astype(np.float64), h),
        "b_up": (dh, np.ones((n, 1))),
        "b_down": (grad_y.astype(np.float64), np.ones((n, 1))),
    }
    for name, (a, b) in factors.items():
        terms = (a * b)[:, 0]
        exact, size = math.fsum(terms), math.fsum(np.abs(terms))
        error = abs(float(getattr(grads.weights, name).item()) - exact)
        assert error <= reference.error_bound(n) * size, name
