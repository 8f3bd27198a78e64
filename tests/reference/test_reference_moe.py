"""The reference of mixtures against a sum over tokens and slots, and against the complex step."""

from dataclasses import replace

import numpy as np
import pytest
from support import all_biases, complex_step, make_experts, normal

import ffncore as fc
from ffncore import reference

T, D, F, E, K = 5, 3, 4, 4, 3

# A token without an expert in one slot, one with the same expert twice, and one without any expert.
# Expert 2 has no tokens.
EXPERTS = np.array([[0, 1, 3], [1, -1, 0], [3, 1, 3], [-1, -1, -1], [1, 0, 3]])

XIELU = fc.Activation("xielu", alpha_p=0.2, alpha_n=-0.3, beta=0.4, eps=-0.1)
GPT_OSS = fc.Activation("silu", alpha=1.702, limit=0.8, up_offset=1.0)
CASES = [
    *((False, act) for act in (fc.Activation("tanh"), XIELU)),
    *((True, act) for act in (fc.Activation("silu"), GPT_OSS, XIELU)),
]


def setting(rng, gated, on_input):
    w = make_experts(rng, E, D, F, gated=gated, biases=all_biases(gated))
    options = {"apply_router_weight_on_input": on_input}
    return normal(rng, T, D), normal(rng, T, K), w, options


@pytest.mark.parametrize("on_input", [False, True])
def test_is_the_sum_over_slots(on_input, gated, rng):
    x, p, w, options = setting(rng, gated, on_input)
    y = reference.moe(x, EXPERTS, p, w, activation="tanh", **options)
    for t in range(T):
        expected = np.zeros(D)
        for s in range(K):
            if EXPERTS[t, s] < 0:
                continue
            block = w.expert(EXPERTS[t, s])
            if on_input:
                expected += reference.ffn(p[t, s] * x[t], block, activation="tanh")
            else:
                expected += p[t, s] * reference.ffn(x[t], block, activation="tanh")
        np.testing.assert_allclose(y[t], expected, rtol=1e-13, atol=1e-13)
    assert not y[3].any()


@pytest.mark.parametrize("on_input", [False, True])
@pytest.mark.parametrize("gated, act", CASES, ids=str)
def test_gradients(gated, act, on_input, rng):
    x, p, w, options = setting(rng, gated, on_input)
    grad_y = normal(rng, T, D)
    grads = reference.moe_backward(grad_y, x, EXPERTS, p, w, activation=act, **options)
    arrays = {"x": x, "routing_weights": p, **w.arrays()}
    for name, array in arrays.items():

        def loss(moved, name=name):
            given = {**arrays, name: moved}
            y = reference.moe(
                given["x"],
                EXPERTS,
                given["routing_weights"],
                given,
                activation=act,
                dtype=np.complex128,
                **options,
            )
            return (grad_y * y).sum()

        numeric = complex_step(loss, array)
        assert np.abs(grads[name] - numeric).max() <= 1e-12 * max(1, np.abs(numeric).max()), name
        if name in w.arrays():
            assert not grads[name][2].any(), "nobody's expert"
    assert not grads["routing_weights"][EXPERTS < 0].any()
    assert ("alpha_p" in grads) == (act is XIELU)
    if act is XIELU:
        h = 1e-5
        for name in ("alpha_p", "alpha_n"):
            above, below = (
                (grad_y * reference.moe(x, EXPERTS, p, w, activation=moved, **options)).sum()
                for moved in (replace(act, **{name: getattr(act, name) + step}) for step in (h, -h))
            )
            assert grads[name] == pytest.approx((above - below) / (2 * h), rel=1e-7)


def test_leading_dimensions(rng):
    x, p, w, _ = setting(rng, True, False)
    grad_y = normal(rng, T, D)
    y = reference.moe(x, EXPERTS, p, w, activation="silu")
    grads = reference.moe_backward(grad_y, x, EXPERTS, p, w, activation="silu")
    fold = (a.reshape(1, T, 1, -1) for a in (grad_y, x, EXPERTS, p))
    folded = reference.moe_backward(*fold, w, activation="silu")
    fold = (a.reshape(1, T, 1, -1) for a in (x, EXPERTS, p))
    assert np.array_equal(reference.moe(*fold, w, activation="silu").reshape(T, D), y)
    assert folded["x"].shape == (1, T, 1, D)
    assert folded["routing_weights"].shape == (1, T, 1, K)
    for name, grad in grads.items():
        assert np.array_equal(folded[name].reshape(grad.shape), grad)


def test_no_tokens(rng):
    x, p, w, _ = setting(rng, True, False)
    none = (x[:0], EXPERTS[:0], p[:0])
    assert reference.moe(*none, w, activation="silu").shape == (0, D)
    grads = reference.moe_backward(x[:0], *none, w, activation="silu")
    assert grads["x"].shape == (0, D)
    assert not grads["up"].any()


def test_dtype_is_the_one_computed_in(rng):
    x, p, w, _ = setting(rng, True, False)
    y = reference.moe(x, EXPERTS, p, w, activation="silu", dtype=np.float32)
    assert y.dtype == np.float32
    grads = reference.moe_backward(y, x, EXPERTS, p, w, activation="silu", dtype=np.float32)
    assert {grad.dtype for grad in grads.values()} == {np.dtype(np.float32)}
