"""fc.sparsemixer and fc.switch_capacity against the reference, forward and backward."""

# ruff: noqa: ARG001 (a test names the fixtures that it runs under)

import itertools

import numpy as np
import pytest
from support import in_every_isa, normal, same_bits

import ffncore as fc
from ffncore import reference
from ffncore.functional.model_routers import with_shared

FLOATS = [np.dtype(np.float32), np.dtype(np.float64)]
TOLERANCE = {FLOATS[0]: 4e-6, FLOATS[1]: 2e-14}

# ---- sparsemixer --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("jitter_eps", [0.0, 0.01, 0.3, 5.0])
def test_sparsemixer_against_the_reference(jitter_eps, isa, dtype, rng):
    for shape in ((0, 8), (1, 2), (40, 16), (2, 5, 33), (9,)):
        z = normal(rng, *shape, dtype=dtype)
        for moved in (z, z - 4):  # all below 0, so that distances are relative to |z|
            routing = fc.sparsemixer(moved, jitter_eps=jitter_eps)
            exact = reference.sparsemixer(moved, jitter_eps=jitter_eps)
            assert routing.weights.dtype == dtype
            np.testing.assert_array_equal(routing.experts, exact.experts)
            np.testing.assert_allclose(routing.weights, exact.weights, rtol=TOLERANCE[dtype])


def test_sparsemixer_by_hand(isa):
    """m = 2 keeps 1.9, but masks 1; without 2, the next largest, 1.9, masks 1, too."""
    routing = fc.sparsemixer(np.array([1.0, 2.0, 1.9]), jitter_eps=0.05)
    assert routing.experts.tolist() == [1, 2]
    np.testing.assert_allclose(routing.weights, [1 / (1 + np.exp(-0.1)), 1.0])


def test_sparsemixer_gradient(isa, rng):
    z = normal(rng, 7, 12)
    before = z.copy()

    def fn(z):
        routing = fc.sparsemixer(z, jitter_eps=0.4)
        return routing.weights, lambda grad: fc.route_backward(grad, routing)

    fc.check_gradients(fn, [z], samples=96)
    assert same_bits(z, before)
    grad = fn(z)[1](np.ones((7, 2)))
    assert (
        (grad != 0).sum(axis=-1) > 2
    ).any()  # other experts than the chosen two that the mask leaves


def test_sparsemixer_of_nan_and_infinity(isa, rng):
    z = normal(rng, 6, 5)
    z[1, 3], z[2], z[3], z[4, :4] = np.nan, np.nan, -np.inf, -np.inf
    routing = fc.sparsemixer(z, jitter_eps=0.1)
    clean = fc.sparsemixer(z[[0, 5]], jitter_eps=0.1)
    assert same_bits(routing.weights[[0, 5]], clean.weights)
    assert (routing.experts[:, 0] != routing.experts[:, 1]).all()
    assert routing.experts[1, 0] == 3
    assert routing.experts[2].tolist() == [0, 1]
    assert routing.experts[3].tolist() == [0, 1]
    assert routing.experts[4].tolist() == [4, 0]
    assert np.isnan(routing.weights[1:3]).any(axis=-1).all()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_sparsemixer_in_training(isa, dtype, rng):
    """Draws of 0 choose as without draws; other draws choose among the experts in the mask."""
    z = normal(rng, 3, 50, 6, dtype=dtype)
    calm = fc.sparsemixer(z, jitter_eps=0.4)
    draws = {"gumbel": np.zeros((3, 50, 2, 6), dtype), "uniform": np.zeros((3, 50, 2), dtype)}
    same = fc.sparsemixer(z, jitter_eps=0.4, **draws)
    assert same_bits(same.experts, calm.experts)
    assert same_bits(same.weights, calm.weights)

    draws["gumbel"] = rng.gumbel(size=(3, 50, 2, 6)).astype(dtype)
    draws["uniform"] = rng.random((3, 50, 2)).astype(dtype)
    routing = fc.sparsemixer(z, jitter_eps=0.4, **draws)
    assert (routing.experts[..., 0] != routing.experts[..., 1]).all()
    moved = routing.experts[..., 0] != calm.experts[..., 0]
    assert 0.05 < moved.mean() < 0.8
    # The first weight by hand: its entry in the softmax over the experts in the mask.
    m = z.max(axis=-1, keepdims=True)
    far = (m - z) / np.maximum(np.abs(z), m) > dtype.type(0.8)
    p = np.exp(np.where(far, -np.inf, z - m).astype(np.float64))
    p /= p.sum(axis=-1, keepdims=True)
    first = routing.experts[..., :1].astype(int)
    picked = np.take_along_axis(p, first, axis=-1)[..., 0]
    assert (picked > 0).all()
    third = moved & ~(draws["uniform"][..., 0] > 0.75)
    assert third.any()
    assert (moved & ~third).any()
    expected = np.where(third, picked / 3, picked)
    np.testing.assert_allclose(routing.weights[..., 0], expected, rtol=4 * TOLERANCE[dtype])
    # The gradient is that of the weight before the division.
    grad = np.zeros((3, 50, 2), dtype)
    grad[..., 0] = 1
    found = fc.route_backward(grad, routing)
    one = np.arange(6) == first
    np.testing.assert_allclose(
        found, picked[..., None] * (one - p), rtol=0, atol=4 * TOLERANCE[dtype]
    )


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_sparsemixer_has_one_answer(dtype, rng):
    z, grad = normal(rng, 60, 16, dtype=dtype), normal(rng, 60, 2, dtype=dtype)

    def compute():
        routing = fc.sparsemixer(z, jitter_eps=0.3)
        return routing.experts, routing.weights, fc.route_backward(grad, routing)

    in_every_isa(compute)


