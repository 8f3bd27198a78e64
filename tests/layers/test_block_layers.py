"""fc.FFN and fc.MoE with norms and a residual around them."""

import numpy as np
import pytest
from support import make_experts, make_weights, normal, same_bits

import ffncore as fc

D, F, T, E = 5, 7, 6, 4


def norms(rng):
    return {
        name: fc.Norm(kind, gain=normal(rng, D), eps=0.1)
        for name, kind in (("norm", "rms"), ("post_norm", "layer"), ("out_norm", "rms"))
    }


def differences(layer, x, grad_y, array):
    found = np.empty(array.shape)
    for index in np.ndindex(array.shape):
        kept, ends = array[index], []
        for step in (1e-5, -1e-5):
            array[index] = kept + step
            ends.append((layer(x) * grad_y).sum())
        array[index] = kept
        found[index] = (ends[0] - ends[1]) / 2e-5
    return found


def test_ffn_is_the_function(rng):
    w, x, parts = make_weights(rng, D, F), normal(rng, T, D), norms(rng)
    inner = fc.Norm("layer", gain=normal(rng, F))
    layer = fc.FFN(
        w, "silu", **parts, inner_norm=inner, residual=True, residual_multiplier=0.5, multiplier=2.0
    )
    half = fc.FFN(w, "silu", **parts, inner_norm=inner, residual=True)
    expected = fc.ffn(x, w, activation="silu", **parts, inner_norm=inner, residual=x)
    assert same_bits(half(x), expected)
    assert layer.norm is parts["norm"]
    assert layer.residual_multiplier == 0.5
    assert {"norm.gain", "post_norm.gain", "out_norm.gain"} <= layer.parameters().keys()
    out = np.empty_like(x)
    assert half(x, out=out) is out
    assert same_bits(out, expected)
    y, saved = layer.forward(x)
    assert same_bits(y, layer(x))
    grads = layer.backward(y, saved)
    arrays = {"x": x, "up": w.up, **{n: a for n, a in layer.parameters().items() if "." in n}}
    for name, array in arrays.items():
        expected = differences(layer, x, y, array)
        np.testing.assert_allclose(grads.arrays()[name], expected, rtol=1e-6, atol=1e-7)
    assert grads.inner_norm.gain.shape == (F,)
    assert grads.residual is None


def test_packed_keeps_the_parts(rng):
    w, x, parts = make_weights(rng, D, F), normal(rng, T, D), norms(rng)
    layer = fc.FFN(w, "silu", **parts, residual=True, residual_multiplier=0.5)
    assert same_bits(layer.packed()(x), layer(x))
    mixture = fc.MoE(make_experts(rng, E, D, F), "silu", fc.Router(normal(rng, E, D), top_k=2),
                     **parts, residual=True, residual_multiplier=0.5)  # fmt: skip
    assert same_bits(mixture.packed()(x), mixture(x))


def test_moe(rng):
    experts, router = make_experts(rng, E, D, F), fc.Router(normal(rng, E, D), top_k=2)
    shared = fc.FFN(make_weights(rng, D, F), "silu")
    x, parts = normal(rng, T, D), norms(rng)
    layer = fc.MoE(experts, "silu", router, shared=shared, **parts, residual=True)
    plain = fc.MoE(experts, "silu", router, shared=shared)
    y, saved = layer.forward(x)
    gain = {n: norm.gain for n, norm in parts.items()}
    inside = plain(fc.rms_norm(x, gain["norm"], 0.1))
    s = x + fc.layer_norm(inside, gain["post_norm"], eps=0.1)
    np.testing.assert_allclose(y, fc.rms_norm(s, gain["out_norm"], 0.1), rtol=1e-14)
    again, routing = layer(x, return_routing=True)
    assert same_bits(again, y)
    np.testing.assert_array_equal(routing.experts, saved.routing.experts)
    assert saved.logits.shape == (T, E)
    grads = layer.backward(y, saved)
    assert grads.arrays().keys() == {"x", *layer.parameters()}
    for name in ("x", "norm.gain", "post_norm.gain", "out_norm.gain", "router_weight"):
        array = x if name == "x" else layer.parameters()[name]
        expected = differences(layer, x, y, array)
        np.testing.assert_allclose(
            grads.arrays()[name], expected, rtol=1e-5, atol=1e-6, err_msg=name
        )
    some = layer.backward(y, saved, needs=("norm", "x"))
    assert some.arrays().keys() == {"x", "norm.gain"}
    out = {name: np.ones_like(a) for name, a in grads.arrays().items()}
    added = layer.backward(y, saved, out=out, accumulate=True)
    for name, array in added.arrays().items():
        np.testing.assert_allclose(array, 1 + grads.arrays()[name], rtol=1e-13)


def test_errors(rng):
    w = make_weights(rng, D, F)
    long, narrow = fc.Norm("rms", gain=np.ones(F)), fc.Norm("rms", gain=np.ones(D, "f4"))
    for options, error, sentence in (
        ({"norm": "rms"}, TypeError, "norm is of type str; expected an fc.Norm"),
        ({"norm": long}, ValueError, r"norm.gain has shape \(7,\); expected \(5,\)"),
        ({"out_norm": narrow}, TypeError, "out_norm.gain has dtype float32; expected float64"),
        ({"residual": 1}, TypeError, "residual is of type int; expected True or False"),
        ({"residual_multiplier": 2.0}, ValueError, "residual is False; expected residual=True"),
    ):
        with pytest.raises(error, match=sentence):
            fc.FFN(w, "silu", **options)
        with pytest.raises(error, match=sentence):
            fc.MoE(make_experts(rng, E, D, F), "silu", None, **options)
    around = fc.FFN(w, "silu", residual=True)
    with pytest.raises(ValueError, match="shared has norms or a residual"):
        fc.MoE(make_experts(rng, E, D, F), "silu", None, shared=around)
