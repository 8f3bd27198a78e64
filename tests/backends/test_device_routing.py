"""fc.route and its backward pass on an emulated GPU, against the same calls with numpy arrays."""

import numpy as np
import pytest
from support_cuda import assert_close, numbers

import ffncore as fc

E, K = 24, 4
OPTIONS = [
    {},
    {"norm_topk_prob": False, "routed_scaling_factor": 2.5},
    {"score_fn": "softmax_topk"},
    {"score_fn": "sigmoid", "norm_eps": 1e-20, "n_group": 4, "topk_group": 2},
    {"score_fn": "sqrtsoftplus", "norm_min": 0.5},
    {"select_on": "logits", "norm_eps": 0.1},
    {"n_group": 6, "topk_group": 3, "group_score": "max", "group_mask_value": 0.0},
]


def draw(rng, shape):
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_both_passes(gpu, options, biased, rng):
    bias = draw(rng, 2 * E)[::2] if biased else None
    for logits in (draw(rng, (2, 5, E)), draw(rng, (E, 7)).T, draw(rng, (0, E)), draw(rng, E)):
        routing = fc.route(logits, K, e_score_correction_bias=bias, **options)
        on_gpu = gpu.arrays(logits=logits, e_score_correction_bias=bias)
        found = fc.route(top_k=K, **on_gpu, **options)
        np.testing.assert_array_equal(numbers(found.experts), routing.experts)
        assert_close(found.weights, routing.weights, "float32")
        np.testing.assert_array_equal(numbers(found.counts), routing.counts)
        assert found.top_k == K
        grad = draw(rng, routing.weights.shape)
        assert_close(
            fc.route_backward(gpu.array(grad), found), fc.route_backward(grad, routing), "float32"
        )


def test_given_experts(gpu, rng):
    logits, ids = draw(rng, (6, E)), np.argsort(draw(rng, (6, E)))[:, :K]
    ids[2, 1] = -1
    routing = fc.route(logits, K, experts=ids)
    found = fc.route(gpu.array(logits), K, experts=gpu.array(ids))
    assert_close(found.weights, routing.weights, "float32")
    grad = draw(rng, (6, K))
    assert_close(
        fc.route_backward(gpu.array(grad), found), fc.route_backward(grad, routing), "float32"
    )


def test_through_a_mixture(gpu, rng):
    """The gradient of a router through the routing weights, as in a training loop."""
    logits, x = draw(rng, (9, E)), draw(rng, (9, 8))
    w = fc.FFNWeights(up=draw(rng, (E, 16, 8)), down=draw(rng, (E, 8, 16)))
    grad = draw(rng, (9, 8))

    def step(put, weights):
        routing = fc.route(put(logits), K)
        _, saved = fc.moe_forward(put(x), routing, weights, activation="gelu")
        grads = fc.moe_backward(put(grad), saved)
        return fc.route_backward(grads.routing_weights, routing)

    assert_close(step(gpu.array, gpu.weights(w)), step(lambda a: a, w), "float32")


def test_counts_leave_out_what_does_not_exist(gpu):
    ids = np.array([[0, 3, -1], [3, 9, -5]], np.int64)
    weights = gpu.array(np.ones((2, 3), np.float32))
    routing = fc.Routing(experts=gpu.array(ids), weights=weights, n_experts=4)
    np.testing.assert_array_equal(numbers(routing.counts), [1, 0, 0, 2])
    assert routing.counts.numpy_array.dtype == np.int64
    assert routing.experts.numpy_array.dtype == np.int32
    assert repr(routing) == "Routing(experts=(2, 3), weights=float32, n_experts=4)"
