"""Tests on a real GPU: `pytest -m gpu`, with torch or CuPy and the CUDA library; else skipped.

Numbers are about 1, and outputs begin as NaN. Results are compared with the float64 functions of
this package on the CPU. The relative error of each tile of 128 x 128 is checked, so that a wrong
tile cannot hide among correct ones.
"""

import importlib

import numpy as np
import pytest
from support import BFLOAT16

import ffncore as fc
from ffncore.backends.cuda import library as cuda_library

pytestmark = pytest.mark.gpu

TILE = 128
# Relative to the norm of a tile. In 16 bits h, the result and the outputs of experts are rounded.
TOLERANCE = {"float32": 3e-6, "float16": 1.5e-3, "bfloat16": 1.2e-2}
DTYPES = ["float32", "float16", *(dtype.name for dtype in BFLOAT16)]
RUNS = 20


class Library:
    """torch or CuPy on a real device."""

    def __init__(self, name):
        self.name, self.module = name, importlib.import_module(name)
        if name == "torch":
            usable = self.module.cuda.is_available()
        else:
            usable = self.module.cuda.runtime.getDeviceCount() > 0
        if not usable:
            raise RuntimeError("no device")

    def put(self, array):
        array = np.ascontiguousarray(array)
        if self.name == "cupy":
            return self.module.asarray(array)
        if array.dtype.name == "bfloat16":
            bits = self.module.from_numpy(array.view(np.int16).copy()).cuda()
            return bits.view(self.module.bfloat16)
        return self.module.from_numpy(array.copy()).cuda()

    def get(self, array):
        if self.name == "cupy":
            return self.module.asnumpy(array)
        if array.dtype == self.module.bfloat16:
            return array.view(self.module.int16).cpu().numpy().view(BFLOAT16[0])
        return array.cpu().numpy()

    def poisoned(self, shape, dtype):
        return self.put(np.full(shape, np.nan, dtype))


@pytest.fixture(params=["torch", "cupy"])
def library(request):
    if not cuda_library.LIBRARY.exists():
        pytest.skip("ffncore was built without its CUDA part")
    try:
        return Library(request.param)
    except Exception as missing:  # a missing module, driver or device
        pytest.skip(f"{request.param}: {missing}")


@pytest.fixture(params=DTYPES)
def dtype(request):
    return next(d for d in [np.dtype("f4"), np.dtype("f2"), *BFLOAT16] if d.name == request.param)


def normal(rng, shape, dtype, scale=1.0):
    return (scale * rng.standard_normal(shape)).astype(dtype)


def make_layer(rng, dtype, d, f, *lead, gated=True, biases=True):
    def bias(width):
        return normal(rng, (*lead, width), dtype) if biases else None

    return fc.FFNWeights(
        gate=normal(rng, (*lead, f, d), dtype, d**-0.5) if gated else None,
        up=normal(rng, (*lead, f, d), dtype, d**-0.5),
        down=normal(rng, (*lead, d, f), dtype, f**-0.5),
        b_gate=bias(f) if gated else None,
        b_up=bias(f),
        b_down=bias(d),
    )


def wide(w):
    return fc.FFNWeights(**{name: a.astype(np.float64) for name, a in w.arrays().items()})


def on_device(library, w):
    return fc.FFNWeights(**{name: library.put(a) for name, a in w.arrays().items()})


def check(library, array, expected, dtype, what):
    """Check every tile of [rows, columns] relative to its own norm."""
    found = library.get(array).astype(np.float64)
    assert found.shape == expected.shape, what
    found = found.reshape(-1, found.shape[-1])
    expected = np.asarray(expected).reshape(found.shape)
    for r in range(0, found.shape[0], TILE):
        for c in range(0, found.shape[1], TILE):
            tile = np.s_[r : r + TILE, c : c + TILE]
            size = np.linalg.norm(expected[tile])
            error = np.linalg.norm(found[tile] - expected[tile])
            limit = TOLERANCE[dtype.name] * max(size, 1e-3 * np.linalg.norm(expected))
            assert error <= limit, f"{what} at {r}, {c}: {error} of {size}"  # NaN fails, too


def compare_gradients(library, found, expected, dtype):
    assert found.arrays().keys() == expected.arrays().keys()
    for name, array in expected.arrays().items():
        check(library, found.arrays()[name], array, dtype, name)


