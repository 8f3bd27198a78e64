"""No byte before or behind an array is touched: each one lies against a page that faults.

A failure here is a crash of the test run. Everything goes through _core, because the preactivations
that are saved and the packed buffer have to lie against guard pages too.
"""

# ruff: noqa: ARG001 (a test names the fixtures that it runs under)

import numpy as np
import pytest
from support import all_biases, guarded, make_weights, normal

import ffncore as fc
from ffncore import _core
from ffncore.values.activation import to_tuple
from ffncore.values.routing_options import Options

SIZES = [
    *((1, 1, 1), (1, 33, 65), (3, 5, 7), (13, 17, 31), (16, 32, 64), (17, 15, 33), (65, 9, 97)),
    *((2, 63, 16), (31, 64, 1), (70, 1, 40)),
    # Two blocks of 512 of each summed dimension.
    *((9, 530, 15), (9, 15, 530), (530, 3, 9)),
]


def guarded_weights(w, end):
    return tuple(
        None if a is None else guarded(a, end)
        for a in (w.gate, w.up, w.down, w.b_gate, w.b_up, w.b_down)
    )


@pytest.mark.parametrize("end", [True, False], ids=["behind", "before"])
def test_every_array(end, isa, dtype, gated, rng, plan):
    act = fc.Activation("xielu") if not gated else fc.Activation("silu", limit=1.0)
    for t, d, f in SIZES:
        for transposed in (False, True):
            w = make_weights(rng, d, f, gated=gated, biases=all_biases(gated), dtype=dtype)
            arrays = guarded_weights(w, end)
            x, grad_y = (guarded(normal(rng, t, d, dtype=dtype), end) for _ in range(2))
            y = guarded(np.empty((t, d), dtype), end)
            if transposed:
                arrays = tuple(
                    guarded(a.T, end).T if a is not None and a.ndim == 2 else a for a in arrays
                )
                x, grad_y, y = (guarded(a.T, end).T for a in (x, grad_y, y))
            core = to_tuple(act, gated, dtype)
            saved = guarded(np.empty(_core.saved_bytes(x, t, f, gated), np.uint8), end).view(dtype)
            packed = guarded(np.empty(_core.packed_bytes(dtype.name, arrays), np.uint8), end)
            _core.pack(dtype.name, arrays, packed)
            biases = (gated, True, True)
            both = (arrays, (packed, d, f, gated, *biases))
            for in_rows in (0, 1):
                plan(0, 0, 0, in_rows)
                for weights in both:
                    _core.ffn_forward(x, y, weights, core, saved)
                    _core.ffn_forward(x, y, weights, core, None)
                    grad_x = guarded(np.empty((t, d), dtype), end)
                    none = (None,) * 6
                    _core.ffn_backward(x, grad_y, weights, core, saved, False, grad_x, none, False)
                grads = guarded_weights(w, end)
                for kept in (saved, None):
                    _core.ffn_backward(
                        x, grad_y, arrays, core, kept, True, grad_x, grads, act.name == "xielu"
                    )
            _core.unpack(both[1], guarded_weights(w, end))


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
