"""fc.fake_quantize: derivatives where it is smooth, and its definition elsewhere."""

import re

import numpy as np
import pytest
from support import normal

import ffncore as fc
from ffncore.quantisation.fake import LEARNED

MADE = [name for name, info in fc.formats().items() if info.can_quantize]
STEP = 1e-6


def numeric(f, x):
    """Central differences of a number f(x) by each entry of x."""
    found = np.empty_like(x)
    for i in np.ndindex(x.shape):
        moved = [x.copy(), x.copy()]
        moved[0][i] += STEP
        moved[1][i] -= STEP
        found[i] = (f(moved[0]) - f(moved[1])) / (2 * STEP)
    return found


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("shape", [(3, 256), (2, 3, 256)], ids=str)
def test_numbers_are_those_of_quantize(rng, name, shape):
    w = normal(rng, *shape, dtype=np.float32)
    w_hat, saved = fc.fake_quantize(w, name)
    q = fc.quantize(w, name)
    np.testing.assert_array_equal(w_hat, q.dequantize())
    grad = normal(rng, *shape, dtype=np.float32)
    grads = fc.fake_quantize_backward(grad, saved)
    assert grads.scale is None
    assert grads.weights.dtype == np.float32
    if name != "q1_0":
        passed = grads.weights != 0
        np.testing.assert_array_equal(grads.weights[passed], grad[passed])
        assert passed.mean() > (0.75 if fc.formats()[name].bits_per_weight < 3 else 0.95)