def check_ffn(library, dtype, tokens, d, f, gated, seed, activation="silu"):
    rng = np.random.default_rng(seed)
    x, grad = normal(rng, (tokens, d), dtype), normal(rng, (tokens, d), dtype)
    w = make_layer(rng, dtype, d, f, gated=gated)
    y, saved = fc.ffn_forward(x.astype("f8"), wide(w), activation=activation)
    grads = fc.ffn_backward(grad.astype("f8"), saved)
    x_there, w_there = library.put(x), on_device(library, w)
    out = library.poisoned((tokens, d), dtype)
    check(library, fc.ffn(x_there, w_there, activation=activation, out=out), y, dtype, "y")
    out = library.poisoned((tokens, d), dtype)
    found, saved = fc.ffn_forward(x_there, w_there, activation=activation, out=out)
    check(library, found, y, dtype, "y of training")
    places = {name: library.poisoned(a.shape, dtype) for name, a in grads.arrays().items()}
    found = fc.ffn_backward(library.put(grad), saved, out=places)
    compare_gradients(library, found, grads, dtype)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("tokens", [0, 1, 2, 3, 8, 15, 16, 17, 127, 128, 129, 300])
def test_ffn(library, dtype, tokens, gated):
    check_ffn(library, dtype, tokens, 256, 384, gated, seed=tokens)


def test_every_kernel(library, dtype):
    """One call with small odd sizes, for compute-sanitizer."""
    for tokens in (3, 19):
        check_ffn(library, dtype, tokens, 37, 45, True, seed=1)
        check_ffn(library, dtype, tokens, 37, 45, False, seed=2, activation="xielu")
        for on_input in (False, True):
            check_moe(library, dtype, tokens, 5, 2, 37, 45, "none", on_input, seed=3)
    rng = np.random.default_rng(4)
    turned = fc.FFNWeights(up=normal(rng, (37, 45), dtype).T, down=normal(rng, (45, 37), dtype).T)
    x = normal(rng, (19, 37), dtype)
    columns = {name: library.put(a.T).T for name, a in turned.arrays().items()}
    y, saved = fc.ffn_forward(x.astype("f8"), wide(turned), activation="tanh")
    grads = fc.ffn_backward(x.astype("f8"), saved)
    x_there = library.put(x)
    found, saved = fc.ffn_forward(x_there, fc.FFNWeights(**columns), activation="tanh")
    check(library, found, y, dtype, "y")
    compare_gradients(library, fc.ffn_backward(x_there, saved), grads, dtype)


@pytest.mark.parametrize("seed", range(12))
def test_ffn_of_any_size(library, dtype, seed):
    sizes = np.random.default_rng(seed).integers(1, 700, 3)
    check_ffn(library, dtype, *map(int, sizes), bool(seed % 2), seed)


def test_long_sums(library, dtype):
    check_ffn(library, dtype, 40, 4096, 1024, True, seed=1)


@pytest.mark.parametrize("kind", ["gelu", "gelu_tanh", "relu2", "mish", "tanh", "xielu"])
def test_activations(library, kind):
    check_ffn(library, np.dtype("f4"), 70, 96, 160, True, seed=3, activation=kind)


def make_routing(rng, tokens, experts, k, kind):
    ids = np.argsort(rng.random((tokens, experts)), axis=1)[:, :k]
    if kind == "skew":  # most tokens to one expert, most experts without any
        ids = np.where(ids < experts // 2, ids, 0)
    if kind == "none":
        ids = np.where(rng.random(ids.shape) < 0.3, -1, ids)
    return ids.astype(np.int32), normal(rng, (tokens, k), np.float32)


def check_moe(library, dtype, tokens, experts, k, d, f, kind, on_input, seed):
    rng = np.random.default_rng(seed)
    x, grad = normal(rng, (tokens, d), dtype), normal(rng, (tokens, d), dtype)
    w = make_layer(rng, dtype, d, f, experts)
    ids, factors = make_routing(rng, tokens, experts, k, kind)
    options = {"activation": "silu", "apply_router_weight_on_input": on_input}
    routing = fc.Routing(experts=ids, weights=factors.astype("f8"))
    y, saved = fc.moe_forward(x.astype("f8"), routing, wide(w), **options)
    grads = fc.moe_backward(grad.astype("f8"), saved)
    there = fc.Routing(experts=library.put(ids), weights=library.put(factors))
    x_there, w_there = library.put(x), on_device(library, w)
    out = library.poisoned((tokens, d), dtype)
    check(library, fc.moe(x_there, there, w_there, out=out, **options), y, dtype, "y")
    found, saved = fc.moe_forward(x_there, there, w_there, **options)
    check(library, found, y, dtype, "y of training")
    places = {
        name: library.poisoned(a.shape, np.float32 if name == "routing_weights" else dtype)
        for name, a in grads.arrays().items()
    }
    found = fc.moe_backward(library.put(grad), saved, out=places)
    compare_gradients(library, found, grads, dtype)


@pytest.mark.parametrize("on_input", [False, True])
@pytest.mark.parametrize("kind", ["uniform", "skew", "none"])
@pytest.mark.parametrize("tokens", [0, 1, 5, 16, 17, 400])
def test_moe(library, dtype, tokens, kind, on_input):
    check_moe(library, dtype, tokens, 8, 3, 192, 160, kind, on_input, seed=tokens)


def test_moe_of_many_experts(library, dtype):
    check_moe(library, dtype, 500, 128, 8, 128, 96, "uniform", False, seed=5)


@pytest.mark.parametrize("score_fn", ["softmax", "sigmoid", "sqrtsoftplus", "softmax_topk"])
def test_route(library, score_fn):
    rng = np.random.default_rng(9)
    # Experts are compared by their logits: scores that nearly tie may be in another order.
    options = {"score_fn": score_fn, "select_on": "logits"}
    if score_fn == "softmax_topk":
        del options["select_on"]
    for tokens, experts, k in ((1, 8, 2), (1000, 128, 8), (77, 256, 6)):
        logits = normal(rng, (tokens, experts), np.float32)
        grad = normal(rng, (tokens, k), np.float32)
        routing = fc.route(logits, k, **options)
        there = fc.route(library.put(logits), k, **options)
        np.testing.assert_array_equal(library.get(there.experts), routing.experts)
        np.testing.assert_array_equal(library.get(there.counts), routing.counts)
        np.testing.assert_allclose(library.get(there.weights), routing.weights, rtol=3e-6)
        found = library.get(fc.route_backward(library.put(grad), there))
        expected = fc.route_backward(grad, routing)
        np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max())


