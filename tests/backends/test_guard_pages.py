"""Kernels touch no byte before or after an array: each array is next to a page that faults.

A failure here crashes the test run. The tests call _core, because the saved activations and the
packed buffer have to be next to guard pages, too.
"""

# ruff: noqa: ARG001 (a test names the fixtures that it runs under)

import numpy as np
import pytest
from support import all_biases, guarded, make_weights, normal

import ffncore as fc
from ffncore import _core
from ffncore.values.activation import as_core
from ffncore.values.routing_options import Options

SIZES = [
    *((1, 1, 1), (1, 33, 65), (3, 5, 7), (13, 17, 31), (16, 32, 64), (17, 15, 33), (65, 9, 97)),
    *((2, 63, 16), (31, 64, 1), (70, 1, 40)),
    # Two blocks of 512 of each summed dimension.
    *((9, 530, 15), (9, 15, 530), (530, 3, 9)),
]


def guarded_arrays(w, end, transposed=False):
    """The arrays by name; matrices [in, out] where transposed."""
    return {
        name: guarded(a.T, end).T if transposed and a.ndim == 2 else guarded(a, end)
        for name, a in w.arrays().items()
    }


@pytest.mark.parametrize("end", [True, False], ids=["behind", "before"])
def test_every_array(end, isa, dtype, gated, rng, plan):
    act = fc.Activation("xielu") if not gated else fc.Activation("silu", limit=1.0)
    for t, d, f in SIZES:
        for transposed in (False, True):
            w = make_weights(rng, d, f, gated=gated, biases=all_biases(gated), dtype=dtype)
            arrays = _core.Weights(**guarded_arrays(w, end, transposed))
            x, grad_y = (guarded(normal(rng, t, d, dtype=dtype), end) for _ in range(2))
            y = guarded(np.empty((t, d), dtype), end)
            if transposed:
                x, grad_y, y = (guarded(a.T, end).T for a in (x, grad_y, y))
            core = as_core(act, gated, dtype)
            saved = guarded(np.empty(_core.saved_bytes(x, t, f, gated), np.uint8), end).view(dtype)
            buffer = guarded(np.empty(_core.packed_bytes(dtype.name, arrays), np.uint8), end)
            _core.pack(dtype.name, arrays, buffer)
            packed = _core.Weights.packed(buffer, d_model=d, d_ff=f, gated=gated)
            for in_rows in (0, 1):
                plan(0, 0, 0, in_rows)
                for weights in (arrays, packed):
                    _core.ffn_forward(x, y, weights, core, saved)
                    _core.ffn_forward(x, y, weights, core, None)
                    grad_x = guarded(np.empty((t, d), dtype), end)
                    _core.ffn_backward(x, grad_y, weights, core, saved, False, grad_x, {}, False)
                grads = guarded_arrays(w, end)
                for kept in (saved, None):
                    _core.ffn_backward(
                        x, grad_y, arrays, core, kept, True, grad_x, grads, act.name == "xielu"
                    )
            _core.unpack(packed, _core.Weights(**guarded_arrays(w, end)))


@pytest.mark.parametrize("end", [True, False], ids=["behind", "before"])
@pytest.mark.parametrize("name", ["gelu", "xielu", "hardswish"])
def test_elementwise(name, end, isa, dtype, gated, rng):
    for shape in ((1, 1), (1, 7), (3, 15), (2, 17), (5, 33), (1, 100)):
        x, up, grad, h, grad_up = (guarded(normal(rng, *shape, dtype=dtype), end) for _ in range(5))
        up = up if gated else None
        fc.activation(x, up, activation=name, out=h)
        fc.activation_backward(grad, x, up, activation=name, out=(h, grad_up) if gated else (h,))


@pytest.mark.parametrize("end", [True, False], ids=["behind", "before"])
@pytest.mark.parametrize("wide", [np.float32, np.float64])
@pytest.mark.parametrize("score_fn", ["softmax", "sigmoid", "sqrtsoftplus", "softmax_topk"])
def test_routing(score_fn, wide, end, isa, rng):
    inputs = ((1, 1, 1), (1, 7, 7), (3, 15, 2), (2, 16, 16), (5, 33, 17), (3, 100, 8), (2, 60, 40))
    for t, n, k in inputs:
        for order in ("C", "F"):

            def fenced(array, order=order):
                return guarded(array.T, end).T if order == "F" else guarded(array, end)

            z, grad = fenced(normal(rng, t, n, dtype=wide)), fenced(normal(rng, t, k, dtype=wide))
            bias = guarded(normal(rng, n, dtype=wide), end)
            grouped = n % 4 == 0 and k <= n // 2
            options = Options(score_fn, **({"n_group": 4, "topk_group": 2} if grouped else {}))
            core = options.core(z, k)
            ids, weights = guarded(np.empty((t, k), np.int32), end), fenced(np.empty((t, k), wide))
            sums = guarded(np.empty(t, wide), end) if score_fn == "softmax" else None
            _core.route(z, ids, False, weights, sums, core, bias)
            _core.route_backward(grad, ids, z, fenced(np.empty((t, n), wide)), core)
