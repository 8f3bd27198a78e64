"""Layers with a norm or a cutoff between the matrices, and factors of the output."""

import math

import numpy as np
import pytest

import ffncore as fc
from ffncore.functional.inner import Inner

D, F, T = 5, 9, 4
Z = {0.95: 1.6448536269514722, 0.6: 0.2533471031357997}  # quantiles of the normal distribution


def layer(
    norm=None, sparsity=0.0, gated=True, act="silu", biased=False, multiplier=1.0, dtype="f8"
):
    rng = np.random.default_rng(3)

    def draw(*shape):
        return rng.standard_normal(shape).astype(dtype)

    arrays = {"up": draw(F, D), "down": draw(D, F)}
    arrays |= {"gate": draw(F, D)} if gated else {}
    if biased:
        arrays |= {"b_up": draw(F), "b_down": draw(D)}
        arrays |= {"b_gate": draw(F)} if gated else {}
    inner = Inner(
        norm,
        weight=draw(F) if norm else None,
        bias=draw(F) if norm == "layer" else None,
        eps=1e-3,
        sparsity=sparsity,
    )
    return fc.FFN(fc.FFNWeights(**arrays), act, inner=inner, multiplier=multiplier)


def formula(ffn, x):
    w, inner = ffn.weights, ffn.inner
    p = None if w.gate is None else x @ w.gate.T + (0 if w.b_gate is None else w.b_gate)
    q = x @ w.up.T + (0 if w.b_up is None else w.b_up)
    z = q if p is None else p
    if inner.sparsity:
        z = np.maximum(
            z - z.mean(-1, keepdims=True) - Z[inner.sparsity] * z.std(-1, keepdims=True), 0
        )
    act = {"silu": lambda v: v / (1 + np.exp(-v)), "relu2": lambda v: np.maximum(v, 0) ** 2}
    act["gelu"] = lambda v: v / 2 * (1 + np.vectorize(math.erf)(v / np.sqrt(2)))
    h = act[ffn.activation.name](z) * (1 if p is None else q)
    if inner.norm == "rms":
        h = h / np.sqrt((h * h).mean(-1, keepdims=True) + inner.eps) * inner.weight
    if inner.norm == "layer":
        centred = h - h.mean(-1, keepdims=True)
        h = centred / np.sqrt(h.var(-1, keepdims=True) + inner.eps) * inner.weight + inner.bias
    return ffn.multiplier * (h @ w.down.T + (0 if w.b_down is None else w.b_down))


CASES = [
    {"norm": "rms", "act": "relu2"},
    {"norm": "layer", "gated": False, "biased": True, "act": "gelu"},
    {"sparsity": 0.95},
    {"sparsity": 0.6, "gated": False, "biased": True},
    {"norm": "rms", "sparsity": 0.6, "multiplier": 0.7},
    {"norm": "layer", "biased": True, "multiplier": -2.0},
    {},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_output(case, rng):
    ffn = layer(**case)
    x = rng.standard_normal((2, T, D))
    expected = formula(ffn, x)
    np.testing.assert_allclose(ffn(x), expected, rtol=1e-12, atol=1e-12)
    out = np.empty_like(x)
    assert ffn(x, out=out) is out
    assert np.array_equal(out, ffn(x))
    assert np.array_equal(ffn.forward(x)[0], out)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_differences(case, rng):
    ffn = layer(**case)
    x, grad_y = rng.standard_normal((2, 3, D)), rng.standard_normal((2, 3, D))
    grads = ffn.backward(grad_y, ffn.forward(x)[1]).arrays()
    arrays = {"x": x, **ffn.parameters()}
    assert set(grads) == set(arrays)
    for name, array in arrays.items():
        found = np.empty_like(array)
        for i in np.ndindex(array.shape):
            kept, ends = array[i], []
            for step in (1e-6, -1e-6):
                array[i] = kept + step
                ends.append((ffn(x) * grad_y).sum())
            array[i] = kept
            found[i] = (ends[0] - ends[1]) / 2e-6
        np.testing.assert_allclose(grads[name], found, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("dtype", ["f4", "f2"])
def test_narrow(dtype, rng):
    ffn, wide = layer("rms", dtype=dtype), layer("rms")
    x = rng.standard_normal((T, D)).astype(dtype)
    for name, array in ffn.parameters().items():
        wide.parameters()[name][...] = array
    expected = formula(wide, x.astype("f8"))
    y = ffn(x)
    assert y.dtype == x.dtype
    bound = {"f4": 2e-6, "f2": 2e-3}[dtype]
    np.testing.assert_allclose(y, expected, rtol=0, atol=bound * np.abs(expected).max())
    grads = ffn.backward(np.ones_like(x), ffn.forward(x)[1])
    assert {array.dtype for array in grads.arrays().values()} == {x.dtype}


def test_needs_out_and_accumulate(rng):
    ffn = layer("rms")
    x = rng.standard_normal((T, D))
    saved = ffn.forward(x)[1]
    whole = ffn.backward(x, saved).arrays()
    some = ffn.backward(x, saved, needs=("x", "norm_weight"))
    assert set(some.arrays()) == {"x", "norm_weight"}
    out = {"x": np.ones_like(x), "down": np.ones((D, F))}
    grads = ffn.backward(x, saved, needs=("x", "down"), out=out, accumulate=True)
    assert grads.x is out["x"]
    np.testing.assert_array_equal(grads.x, 1 + whole["x"])
    np.testing.assert_array_equal(grads.weights.down, 1 + whole["down"])
    with pytest.raises(ValueError, match="needs has 'gat'; expected names of x, gate, up"):
        ffn.backward(x, saved, needs=("gat",))
    with pytest.raises(ValueError, match="accumulate is true and out is None"):
        ffn.backward(x, saved, accumulate=True)


def test_a_factor_without_an_inner_runs_in_the_kernels(rng):
    plain = layer()
    scaled = fc.FFN(plain.weights, "silu", multiplier=0.5)
    x = rng.standard_normal((T, D))
    y = fc.ffn(x, plain.weights, activation="silu")
    np.testing.assert_array_equal(scaled(x), 0.5 * y)
    np.testing.assert_array_equal(scaled.packed()(x), 0.5 * y)
    grads = scaled.backward(x, scaled.forward(x)[1])
    expected = fc.reference.ffn_backward(0.5 * x, x, plain.weights, activation="silu")
    np.testing.assert_allclose(grads.x, expected["x"], rtol=1e-12, atol=1e-12)


def test_errors():
    ffn = layer("rms")
    assert ffn.packed() is ffn
    with pytest.raises(TypeError, match="weights are packed and inner is given"):
        fc.FFN(fc.pack(ffn.weights), "silu", inner=ffn.inner)
    with pytest.raises(TypeError, match="x has dtype float32"):
        ffn(np.ones((T, D), "f4"))
    with pytest.raises(ValueError, match=r"x has shape \(4, 6\)"):
        ffn(np.ones((T, D + 1)))
    with pytest.raises(ValueError, match="multiplier is nan"):
        fc.FFN(ffn.weights, "silu", multiplier=float("nan"))
