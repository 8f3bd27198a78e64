"""fc.positional_lambda against its definition, by differences, and its errors."""

import numpy as np
import pytest
from support import TOLERANCE, normal

import ffncore as fc


def make(rng, n=3, m=5, k=2, d=4, dtype=np.float64, batch=(2,)):
    shapes = (*batch, n, k), (*batch, m, d), (n, m, k)
    return [normal(rng, *shape, dtype=dtype) for shape in shapes]


@pytest.mark.parametrize("sizes", [(3, 5, 2, 4), (1, 1, 1, 1), (0, 5, 2, 4), (3, 0, 2, 4)])
def test_definition(sizes, dtype, rng):
    q, v, e = arrays = make(rng, *sizes, dtype=dtype)
    y = fc.positional_lambda(*arrays)
    assert y.dtype == dtype
    expected = np.zeros(y.shape)
    for b, n in np.ndindex(y.shape[:2]):
        function = e[n].astype("f8").T @ v[b].astype("f8")  # [k, d]
        expected[b, n] = function.T @ q[b, n].astype("f8")
    np.testing.assert_allclose(y.astype("f8"), expected, rtol=0, atol=20 * TOLERANCE[dtype])


def test_gradients_are_differences(rng):
    arrays = make(rng)
    grad = normal(rng, 2, 3, 4)
    found = fc.positional_lambda_backward(grad, *arrays)
    for array, gradient in zip(arrays, found, strict=True):
        differences = np.empty(array.shape)
        for index in np.ndindex(array.shape):
            kept, ends = array[index], []
            for step in (1e-5, -1e-5):
                array[index] = kept + step
                ends.append((fc.positional_lambda(*arrays) * grad).sum())
            array[index] = kept
            differences[index] = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose(gradient, differences, rtol=1e-7, atol=1e-8)


def test_errors(rng):
    q, v, e = make(rng)
    for arrays, error, sentence in (
        ((q[0, 0], v, e), ValueError, r"q has shape \(2,\); expected \[..., n, k\]"),
        ((q, v, e[0]), ValueError, "embeddings has shape"),
        ((q, v, e[:2]), ValueError, "embeddings has shape"),
        ((q, v[:1], e), ValueError, "v has shape"),
        ((q, v.astype("f4"), e), TypeError, "v has dtype float32"),
        ((q, v, [1]), TypeError, "embeddings is of type list"),
    ):
        with pytest.raises(error, match=sentence):
            fc.positional_lambda(*arrays)
    with pytest.raises(ValueError, match="grad_y has shape"):
        fc.positional_lambda_backward(v, q, v, e)
