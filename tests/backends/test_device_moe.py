"""Mixtures on an emulated GPU, against the same calls with numpy arrays."""

import numpy as np
import pytest
from support import DTYPES
from support_cuda import assert_close

import ffncore as fc

FLOATS = [dtype for dtype in DTYPES if dtype != np.float64]
N, K, D, F = 5, 3, 16, 24


@pytest.fixture(params=FLOATS, ids=str)
def dtype(request):
    return request.param


def draw(rng, shape, dtype=np.float32):
    return rng.standard_normal(shape).astype(dtype)


def experts(rng, dtype, gated=True):
    return fc.FFNWeights(
        gate=draw(rng, (N, F, D), dtype) if gated else None,
        up=draw(rng, (N, F, D), dtype),
        down=draw(rng, (N, D, F), dtype),
        b_gate=draw(rng, (N, F), dtype) if gated else None,
        b_up=draw(rng, (N, F)) if np.dtype(dtype).itemsize == 2 else draw(rng, (N, F), dtype),
        b_down=draw(rng, (N, D), dtype),
    )


def some_routing(rng, *tokens):
    ids = rng.integers(-1, N, (*tokens, K), dtype=np.int32)
    ids[..., -1][rng.random(tokens) < 0.5] = 2  # uneven: expert 4 has few tokens
    return fc.Routing(experts=ids, weights=draw(rng, (*tokens, K)), n_experts=N)


def compare(gpu, x, routing, w, **options):
    name = w.dtype.name
    save = options.pop("save", "preactivations")
    y, saved = fc.moe_forward(x, routing, w, activation="silu", **options)
    y_gpu, saved_gpu = fc.moe_forward(
        gpu.array(x), gpu.routing(routing), gpu.weights(w), activation="silu", save=save, **options
    )
    assert_close(y_gpu, y, name)
    grad = np.cos(np.arange(x.size)).reshape(x.shape).astype(x.dtype)
    grads = fc.moe_backward(grad, saved)
    found = fc.moe_backward(gpu.array(grad), saved_gpu)
    assert isinstance(found, fc.MoEGrads)
    assert found.arrays().keys() == grads.arrays().keys()
    for key, expected in grads.arrays().items():
        assert found.arrays()[key].numpy_array.dtype == expected.dtype
        assert_close(found.arrays()[key], expected, name)
    return saved, saved_gpu


@pytest.mark.parametrize("number, tokens", [(0, 0), (1, 1), (2, 7), (3, 60)])
def test_both_passes(gpu, dtype, gated, number, tokens, rng):
    on_input = (number + gated) % 2 == 1  # each number of tokens with both
    x, w = draw(rng, (tokens, D), dtype), experts(rng, dtype, gated)
    routing = some_routing(rng, tokens)
    options = {"apply_router_weight_on_input": on_input}
    saved, saved_gpu = compare(gpu, x, routing, w, **options)
    assert_close(saved_gpu.up, saved.up, dtype.name)
    if gated:
        assert_close(saved_gpu.gate, saved.gate, dtype.name)
    y = fc.moe(x, routing, w, activation="silu", **options)
    arrays = gpu.array(x), gpu.routing(routing), gpu.weights(w)
    assert_close(fc.moe(*arrays, activation="silu", **options), y, dtype.name)


def test_recomputed_and_leading_dimensions(gpu, on_input, rng):
    w = experts(rng, np.float32)
    options = {"apply_router_weight_on_input": on_input, "save": "input"}
    compare(gpu, draw(rng, (2, 9, D)), some_routing(rng, 2, 9), w, **options)
    compare(gpu, draw(rng, (D, 9)).T, some_routing(rng, 9), w, **options)


