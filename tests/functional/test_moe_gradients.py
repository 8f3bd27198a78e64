"""fc.moe_backward against central differences, to 1e-7 of the largest entry; fc.check_gradients."""

# ruff: noqa: ARG001 (a test names the fixtures that it runs under)

import numpy as np
import pytest
from support import CASE_IDS, CASES, NARROW, all_biases, make_experts, normal
from support_moe import forward, make_routing
from test_gradients import CLEARANCE, TOLERANCE, distance_to_kinks

import ffncore as fc

# A slot without an expert, a token with one expert twice, and an expert (2) without tokens.
IDS = np.array([[0, 1], [1, 1], [-1, 0]])


def clear_mixture(rng, gated, act, on_input):
    """Arrays of a mixture whose preactivations are not close to kinks, in every slot."""
    while True:
        w = make_experts(rng, 3, 4, 5, gated=gated, biases=all_biases(gated))
        x, factors = normal(rng, 3, 4), normal(rng, 3, 2)
        rows = (factors if on_input else np.ones_like(factors))[..., None] * x[:, None]
        gaps = [
            distance_to_kinks(rows[t, s][None], w.expert(IDS[t, s]), act)
            for t, s in np.argwhere(IDS >= 0)
        ]
        if min(gaps) > CLEARANCE:
            return {"x": x, "routing_weights": factors, **w.arrays()}


def mixture(ids, **options):
    """A function for check_gradients: from the arrays to y and the gradients by name."""

    def layer(x, routing_weights, **arrays):
        routing = fc.Routing(experts=ids, weights=routing_weights)
        y, saved = forward(x, routing, fc.FFNWeights(**arrays), **options)
        return y, lambda grad_y: fc.moe_backward(grad_y, saved).arrays()

    return layer


@pytest.mark.parametrize("gated, act", CASES, ids=CASE_IDS)
def test_every_activation_and_option(gated, act, on_input, rng):
    arrays = clear_mixture(rng, gated, act, on_input)
    layer = mixture(IDS, activation=act, on_input=on_input)
    report = fc.check_gradients(layer, arrays, tolerance=TOLERANCE, samples=20)
    assert set(report) == set(arrays)


def test_a_mixture_of_several_tiles(isa, gated, on_input, rng):
    w = make_experts(rng, 2, 19, 35, gated=gated, biases=all_biases(gated))
    routing = make_routing(rng, 90, 2, 2, none=0.1)
    arrays = {"x": normal(rng, 90, 19), "routing_weights": routing.weights, **w.arrays()}
    layer = mixture(routing.experts, activation="gelu", on_input=on_input)
    report = fc.check_gradients(layer, arrays, tolerance=TOLERANCE, samples=5)
    assert all(entry.checked <= 5 for entry in report.values())


def test_xielu_parameters(isa, gated, on_input, rng):
    options = {"beta": 0.4, "eps": -0.1}
    act = fc.Activation("xielu", alpha_p=0.3, alpha_n=-0.4, **options)
    arrays = clear_mixture(rng, gated, act, on_input)
    x, factors = arrays.pop("x"), arrays.pop("routing_weights")
    routing, w = fc.Routing(experts=IDS, weights=factors), fc.FFNWeights(**arrays)

    def layer(alpha):
        given = fc.Activation("xielu", alpha_p=alpha[0], alpha_n=alpha[1], **options)
        y, saved = forward(x, routing, w, activation=given, on_input=on_input)
        return y, lambda grad_y: np.array(fc.moe_backward(grad_y, saved).activation)

    fc.check_gradients(layer, [np.array([0.3, -0.4])], tolerance=TOLERANCE)


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), *NARROW], ids=str)
def test_large_gradients_wherever_they_begin(isa, rng, dtype):
    """Gradients larger than L2 are written past the caches, in whole lines if they are aligned."""
    d, f = 1024, 1104  # rows of whole lines, 2.3 or 4.5 MB a matrix
    w = make_experts(rng, 3, d, f, dtype=dtype)
    x, grad_y = normal(rng, 6, d, dtype=dtype), normal(rng, 6, d, dtype=dtype)
    routing = fc.Routing(experts=np.array([[0], [2]] * 3), weights=np.ones((6, 1), np.float32))
    _, saved = fc.moe_forward(x, routing, w, activation="silu")
    grads = fc.moe_backward(grad_y, saved).arrays()
    assert all(grads[name].ctypes.data % 64 == 0 for name in ("gate", "up", "down"))

    def elsewhere(array):
        flat = np.full(array.size + 3, np.nan, array.dtype)[3:]
        return flat.reshape(array.shape)

    others = {name: elsewhere(array) for name, array in grads.items()}
    fc.moe_backward(grad_y, saved, out=others)
    for name, array in grads.items():
        np.testing.assert_array_equal(array, others[name], err_msg=name)
    for name in ("gate", "up", "down"):
        assert not grads[name][1].any()
        alone = fc.ffn_forward(x[::2], w.expert(0), activation="silu")[1]
        expected = getattr(fc.ffn_backward(grad_y[::2], alone).weights, name)
        np.testing.assert_array_equal(grads[name][0], expected, err_msg=name)