# ---- capacity -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("top_k", [1, 2])
def test_capacity_against_the_reference(top_k, isa, dtype, rng):
    shapes = ((0, 4), (1, 2), (30, 4), (3, 17, 8), (2, 2, 9, 3), (2, 0, 5), (0, 3, 4))
    for shape, capacity in itertools.product(shapes, (0, 1, 3, 100)):
        z = normal(rng, *shape, dtype=dtype)
        routing = fc.switch_capacity(z, capacity=capacity, top_k=top_k)
        exact = reference.switch_capacity(z, capacity=capacity, top_k=top_k)
        np.testing.assert_array_equal(routing.experts, exact.experts)
        np.testing.assert_allclose(routing.weights, exact.weights, rtol=TOLERANCE[dtype])
        assert (routing.weights[routing.experts < 0] == 0).all()
        assert routing.counts.max(initial=0) <= capacity * max(1, int(np.prod(shape[:-2])))


def test_capacity_of_batch_rows_in_token_order(isa):
    z = np.zeros((2, 4, 3))
    z[..., 1] = 1
    z[1, 1, 2] = 9
    routing = fc.switch_capacity(z, capacity=2)
    assert routing.experts[..., 0].tolist() == [[1, 1, -1, -1], [1, 2, 1, -1]]
    assert routing.counts.tolist() == [0, 4, 1]


def test_first_choices_before_second_ones(isa):
    """Expert 1 is the second choice of a token and the first choice of a later one, which gets it;
    the first token then has all its weight on its first choice."""
    z = np.array([[2.0, 1.0, -9.0], [1.0, 2.0, -9.0]])
    routing = fc.switch_capacity(z, capacity=1, top_k=2)
    assert routing.experts.tolist() == [[0, -1], [1, -1]]
    np.testing.assert_allclose(routing.weights, [[1, 0], [1, 0]])


@pytest.mark.parametrize("top_k", [1, 2])
def test_capacity_gradient(top_k, isa, rng):
    """A dropped token has no gradient; a kept one has gradients for all logits with top_k=1."""
    z = normal(rng, 12, 4)
    routing = fc.switch_capacity(z, capacity=2, top_k=top_k)
    dropped = (routing.experts < 0).all(axis=-1)
    assert dropped.any()

    def fn(z):
        routing = fc.switch_capacity(z, capacity=2, top_k=top_k)
        return routing.weights, lambda grad: fc.route_backward(grad, routing)

    fc.check_gradients(fn, [z])
    grad = fc.route_backward(normal(rng, 12, top_k), routing)
    assert (grad[dropped] == 0).all()
    if top_k == 1:
        assert (grad[~dropped] != 0).all()


# ---- bad input ----------------------------------------------------------------------------------

Z = np.zeros((3, 4))


@pytest.mark.parametrize(
    "call, error, sentence",
    [
        (lambda: fc.sparsemixer(Z[:, :1], jitter_eps=0.1), ValueError,
         "logits has shape (3, 1); expected two experts or more"),
        (lambda: fc.sparsemixer(Z, jitter_eps=-1), ValueError,
         "jitter_eps is -1; expected a number not below 0"),
        (lambda: fc.sparsemixer(Z, jitter_eps="0.1"), TypeError,
         "jitter_eps is of type str; expected a number"),
        (lambda: fc.sparsemixer(Z, jitter_eps=0.1, gumbel=np.zeros((3, 2, 4))), ValueError,
         "one of gumbel and uniform is given; expected both or neither"),
        (lambda: fc.sparsemixer(Z, jitter_eps=0.1, gumbel=Z, uniform=Z), ValueError,
         "gumbel has shape (3, 4); expected (3, 2, 4) to match logits (3, 4)"),
        (lambda: fc.sparsemixer(Z.astype(np.float16), jitter_eps=0.1), TypeError,
         "logits has dtype float16; expected float32 or float64"),
        (lambda: fc.switch_capacity(Z[0], capacity=1), ValueError,
         "logits has shape (4,); expected [..., T, E]"),
        (lambda: fc.switch_capacity(Z, capacity=1.5), TypeError,
         "capacity is of type float; expected an integer"),
        (lambda: fc.switch_capacity(Z, capacity=-1), ValueError,
         "capacity is -1; expected at least 0"),
        (lambda: fc.switch_capacity(Z, capacity=1, top_k=3), ValueError,
         "top_k is 3; expected 1 or 2"),
        (lambda: fc.switch_capacity(Z[:, :1], capacity=1, top_k=2), ValueError,
         "top_k is 2; expected 1 to 1, the number of experts"),
    ],
)  # fmt: skip
def test_bad_input(call, error, sentence):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == sentence


# ---- shared experts that the router weights


def test_with_shared_chooses_the_last_experts_always(rng):
    z, bias = rng.standard_normal((3, 4, 7)), rng.standard_normal(5)
    routing = with_shared(
        z, top_k=2, n_shared=2, e_score_correction_bias=bias, routed_scaling_factor=1.5
    )
    s = 1 / (1 + np.exp(-z))
    chosen = np.argsort(-(s[..., :5] + bias), axis=-1)[..., :2]
    expected = np.concatenate([chosen, np.broadcast_to([5, 6], (3, 4, 2))], axis=-1)
    assert np.array_equal(routing.experts, expected)
    taken = np.take_along_axis(s, expected, axis=-1)
    weights = 1.5 * taken / taken.sum(-1, keepdims=True)
    np.testing.assert_allclose(routing.weights, weights, rtol=1e-13)

    def weights_of(logits):
        made = with_shared(logits, top_k=2, n_shared=2, e_score_correction_bias=bias)
        return made.weights, lambda grad: {"logits": fc.route_backward(grad, made)}

    fc.check_gradients(weights_of, {"logits": z})
