"""fc.persistent_attention against its definition, by differences, and its errors."""

import numpy as np
import pytest
from support import TOLERANCE, normal

import ffncore as fc

H, D = 2, 4


def make(rng, queries=5, context=7, memory=3, dtype=np.float64, batch=(2,)):
    shapes = [(*batch, H, n, D) for n in (queries, context, context)]
    shapes += [(H, memory, D)] * 2
    return [normal(rng, *shape, dtype=dtype) for shape in shapes]


def definition(q, k, v, keys, values, causal, scale=0.5):
    y = np.zeros(q.shape)
    for index in np.ndindex(q.shape[:-1]):
        lead, (head, i) = index[:-2], index[-2:]
        seen = k.shape[-2] if not causal else max(0, i + 1 + k.shape[-2] - q.shape[-2])
        own = (*lead, head)
        all_keys = np.concatenate([k[own][:seen], keys[head]]).astype("f8")
        all_values = np.concatenate([v[own][:seen], values[head]]).astype("f8")
        p = np.exp(scale * (all_keys @ q[index].astype("f8")))
        y[index] = p @ all_values / p.sum()
    return y


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "sizes", [(5, 7, 3), (1, 1, 1), (4, 0, 3), (4, 4, 0), (0, 4, 2), (9, 4, 2)]
)
def test_definition(sizes, causal, dtype, rng):
    arrays = make(rng, *sizes, dtype=dtype)
    y = fc.persistent_attention(*arrays, causal=causal)
    assert y.dtype == dtype
    expected = definition(*arrays, causal)
    np.testing.assert_allclose(y.astype("f8"), expected, rtol=0, atol=4 * TOLERANCE[dtype])


def test_blocks_of_queries(rng):
    arrays = make(rng, 300, 310, 5, batch=())
    y = fc.persistent_attention(*arrays, causal=True, scale=0.3)
    expected = definition(*arrays, True, 0.3)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_gradients_are_differences(causal, rng):
    arrays = make(rng)
    y, saved = fc.persistent_attention_forward(*arrays, causal=causal)
    np.testing.assert_array_equal(y, fc.persistent_attention(*arrays, causal=causal))
    grad = normal(rng, *y.shape)
    found = fc.persistent_attention_backward(grad, saved)
    for name, array, gradient in zip(found._fields, arrays, found, strict=True):
        differences = np.empty(array.shape)
        for index in np.ndindex(array.shape):
            kept, ends = array[index], []
            for step in (1e-5, -1e-5):
                array[index] = kept + step
                ends.append((fc.persistent_attention(*arrays, causal=causal) * grad).sum())
            array[index] = kept
            differences[index] = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose(gradient, differences, rtol=1e-6, atol=1e-8, err_msg=name)


def test_errors(rng):
    q, k, v, keys, values = make(rng)
    for arrays, options, error, sentence in (
        ((q[0, 0], k, v, keys, values), {}, ValueError, r"expected \[..., heads, T_q, d\]"),
        ((q, k[:1], v, keys, values), {}, ValueError, "k has shape"),
        ((q, k, v[..., :6, :], keys, values), {}, ValueError, "v has shape"),
        ((q, k, v, keys[:1], values), {}, ValueError, "memory_keys has shape"),
        ((q, k, v, keys, values[:, :2]), {}, ValueError, "memory_values has shape"),
        ((q, k.astype("f4"), v, keys, values), {}, TypeError, "k has dtype float32"),
        ((q, k, v, keys, [1]), {}, TypeError, "memory_values is of type list"),
        ((q, k, v, keys, values), {"scale": np.nan}, ValueError, "scale is nan"),
        (make(rng, 9, 4, 0), {"causal": True}, ValueError, "the first query sees no key"),
    ):
        with pytest.raises(error, match=sentence):
            fc.persistent_attention(*arrays, **options)
    y, saved = fc.persistent_attention_forward(q, k, v, keys, values)
    with pytest.raises(TypeError, match="saved is of type ndarray"):
        fc.persistent_attention_backward(y, y)
    with pytest.raises(ValueError, match="grad_y has shape"):
        fc.persistent_attention_backward(y[:1], saved)