def bits(library, array):
    return library.get(array).tobytes()


def test_every_run_has_the_same_bits(library, dtype):
    rng = np.random.default_rng(2)
    w = on_device(library, make_layer(rng, dtype, 160, 96, 6))
    x, grad = (library.put(normal(rng, (333, 160), dtype)) for _ in range(2))
    ids, factors = make_routing(rng, 333, 6, 3, "none")
    routing = fc.Routing(experts=library.put(ids), weights=library.put(factors))

    def step():
        y, saved = fc.moe_forward(x, routing, w, activation="silu")
        grads = fc.moe_backward(grad, saved)
        return [bits(library, array) for array in (y, *grads.arrays().values())]

    first = step()
    for _ in range(RUNS):
        assert step() == first


def test_a_token_has_its_bits_in_any_batch(library, dtype):
    rng = np.random.default_rng(4)
    w = on_device(library, make_layer(rng, dtype, 320, 224))
    x = normal(rng, (300, 320), dtype)

    def rows(first, last):
        y = fc.ffn(library.put(x[first:last]), w, activation="silu")
        return [row.tobytes() for row in library.get(y)]

    few, many = rows(0, 16), rows(0, 300)  # those of each path
    for i in range(RUNS):
        first = i % 10
        assert rows(first, first + 1 + i % 6) == few[first : first + 1 + i % 6]
        assert rows(i, i + 17 + 7 * i) == many[i : i + 17 + 7 * i]


def test_on_another_stream(library):
    if library.name != "torch":
        pytest.skip("torch's streams")
    torch = library.module
    rng = np.random.default_rng(6)
    w, x = make_layer(rng, np.float32, 512, 768), normal(rng, (700, 512), np.float32)
    w_there, x_there = on_device(library, w), library.put(x)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        y = fc.ffn(x_there, w_there, activation="silu")
        doubled = y + y  # queued after it, without waiting
    stream.synchronize()
    expected = 2 * fc.ffn(x.astype("f8"), wide(w), activation="silu")
    check(library, doubled, expected, np.dtype("f4"), "y")


def test_in_a_graph(library):
    """A call can be captured in a graph: it does not wait and allocates only by the library."""
    if library.name != "torch":
        pytest.skip("torch's graphs")
    torch = library.module
    rng = np.random.default_rng(7)
    w = make_layer(rng, np.float32, 128, 96, 4)
    w_there = on_device(library, w)
    x, logits = normal(rng, (50, 128), np.float32), normal(rng, (50, 4), np.float32)
    x_there, logits_there = library.put(x), library.put(logits)

    def layer():
        return fc.moe(x_there, fc.route(logits_there, 2), w_there, activation="silu")

    layer()  # loads the kernels
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = layer()
    x, logits = normal(rng, (50, 128), np.float32), normal(rng, (50, 4), np.float32)
    x_there.copy_(library.put(x))
    logits_there.copy_(library.put(logits))
    graph.replay()
    torch.cuda.synchronize()
    routing = fc.route(logits.astype("f8"), 2)
    expected = fc.moe(x.astype("f8"), routing, wide(w), activation="silu")
    check(library, y, expected, np.dtype("f4"), "y")