def test_experts_that_do_not_exist_are_none(gpu, rng, monkeypatch):
    w, x = experts(rng, np.float32), draw(rng, (20, D))
    ids = rng.integers(-1, N, (20, K))
    weights = draw(rng, (20, K))
    wrong = np.where(ids < 0, rng.choice([-7, N, 2**31 - 1], ids.shape), ids)
    routing = fc.Routing(experts=ids, weights=weights)
    routing_gpu = fc.Routing(experts=gpu.array(wrong), weights=gpu.array(weights))
    y, saved = fc.moe_forward(x, routing, w, activation="silu")
    y_gpu, saved_gpu = fc.moe_forward(gpu.array(x), routing_gpu, gpu.weights(w), activation="silu")
    assert_close(y_gpu, y, "float32")
    assert_close(saved_gpu.up, saved.up, "float32")
    for tokens in (2, 20):
        few = fc.Routing(experts=gpu.array(wrong[:tokens]), weights=gpu.array(weights[:tokens]))
        y_gpu = fc.moe(gpu.array(x[:tokens]), few, gpu.weights(w), activation="silu")
        assert_close(y_gpu, y[:tokens], "float32")

    monkeypatch.setenv("FFNCORE_CUDA_DEBUG", "1")
    with pytest.raises(ValueError, match=r"expert_ids has -?\d+ at \(\d+, \d\); expected -1 to 4"):
        fc.moe(gpu.array(x), routing_gpu, gpu.weights(w), activation="silu")


def test_ids_of_any_integer_dtype(gpu, rng):
    """An id that does not fit into int32 does not become a valid one by losing bits."""
    w, x = experts(rng, np.float32), draw(rng, (6, D))
    ids = rng.integers(0, N, (6, K))
    weights = draw(rng, (6, K))
    ids[2, 1] = ids[4, 0] = -1
    y = fc.moe(x, fc.Routing(experts=ids, weights=weights), w, activation="silu")
    for dtype in (np.int16, np.int32, np.int64):
        there = np.where(ids < 0, 2**32 + 1 if dtype == np.int64 else -1, ids).astype(dtype)
        routing = fc.Routing(experts=gpu.array(there), weights=gpu.array(weights))
        assert routing.experts.numpy_array.dtype == np.int32
        assert_close(fc.moe(gpu.array(x), routing, gpu.weights(w), activation="silu"), y, "float32")


def test_float32_gradient_of_x_beside_16_bits(gpu, rng):
    bits = np.dtype(np.float16)
    x, w, routing = draw(rng, (9, D), bits), experts(rng, bits), some_routing(rng, 9)
    grad = draw(rng, (9, D), bits)
    _, saved = fc.moe_forward(x, routing, w, activation="silu")
    _, saved_gpu = fc.moe_forward(
        gpu.array(x), gpu.routing(routing), gpu.weights(w), activation="silu"
    )
    out = {"x": gpu.array(np.ones((9, D), np.float32)), "up": gpu.array(np.ones((N, F, D), "f4"))}
    found = fc.moe_backward(gpu.array(grad), saved_gpu, out=out, accumulate=True)
    expected = fc.moe_backward(grad, saved).arrays()
    for name, array in out.items():
        assert found.arrays()[name] is array
        assert_close(array, expected[name].astype(np.float64) + 1, "float16")


def test_out_and_accumulate(gpu, rng):
    x, w, routing = draw(rng, (12, D)), experts(rng, np.float32), some_routing(rng, 12)
    arrays = gpu.array(x), gpu.routing(routing), gpu.weights(w)
    _, saved = fc.moe_forward(*arrays, activation="silu")
    grad = gpu.array(draw(rng, (12, D)))
    once = fc.moe_backward(grad, saved)
    start = {name: array.numpy_array.astype(np.float64) for name, array in once.arrays().items()}
    twice = fc.moe_backward(grad, saved, out=once, accumulate=True)
    assert twice.weights is once.weights
    for name, array in twice.arrays().items():
        assert array is once.arrays()[name]
        assert_close(array, 2 * start[name], "float32")
    only = fc.moe_backward(grad, saved, needs=("routing_weights",))
    assert set(only.arrays()) == {"routing_weights"}


def test_one_expert_is_a_block(gpu, rng):
    w = gpu.weights(experts(rng, np.float32))
    x = gpu.array(draw(rng, (3, D)))
    routing = fc.Routing(
        experts=gpu.array(np.full((3, 1), 2)), weights=gpu.array(np.ones((3, 1), np.float32))
    )
    y = fc.ffn(x, w.expert(2), activation="silu")
    assert_close(fc.moe(x, routing, w, activation="silu"), y.numpy_array, "float32")
