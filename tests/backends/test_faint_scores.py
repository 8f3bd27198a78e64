"""Routing with chosen scores that all underflow: the weights are computed from the logits.

Normalized weights are s_i / sum s_j. With scores that underflow this would be 0 / 0, or the
reciprocal of the sum infinite. But for s = a e^(c z) the weights are softmax(c z) over the chosen
experts.
"""

# ruff: noqa: ARG001 (a test names the fixtures that it runs under)

import numpy as np
import pytest
from support import normal
from support_cuda import assert_close

import ffncore as fc
from ffncore import reference

# c, and the logit (for softmax: its distance to the largest) with the smallest normal score.
SCORES = {"sigmoid": (1, 87), "sqrtsoftplus": (0.5, 174), "softmax": (1, 87)}
FLOATS = {np.dtype(np.float32): (1, 4e-7), np.dtype(np.float64): (8.1, 1e-15)}
IDS = np.array([[1, 2, -1, 4], [3, 4, 5, 9], [7, 6, 2, 1], [8, -1, -1, -1]])


def far_logits(rng, fn, depth, dtype):
    """Logits [4, 10], `depth` times as far from 0 as that logit; for softmax one expert is far
    above the chosen ones."""
    far = SCORES[fn][1] * FLOATS[dtype][0] * depth
    logits = normal(rng, 4, 10, dtype=dtype) - dtype.type(far)
    if fn == "softmax":
        logits[:, 0] = 0
    return logits


def shares(logits, fn):
    """The weights, and the gradient of sum(grad * weights) as a function of grad, in float64."""
    z = np.take_along_axis(logits.astype(np.float64), np.maximum(IDS, 0), axis=-1)
    z = np.where(IDS >= 0, z * SCORES[fn][0], -np.inf)
    q = np.exp(z - z.max(axis=-1, keepdims=True))
    q /= q.sum(axis=-1, keepdims=True)

    def gradient(grad):
        by_slot = SCORES[fn][0] * q * (grad - (q * grad).sum(axis=-1, keepdims=True))
        out = np.zeros(logits.shape)
        for row, slot in np.argwhere(IDS >= 0):
            out[row, IDS[row, slot]] = by_slot[row, slot]
        return out

    return q, gradient


@pytest.mark.parametrize("real", FLOATS, ids=str)
@pytest.mark.parametrize("depth", [0.9, 0.98, 1, 1.05, 1.2, 2, 10])
@pytest.mark.parametrize("fn", SCORES)
def test_shares(fn, depth, real, isa, rng):
    logits = far_logits(rng, fn, depth, real)
    routing = fc.route(logits, 4, score_fn=fn, experts=IDS)
    q, gradient = shares(logits, fn)
    tolerance = FLOATS[real][1] * abs(logits).max()  # from the last digits of the logits
    np.testing.assert_allclose(routing.weights, np.where(IDS >= 0, q, 0), rtol=0, atol=tolerance)
    grad = normal(rng, 4, 4, dtype=real)
    found = fc.route_backward(grad, routing)
    np.testing.assert_allclose(found, gradient(grad), rtol=0, atol=4 * tolerance)
    options = {"score_fn": fn, "experts": IDS}
    np.testing.assert_allclose(
        reference.route(logits, 4, **options).weights[0], q[0] * (IDS[0] >= 0), atol=1e-12
    )
    np.testing.assert_allclose(
        reference.route_backward(grad, logits, IDS, score_fn=fn), gradient(grad), atol=1e-11
    )


def test_two_logits_of_the_report(isa):
    logits = np.array([[-91, -92]], np.float32)
    routing = fc.route(logits, 2, score_fn="sigmoid")
    s = 1 / (1 + np.exp(-1))
    np.testing.assert_allclose(routing.weights, [[s, 1 - s]], rtol=1e-6)
    grad = fc.route_backward(np.array([[1, 0]], np.float32), routing)
    np.testing.assert_allclose(grad, [[s * (1 - s), -s * (1 - s)]], rtol=1e-6)


@pytest.mark.parametrize("options", [{"norm_eps": 1e-20}, {"norm_min": 1e-12}], ids=str)
def test_a_floor_of_the_divisor_counts(options, isa, rng):
    """With eps or min the weights themselves underflow, as in the formula."""
    logits = far_logits(rng, "sigmoid", 1.2, np.dtype(np.float32))
    routing = fc.route(logits, 4, score_fn="sigmoid", experts=IDS, **options)
    assert (routing.weights < 1e-15).all()
    assert np.isfinite(fc.route_backward(np.ones((4, 4), np.float32), routing)).all()


@pytest.mark.parametrize("fn", SCORES)
@pytest.mark.parametrize("depth", [0.9, 1.05, 2, 10])
def test_on_a_gpu(gpu, fn, depth, rng):
    logits = far_logits(rng, fn, depth, np.dtype(np.float32))
    routing = fc.route(logits, 4, score_fn=fn, experts=IDS)
    found = fc.route(gpu.array(logits), 4, score_fn=fn, experts=gpu.array(IDS))
    assert_close(found.weights, routing.weights, "float32")
    grad = normal(rng, 4, 4, dtype=np.float32)
    assert_close(
        fc.route_backward(gpu.array(grad), found), fc.route_backward(grad, routing), "float32"
    )
