"""The losses of routers: against the reference, for a uniform load, and their gradients."""

# ruff: noqa: ARG001 (a test names the fixtures that it runs under)

import numpy as np
import pytest
from support import in_every_isa, normal, strided_copies

import ffncore as fc
from ffncore import reference

FLOATS = [np.dtype(np.float32), np.dtype(np.float64)]
TOLERANCE = {FLOATS[0]: 2e-6, FLOATS[1]: 1e-13}
CONVENTIONS = ("hf", "megatron", "switch")


def probabilities(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_load_balancing_against_the_reference(convention, isa, dtype, rng):
    for shape in ((1, 1), (7, 3), (40, 60), (3, 9, 16), (2, 3, 5, 4)):
        z = 2 * normal(rng, *shape, dtype=dtype)
        k = min(3, shape[-1])
        routing = fc.route(z, k)
        options = {"convention": convention}
        for strided in (z, *strided_copies(z)):
            found = fc.load_balancing_loss(strided, routing, **options)
            assert isinstance(found, float)
            exact = reference.load_balancing_loss(z, routing.experts, **options)
            assert found == pytest.approx(exact, rel=TOLERANCE[dtype])
        p = probabilities(z)
        found = fc.load_balancing_loss(p, routing, from_logits=False, **options)
        assert found == pytest.approx(exact, rel=4 * TOLERANCE[dtype])


def test_value_at_uniform_load(isa):
    """The loss is k in transformers' convention, and 1 in those of Megatron and Switch."""
    z = np.zeros((2, 4, 8))
    ids = np.arange(16).reshape(2, 4, 2) % 8
    routing = fc.Routing(experts=ids, weights=np.ones(ids.shape))
    values = {c: fc.load_balancing_loss(z, routing, convention=c) for c in CONVENTIONS}
    assert values == pytest.approx({"hf": 2.0, "megatron": 1.0, "switch": 1.0})


def test_empty_slots_are_not_counted(isa, rng):
    z = normal(rng, 20, 4)
    routing = fc.switch_capacity(z, capacity=2)
    assert (routing.experts < 0).any()
    found = fc.load_balancing_loss(z, routing, convention="switch")
    mean = probabilities(z).mean(axis=0)
    assert found == pytest.approx(4 / 20 * (routing.counts * mean).sum())


@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_load_balancing_gradient(convention, from_logits, isa, rng):
    z = normal(rng, 2, 6, 5)
    routing = fc.route(z, 2)
    given = z if from_logits else probabilities(z)
    options = {"convention": convention, "from_logits": from_logits}

    def fn(z):
        loss = np.array(fc.load_balancing_loss(z, routing, **options))
        return loss, lambda grad: fc.load_balancing_loss_backward(
            float(grad), z, routing, **options
        )

    fc.check_gradients(fn, [given])
    # The formula by hand: (E / T) p (f - sum f p), where f are the counts of the experts.
    if convention == "hf" and from_logits:
        p, f = probabilities(z), routing.counts / 12
        expected = 5 / 12 * p * (f - (p * f).sum(axis=-1, keepdims=True))
        found = fc.load_balancing_loss_backward(1.0, z, routing)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_z_loss_against_the_reference(isa, dtype, rng):
    for shape in ((1, 1), (7, 3), (3, 9, 60), (129,), (40, 256)):
        for spread in (0.01, 3, 80):
            z = spread * normal(rng, *shape, dtype=dtype)
            exact = reference.router_z_loss(z)
            for strided in (z, *strided_copies(z)):
                found = fc.router_z_loss(strided)
                assert found == pytest.approx(exact, rel=TOLERANCE[dtype])


def test_z_loss_gradient(isa, rng):
    z = normal(rng, 3, 4, 5)

    def fn(z):
        loss = np.array(fc.router_z_loss(z))
        return loss, lambda grad: fc.router_z_loss_backward(float(grad), z)

    fc.check_gradients(fn, [z])
    log_sum = np.log(np.exp(z).sum(axis=-1, keepdims=True))
    expected = 2 / 12 * log_sum * probabilities(z)
    np.testing.assert_allclose(fc.router_z_loss_backward(1.0, z), expected, rtol=1e-13)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_no_tokens_give_zero(isa, dtype):
    for shape in ((0, 4), (2, 0, 4), (0, 3, 4)):
        z = np.ones(shape, dtype)
        routing = fc.route(z, 2)
        for convention in CONVENTIONS:
            assert fc.load_balancing_loss(z, routing, convention=convention) == 0
            grad = fc.load_balancing_loss_backward(1.0, z, routing, convention=convention)
            assert grad.shape == shape
            assert grad.dtype == dtype
        assert fc.router_z_loss(z) == 0
        assert fc.router_z_loss_backward(1.0, z).shape == shape


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_one_answer(dtype, rng):
    z = 3 * normal(rng, 70, 33, dtype=dtype)
    routing = fc.route(z, 4)
    in_every_isa(
        lambda: (
            np.array(fc.load_balancing_loss(z, routing)),
            np.array(fc.router_z_loss(z)),
            fc.load_balancing_loss_backward(0.01, z, routing),
            fc.router_z_loss_backward(0.001, z),
        )
    )


def own(ids, n=None):
    return fc.Routing(experts=np.array(ids), weights=np.ones(np.shape(ids)), n_experts=n)


Z = np.zeros((3, 4))


@pytest.mark.parametrize(
    "call, error, sentence",
    [
        (lambda: fc.load_balancing_loss(Z, own([[1]] * 3), convention="tf"), ValueError,
         "convention 'tf' is not known; the nearest known name is 'hf'"),
        (lambda: fc.load_balancing_loss(Z, [[1]] * 3), TypeError,
         "routing is of type list; expected a Routing"),
        (lambda: fc.load_balancing_loss(Z, own([[1]] * 2)), ValueError,
         "routing.experts has shape (2, 1); expected (3, 1) to match logits (3, 4)"),
        (lambda: fc.load_balancing_loss(Z, own([[1]] * 3, 5)), ValueError,
         "routing.n_experts is 5; expected 4 to match logits (3, 4)"),
        (lambda: fc.load_balancing_loss(Z, own([[4]] * 3)), ValueError,
         "routing.experts has an entry 4; expected -1 to 3"),
        (lambda: fc.load_balancing_loss_backward("1", Z, own([[1]] * 3)), TypeError,
         "grad is of type str; expected a number"),
        (lambda: fc.load_balancing_loss(Z[0], own([1]), convention="switch"), ValueError,
         "logits has shape (4,); expected [..., T, E]"),
        (lambda: fc.router_z_loss(Z.astype(int)), TypeError,
         "logits has dtype int64; expected float32 or float64"),
        (lambda: fc.router_z_loss_backward(np.inf, Z), ValueError,
         "grad is inf; expected a finite number"),
    ],
)  # fmt: skip
def test_bad_input(call, error, sentence):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == sentence
