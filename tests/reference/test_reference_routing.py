"""The routing reference: its gradients against the complex step, and other properties."""

import numpy as np
import pytest
from support import complex_step, normal
from support_routing import CASES, GROUPS, options_of, weighting

from ffncore import reference


@pytest.mark.parametrize("case", [*CASES.values(), *GROUPS.values()], ids=[*CASES, *GROUPS])
def test_gradients(case, rng):
    options = weighting(options_of(case, rng, 9, np.dtype(np.float64)))
    z, grad = 2 * normal(rng, 4, 9), normal(rng, 4, 3)
    ids = rng.permuted(np.tile(np.arange(9), (4, 1)), axis=-1)[:, :3]
    ids[0, 1] = ids[2, 2] = -1

    def loss(z):
        weights = reference.route(z, 3, experts=ids, dtype=np.complex128, **options).weights
        return (grad * weights).sum()

    found = reference.route_backward(grad, z, ids, **options)
    np.testing.assert_allclose(found, complex_step(loss, z), rtol=1e-12, atol=1e-14)


def test_selection_by_hand():
    z = np.array([[0.1, np.nan, 2.0, 2.0, -1.0]])
    found = reference.route(z, 4, score_fn="sigmoid")
    assert found.experts.tolist() == [[1, 2, 3, 0]]
    sums = np.array([[3.0, 0.0, 2.0, 2.0, 9.0, -9.0]])  # groups of two: 3, 4 and 0
    found = reference.route(sums, 2, score_fn="softmax_topk", n_group=3, topk_group=1)
    assert found.experts.tolist() == [[2, 3]]
    found = reference.route(
        sums, 2, score_fn="softmax_topk", n_group=3, topk_group=1, group_score="max"
    )
    assert found.experts.tolist() == [[4, 5]]


def test_softmax_of_the_chosen_is_the_normalized_softmax(rng):
    z = normal(rng, 6, 20)
    first = reference.route(z, 4)
    second = reference.route(z, 4, score_fn="softmax_topk")
    np.testing.assert_array_equal(first.experts, second.experts)
    np.testing.assert_allclose(first.weights, second.weights, rtol=1e-14)


def test_z_loss_by_the_complex_step(rng):
    z = normal(rng, 3, 4)
    p = np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True)
    expected = 2 / 3 * np.log(np.exp(z).sum(axis=-1, keepdims=True)) * p
    found = complex_step(lambda z: reference.router_z_loss(z, dtype=np.complex128), z)
    np.testing.assert_allclose(found, expected, rtol=1e-13)
