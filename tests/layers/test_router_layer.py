"""fc.Router: logits, routing and gradients against numpy and central differences."""

import numpy as np
import pytest
from support import BFLOAT16, normal

import ffncore as fc

E, D, T, K = 6, 5, 9, 3


def test_logits(dtype, rng):
    weight, bias = normal(rng, E, D, dtype=dtype), normal(rng, E, dtype=dtype)
    x = normal(rng, T, D, dtype=dtype)
    jitter = (1 + 0.1 * normal(rng, T, 1)).astype(dtype)
    router = fc.Router(weight, bias=bias, logit_scale=0.5, logit_softcap=2.0, top_k=K)
    logits = router.logits(x, jitter=jitter)
    assert logits.dtype == (np.float64 if dtype == np.float64 else np.float32)
    wide = [a.astype(np.float64) for a in (weight, bias, x, jitter)]
    z = 0.5 * (wide[2] * wide[3] @ wide[0].T + wide[1])
    # With 16-bit x, too, a logit is rounded once, to float32.
    error = 1e-14 if dtype == np.float64 else 2e-7
    np.testing.assert_allclose(logits, 2 * np.tanh(z / 2), rtol=error, atol=error)
    routing = router(x, jitter=jitter)
    expected = fc.route(logits, K)
    assert np.array_equal(routing.experts, expected.experts)
    assert np.array_equal(routing.weights, expected.weights)


def test_a_norm_of_the_input(dtype, rng):
    weight, scale = normal(rng, E, D, dtype=dtype), normal(rng, D, dtype=dtype)
    x = normal(rng, T, D, dtype=dtype)
    router = fc.Router(weight, input_norm_eps=0.01, input_scale=scale, logit_scale=D**-0.5, top_k=K)
    wide = [a.astype(np.float64) for a in (x, scale, weight)]
    u = wide[0] / np.sqrt(np.square(wide[0]).mean(-1, keepdims=True) + 0.01)
    error = 1e-14 if dtype == np.float64 else 2e-7
    expected = D**-0.5 * (u * wide[1]) @ wide[2].T
    np.testing.assert_allclose(router.logits(x), expected, rtol=error, atol=error)
    with pytest.raises(ValueError, match=r"router\.input_scale has shape \(6,\)"):
        fc.Router(weight, input_scale=normal(rng, E, dtype=dtype), top_k=K)


def test_large_inputs_are_cut_into_blocks(rng):
    weight = normal(rng, 3, 4096)
    x, grad = normal(rng, 600, 4096), normal(rng, 600, 3)
    router = fc.Router(weight, top_k=3, score_fn="sigmoid", norm_topk_prob=False)
    routing, saved = router.forward(x)
    np.testing.assert_allclose(router.logits(x), x @ weight.T, rtol=1e-9, atol=1e-9)
    grads = router.backward(grad, saved)
    dz = fc.route_backward(grad, routing)
    np.testing.assert_allclose(grads.weight, dz.T @ x, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(grads.x, dz @ weight, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": K},
        {"top_k": K, "score_fn": "sigmoid", "norm_eps": 1e-20},
        {"top_k": K, "norm_topk_prob": False, "logit_scale": -0.6},
        {"top_k": K, "score_fn": "softmax_topk", "logit_softcap": 1.2},
        {"route": fc.sparsemixer, "jitter_eps": 0.2},
        {"top_k": K, "input_norm_eps": 0.1},
        {"top_k": K, "input_norm_eps": 0.0, "input_scale": np.linspace(-1, 2, D)},
        {"top_k": K, "input_scale": np.linspace(0.5, 2, D)},
    ],
)
def test_gradients(options, rng):
    arrays = {
        "x": normal(rng, 3, T, D),
        "weight": normal(rng, E, D),
        "bias": normal(rng, E),
        "per_expert_scale": normal(rng, E),
    }
    jitter = 1 + 0.1 * normal(rng, D)

    def weights_of(x, **arrays):
        router = fc.Router(**arrays, **options)
        routing, saved = router.forward(x, jitter=jitter)

        def backward(grad):
            found = router.backward(grad, saved)
            return {name: getattr(found, name) for name in ("x", *arrays)}

        return routing.weights, backward

    fc.check_gradients(weights_of, arrays)


@pytest.mark.parametrize("narrow", [np.dtype(np.float16), *BFLOAT16], ids=str)
def test_gradients_have_the_dtype_of_what_they_belong_to(narrow, rng):
    arrays = {
        "weight": normal(rng, E, D, dtype=narrow),
        "bias": normal(rng, E, dtype=np.float32),
        "per_expert_scale": normal(rng, E, dtype=narrow),
    }
    router = fc.Router(**arrays, top_k=K)
    x = normal(rng, T, D, dtype=narrow)
    routing, saved = router.forward(x)
    assert routing.weights.dtype == np.float32
    grads = router.backward(normal(rng, T, K, dtype=np.float32), saved)
    for name, array in {"x": x, **arrays}.items():
        assert getattr(grads, name).dtype == array.dtype


def test_a_narrow_bias_of_selection_is_widened(rng):
    weight, x = normal(rng, E, D), normal(rng, T, D)
    bias = normal(rng, E, dtype=np.float16)
    options = {"top_k": K, "score_fn": "sigmoid"}
    narrow = fc.Router(weight, e_score_correction_bias=bias, **options)(x)
    wide = fc.Router(weight, e_score_correction_bias=bias.astype(float), **options)(x)
    assert np.array_equal(narrow.experts, wide.experts)
    with pytest.raises(TypeError, match="e_score_correction_bias has dtype float64"):
        fc.Router(weight.astype("f4"), e_score_correction_bias=bias.astype(float), **options)


@pytest.mark.parametrize(
    "options, error, sentence",
    [
        ({"top_k": E + 1}, ValueError, "top_k is 7; expected 1 to 6, the number of experts"),
        ({"top_k": 1, "logit_softcap": 0.0}, ValueError, r"logit_softcap is 0\.0; expected a num"),
        ({"top_k": 1, "logit_scale": np.nan}, ValueError, "logit_scale is nan; expected a finite"),
        ({"top_k": 1, "logit_scale": "2"}, TypeError, "logit_scale is of type str; expected a num"),
        (
            {"top_k": 1, "bias": np.ones(D)},
            ValueError,
            r"router\.bias has shape \(5,\); expected \(6,\) to match router\.weight \(6, 5\)",
        ),
        (
            {"top_k": 1, "bias": np.ones(E, np.float32)},
            TypeError,
            r"router\.bias has dtype float32; expected float64 to match router\.weight",
        ),
        ({"top_k": 1, "n_groups": 2}, TypeError, "n_groups"),
    ],
)
def test_errors(options, error, sentence, rng):
    with pytest.raises(error, match=sentence):
        fc.Router(normal(rng, E, D), **options)


def test_errors_of_a_call(rng):
    router = fc.Router(normal(rng, E, D), top_k=K)
    with pytest.raises(ValueError, match=r"x has shape \(9, 6\); expected a last dimension of 5"):
        router(normal(rng, T, D + 1))
    with pytest.raises(
        TypeError, match=r"router\.weight has dtype float64; expected float32 or 16"
    ):
        router(normal(rng, T, D, dtype=np.float32))