@pytest.mark.parametrize("name", ["tq2_0", "q4_0", "int8", "q8_0"])
def test_straight_through_within_half_a_step(rng, name):
    w = normal(rng, 4, 256, dtype=np.float32)
    w[0, :8] *= 6
    _, saved = fc.fake_quantize(w, name)
    grads = fc.fake_quantize_backward(np.ones_like(w), saved)
    grid = saved.grid.spread(256 // saved.grid.scales.shape[1], 256)
    t = w / grid.scales
    low, high = {"tq2_0": (-1.5, 1.5), "q4_0": (-8.5, 7.5)}.get(name, (-127.5, 127.5))
    np.testing.assert_array_equal(grads.weights, (t >= low) & (t <= high))


def test_one_bit_has_the_exact_derivative_of_its_scale(rng):
    w = normal(rng, 2, 256)
    w[np.abs(w) < 0.01] = 0.02
    w[0, 3] = 9
    grad = normal(rng, 2, 256)
    w_hat, saved = fc.fake_quantize(w, "q1_0")
    alpha = np.abs(w.reshape(2, 2, 128)).mean(axis=2)
    np.testing.assert_allclose(w_hat, np.repeat(alpha, 128, axis=1) * np.sign(w), rtol=1e-14)
    through = np.where(np.abs(w) <= 3 * np.repeat(alpha, 128, axis=1), grad, 0)
    assert through[0, 3] == 0
    found = fc.fake_quantize_backward(grad, saved).weights - through
    exact = numeric(lambda w: float((grad * fc.fake_quantize(w, "q1_0")[0]).sum()), w)
    np.testing.assert_allclose(found, exact, atol=1e-7 * np.abs(exact).max())
    single = fc.fake_quantize(w.astype("f4"), "q1_0")[1]
    near = fc.fake_quantize_backward(grad.astype("f4"), single).weights
    np.testing.assert_allclose(near, found + through, atol=1e-5)


SCALES = [(), (1,), (4,), (4, 1), (4, 2), (1, 1)]


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("shape", SCALES, ids=str)
def test_trained_scales(rng, name, shape):
    w, grad = normal(rng, 4, 16), normal(rng, 4, 16)
    steps = LEARNED[name]
    top = 1 if name == "paretoq2" else 1.5 if steps.high == 1 else steps.high + 0.5
    # Some weights are beyond the range, and none near a jump.
    scale = rng.uniform(1.2, 1.4, shape) / top
    s = np.broadcast_to(
        np.repeat(scale, 8, axis=1) if shape == (4, 2) else
        scale.reshape(-1, 1) if scale.ndim else scale, w.shape)  # fmt: skip
    t = w / s
    w_hat, saved = fc.fake_quantize(w, name, scale=scale)
    if name == "q1_0":
        v, inside, slope = np.sign(t), np.abs(t) <= 3, np.sign(t)
    elif name == "paretoq2":
        v = (np.clip(np.rint(2 * np.clip(t, -0.99, 0.99) - 0.5), -2, 1) + 0.5) / 2
        inside = np.abs(t) <= 1
        slope = np.where(inside, v - t, v)
        assert set(np.unique(np.abs(v))) <= {0.25, 0.75}
    else:
        v = np.clip(np.rint(t), steps.low, steps.high)
        inside = (t >= steps.low - 0.5) & (t <= steps.high + 0.5)
        slope = np.where(inside, v - t, v)
    np.testing.assert_allclose(w_hat, v * s, rtol=1e-14)
    grads = fc.fake_quantize_backward(grad, saved)
    np.testing.assert_array_equal(grads.weights, np.where(inside, grad, 0))
    high = 1 if steps.high == 1 else steps.high
    terms = grad * slope / np.sqrt(w.size / scale.size * high)
    if shape == (4, 2):
        expected = terms.reshape(4, 2, 8).sum(axis=2)
    else:
        expected = (terms.sum(axis=1) if scale.size == 4 else terms.sum()).reshape(shape)
    assert grads.scale.shape == shape
    np.testing.assert_allclose(grads.scale, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", LEARNED)
def test_scales_have_derivatives_where_codes_do_not_move(rng, name):
    """Outside the range, and with one bit everywhere, w_hat is scale times a constant."""
    w = np.where(normal(rng, 3, 16) > 0, 1.0, -1.0) * rng.uniform(3, 4, (3, 16))
    steps, grad = LEARNED[name], normal(rng, 3, 16)
    scale = np.full((3, 1), 1 / max(1, steps.high))
    _, saved = fc.fake_quantize(w, name, scale=scale)
    found = fc.fake_quantize_backward(grad, saved).scale
    exact = numeric(lambda s: float((grad * fc.fake_quantize(w, name, scale=s)[0]).sum()), scale)
    norm = np.sqrt(16 * steps.high_of_gradient)
    np.testing.assert_allclose(found * norm, exact, rtol=1e-7, atol=1e-8)


def test_experts_have_scales_of_their_own(rng):
    w, grad = normal(rng, 2, 3, 8), normal(rng, 2, 3, 8)
    for scale in (
        rng.uniform(0.5, 1, (2, 3)),
        rng.uniform(0.5, 1, 2),
        rng.uniform(0.5, 1, (2, 3, 2)),
    ):
        w_hat, saved = fc.fake_quantize(w, "tq2_0", scale=scale)
        grads = fc.fake_quantize_backward(grad, saved)
        for e in range(2):
            own, own_saved = fc.fake_quantize(w[e], "tq2_0", scale=scale[e])
            np.testing.assert_array_equal(w_hat[e], own)
            one = fc.fake_quantize_backward(grad[e], own_saved)
            np.testing.assert_allclose(grads.scale[e], one.scale, rtol=1e-12)


def test_training_a_scale_makes_the_error_smaller(rng):
    w = normal(rng, 4, 64, dtype=np.float32)
    scale = np.full((4, 1), 0.5, "f4")
    errors = []
    for _ in range(300):
        w_hat, saved = fc.fake_quantize(w, "q2_0", scale=scale)
        errors.append(float(((w_hat - w) ** 2).sum()))
        scale = scale - 0.01 * fc.fake_quantize_backward(2 * (w_hat - w), saved).scale
    assert errors[-1] < 0.7 * errors[0]


W = np.ones((2, 128), "f4")
BAD = [
    (lambda: fc.fake_quantize(W.astype("f2"), "q1_0"), TypeError, "w has dtype float16; expected"),
    (lambda: fc.fake_quantize(W.astype("f8"), "q4_0"), TypeError, "w has dtype float64; expected"),
    (lambda: fc.fake_quantize(W[0], "q1_0"), ValueError, "w has shape (128,); expected [out, in]"),
    (lambda: fc.fake_quantize(W[:, 1:], "q1_0"), ValueError, "w has rows of 127 weights; expected"),
    (lambda: fc.fake_quantize(W, "paretoq2"), ValueError, "scale is None; expected the trained"),
    (lambda: fc.fake_quantize(W, "nf4"), ValueError, "format 'nf4' is read only"),
    (lambda: fc.fake_quantize(W, "q4_k", scale=1), ValueError, "scale is given, but format is 'q4"),
    (lambda: fc.fake_quantize(W, "q4k", scale=1), ValueError, "format 'q4k' is not known; the"),
    (lambda: fc.fake_quantize(W, "q1_0", scale=0.0), ValueError, "scale has 0.0; expected posit"),
    (lambda: fc.fake_quantize(W, "q1_0", scale=np.nan), ValueError, "scale has nan; expected pos"),
    (lambda: fc.fake_quantize(W, "q1_0", scale=np.ones(2)), TypeError, "scale has dtype float64"),
    (
        lambda: fc.fake_quantize(W, "q1_0", scale=W[:, :3]),
        ValueError,
        "scale has shape (2, 3); exp",
    ),
    (lambda: fc.fake_quantize_backward(W, W), TypeError, "saved is of type ndarray; expected the"),
    (lambda: fc.fake_quantize_backward(W[1:], saved()), ValueError, "grad has shape (1, 128); exp"),
    (
        lambda: fc.fake_quantize_backward(W * np.float64(1), saved()),
        TypeError,
        "grad has dtype flo",
    ),
]


def saved():
    return fc.fake_quantize(W, "q1_0")[1]


@pytest.mark.parametrize("call, error, sentence", BAD)
def test_bad_arguments(call, error, sentence):
    with pytest.raises(error, match="^" + re.escape(sentence)):
        call()
