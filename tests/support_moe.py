"""Helpers for tests of mixtures: routings, both passes, and the mixture as a loop in numpy.

    y[t] = sum over s of w[t, s] FFN_e(x[t])   or   sum over s of FFN_e(w[t, s] x[t])

The loop computes the rows of one expert at a time with the formulas of a dense layer: those of
ffncore.reference in float64, or support.yardsticks with the roundings of the arrays' dtype.
"""

from collections import defaultdict

import numpy as np
from support import TOLERANCE, normal, yardsticks

import ffncore as fc
from ffncore import reference
from ffncore.values.activation import as_activation


def factor_dtype(dtype):
    """The dtype of the routing weights for x of this dtype."""
    return np.float64 if dtype == np.float64 else np.float32


def make_routing(rng, tokens, n, k, dtype=np.float64, *, none=0.0):
    """Random experts, also duplicates, and some slots without one. tokens: a number or a shape"""
    shape = (*np.atleast_1d(tokens), k)
    ids = rng.integers(0, n, shape)
    ids[rng.random(shape) < none] = -1
    return fc.Routing(experts=ids, weights=normal(rng, *shape, dtype=factor_dtype(dtype)))


def to_one(tokens, expert, dtype, k=1):
    """Every token to one expert, with weight 1."""
    shape = (*np.atleast_1d(tokens), k)
    return fc.Routing(experts=np.full(shape, expert), weights=np.ones(shape, factor_dtype(dtype)))


def part(routing, index):
    """The routing of some tokens."""
    return fc.Routing(experts=routing.experts[index], weights=routing.weights[index])


def turned(w, turn):
    """The same experts with a function applied to every array."""
    return fc.FFNWeights(**{name: turn(a) for name, a in w.arrays().items()})


def forward(x, routing, w, *, activation="silu", on_input=False, **options):
    return fc.moe_forward(
        x, routing, w, activation=activation, apply_router_weight_on_input=on_input, **options
    )


def moe(x, routing, w, *, activation="silu", on_input=False, **options):
    return fc.moe(
        x, routing, w, activation=activation, apply_router_weight_on_input=on_input, **options
    )


def backward(grad_y, saved, **options):
    """Gradients by name; xielu's two parameters as one array."""
    grads = fc.moe_backward(grad_y, saved, **options)
    numbers = {} if grads.activation is None else {"activation": np.array(grads.activation)}
    return {**grads.arrays(), **numbers}


def both(x, routing, w, grad_y, **options):
    y, saved = forward(x, routing, w, **options)
    return y, backward(grad_y, saved)


# ---- the loop ------------------------------------------------------------------------------------


def exactly(x, w, grad_y, activation):
    grads = reference.ffn_backward(grad_y, x, w, activation=activation)
    return reference.ffn(x, w, activation=activation), grads


def roughly(x, w, grad_y, activation):
    return yardsticks(x, w, grad_y, activation, round_results=False)


def loop(x, routing, w, grad_y, *, activation="silu", on_input=False, dense=exactly):
    """y and the gradients by name, in float64; with dense=roughly in float32 for float32."""
    number = np.float32 if dense is roughly and x.dtype == np.float32 else np.float64
    d, k = x.shape[-1], routing.experts.shape[-1]
    rows = x.reshape(-1, d)
    dy = grad_y.reshape(-1, d).astype(number)
    ids, given = (a.reshape(-1, k) for a in (routing.experts, routing.weights))
    factors = given.astype(number)
    y, dx, d_factors = (np.zeros(shape, number) for shape in (rows.shape, rows.shape, ids.shape))
    grads = {name: np.zeros(a.shape, number) for name, a in w.arrays().items()}
    numbers = np.zeros(2)
    for e in np.unique(ids[ids >= 0]):
        t, s = np.nonzero(ids == e)
        c = factors[t, s][:, None]
        if on_input:
            scaled = (given[t, s][:, None] * rows[t].astype(given.dtype)).astype(x.dtype)
            out, found = dense(scaled, w.expert(e), dy[t], activation)
            d_factors[t, s] = (found["x"] * rows[t].astype(number)).sum(1)
            np.add.at(y, t, out)
            np.add.at(dx, t, c * found["x"])
        else:
            out, found = dense(rows[t], w.expert(e), c * dy[t], activation)
            d_factors[t, s] = (dy[t] * found.get("y_again", out)).sum(1)
            np.add.at(y, t, c * out)
            np.add.at(dx, t, found["x"])
        for name, a in grads.items():
            a[e] += found[name]
        numbers += found.get("alpha_p", 0), found.get("alpha_n", 0)
    grads["x"] = dx.reshape(x.shape)
    grads["routing_weights"] = d_factors.reshape(routing.weights.shape)
    if as_activation(activation).name == "xielu":
        grads["activation"] = numbers
    return y.reshape(x.shape), grads


def rough(x, routing, w, grad_y, **options):
    """The loop with the roundings of x's dtype, results too; nothing for float64."""
    if x.dtype == np.float64:
        return None, defaultdict(lambda: None)
    y, grads = loop(x, routing, w, grad_y, dense=roughly, **options)
    return y.astype(x.dtype), {name: a.astype(x.dtype) for name, a in grads.items()}


def compare(accuracy, answer, exact, yardstick, where=""):
    """Add results to the pool. All of them may have the error of the dtype of x and y."""
    (y, grads), (exact_y, exact_grads), (rough_y, rough_grads) = answer, exact, yardstick
    accuracy.add("y", y, exact_y, rough_y, where)
    assert set(grads) == set(exact_grads), where
    for name, gradient in grads.items():
        exact_gradient = exact_grads[name]
        if name == "activation":  # long sums, which the loop's yardstick does not have
            np.testing.assert_allclose(gradient, exact_gradient, rtol=20 * TOLERANCE[y.dtype])
        else:
            rounded = gradient.astype(y.dtype)
            accuracy.add(name, rounded, exact_gradient, rough_grads[name], where)
