"""Mixtures: kernels touch no byte before or after an array, which is next to a page that faults.

A failure here crashes the test run. See test_guard_pages.py.
"""

# ruff: noqa: ARG001 (a test names the fixtures that it runs under)

import numpy as np
import pytest
from support import all_biases, guarded, make_experts, normal
from support_moe import make_routing

import ffncore as fc
from ffncore import _core
from ffncore.values.activation import as_core

# T, E, k, d, f
SIZES = [
    *((1, 1, 1, 1, 1), (1, 3, 2, 33, 65), (5, 2, 3, 5, 7), (13, 3, 2, 17, 31), (40, 2, 2, 15, 33)),
    *((150, 2, 1, 9, 17), (130, 1, 1, 32, 64), (7, 64, 2, 3, 5)),
    # Two blocks of 512 of each summed dimension.
    *((9, 2, 1, 530, 15), (9, 2, 1, 15, 530), (530, 1, 1, 3, 9)),
]


def against(w, end, transposed):
    """The experts' arrays by name; matrices [E, in, out] where transposed."""
    arrays = {}
    for name, a in w.arrays().items():
        if a.ndim == 3 and transposed:
            arrays[name] = guarded(a.swapaxes(1, 2), end).swapaxes(1, 2)
        else:
            arrays[name] = guarded(a, end)
    return arrays


def packed_against(w, end):
    """The last expert is not rounded up to a cache line."""
    made = fc.pack(w)
    stride = made.nbytes // w.n_experts
    one = _core.packed_bytes(w.dtype.name, w.expert(0)._core_weights())
    return _core.Weights.packed(
        guarded(made._buffer[: (w.n_experts - 1) * stride + one], end),
        d_model=w.d_model,
        d_ff=w.d_ff,
        gated=w.gated,
        n_experts=w.n_experts,
        stride=stride,
    )


@pytest.mark.parametrize("end", [True, False], ids=["behind", "before"])
def test_every_array(end, isa, dtype, gated, rng, plan):
    act = fc.Activation("xielu") if not gated else fc.Activation("silu", limit=1.0)
    core = as_core(act, gated, dtype)
    for number, (t, n, k, d, f) in enumerate(SIZES):
        transposed, on_input = number % 2 == 1, number // 2 % 2 == gated
        w = make_experts(rng, n, d, f, gated=gated, biases=all_biases(gated), dtype=dtype)
        arrays = _core.Weights(**against(w, end, transposed))
        packed = packed_against(w, end)
        x, grad_y = (guarded(normal(rng, t, d, dtype=dtype), end) for _ in range(2))
        y, grad_x = (guarded(np.empty((t, d), dtype), end) for _ in range(2))
        if transposed:
            x, grad_y, y, grad_x = (guarded(a.T, end).T for a in (x, grad_y, y, grad_x))
        routing = make_routing(rng, t, n, k, dtype, none=0.1)
        ids, factors = guarded(routing.experts, end), guarded(routing.weights, end)
        grad_factors = guarded(np.empty_like(factors), end)
        size = _core.moe_saved_bytes(x, ids, n, f, gated)
        saved = guarded(np.empty(size, np.uint8), end).view(dtype)
        for in_rows in (0, 1):
            plan(0, 0, 0, in_rows)
            for weights in (arrays, packed):
                mixture = (weights, core, ids, factors, on_input)
                _core.moe_forward(x, y, *mixture, saved)
                _core.moe_forward(x, y, *mixture, None)
                _core.moe_backward(
                    *(x, grad_y, *mixture, saved, False, grad_x, grad_factors, {}, False)
                )
        mixture = (arrays, core, ids, factors, on_input)
        grads = against(w, end, transposed)
        for kept in (saved, None):
            for accumulate in (False, True):
                _core.moe_backward(
                    *(x, grad_y, *mixture, kept, accumulate),
                    *(grad_x, grad_factors, grads, act.name == "xielu"),
                )
