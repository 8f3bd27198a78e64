"""fc.cost against the formulas, and against the FLOPs that a call really computes."""

# ruff: noqa: ARG001 (a test names the fixtures that it runs under)

import itertools

import numpy as np
import pytest
from support import all_biases, make_weights, normal

import ffncore as fc
from ffncore import _core

# Sizes of whole tiles in every instruction set, because the counter includes the padding of tiles.
T, D, F = 64, 64, 128
PRODUCT = 2 * T * D * F


@pytest.mark.parametrize("gated, products", [(True, 3), (False, 2)])
def test_forward(gated, products, isa, dtype, rng):
    w = make_weights(rng, D, F, gated=gated, dtype=dtype)
    x = normal(rng, T, D, dtype=dtype)
    for weights, save in itertools.product((w, fc.pack(w)), ("preactivations", "input")):
        told = fc.cost(T, weights, op="ffn_forward", save=save)
        assert told.flops == products * PRODUCT
        _core.debug_flops()
        fc.ffn_forward(x, weights, activation="silu", save=save)
        assert _core.debug_flops() == told.flops
        assert fc.cost(T, weights).flops == told.flops
        fc.ffn(x, weights, activation="silu")
        assert _core.debug_flops() == told.flops


def products_of(needs, gated, recompute):
    """The number of products [T, d, f] for the gradients in needs."""
    before = {"x", "gate", "up", "b_gate", "b_up", "activation"}
    count = 0
    if recompute and set(needs) & (before | {"down"}):
        count += 1 + gated  # gate and up again
    if set(needs) & before:
        count += 1  # dh
    if "x" in needs:
        count += 1 + gated
    return count + len(set(needs) & {"gate", "up", "down"})


@pytest.mark.parametrize("save", ["preactivations", "input"])
def test_backward_costs_what_is_needed(save, isa, dtype, gated, rng):
    w = make_weights(rng, D, F, gated=gated, biases=all_biases(gated), dtype=dtype)
    x = normal(rng, T, D, dtype=dtype)
    _, saved = fc.ffn_forward(x, w, activation="xielu", save=save)
    names = ["x", *w.arrays(), "activation"]
    for needs in [(n,) for n in names] + list(itertools.combinations(names, 2)) + [names]:
        expected = products_of(needs, gated, save == "input") * PRODUCT
        _core.debug_flops()
        fc.ffn_backward(x, saved, needs=needs)
        assert _core.debug_flops() == expected, needs
        told = fc.cost(T, w, activation="xielu", op="ffn_backward", save=save, needs=needs)
        assert told.flops == expected, needs
    everything = fc.cost(T, w, op="ffn_backward", save=save)
    assert everything.flops == products_of(names, gated, save == "input") * PRODUCT


def test_packed_backward(isa, dtype, gated, rng):
    p = fc.pack(make_weights(rng, D, F, gated=gated, dtype=dtype))
    x = normal(rng, T, D, dtype=dtype)
    _, saved = fc.ffn_forward(x, p, activation="silu")
    _core.debug_flops()
    fc.ffn_backward(x, saved)
    expected = products_of(("x",), gated, False) * PRODUCT
    assert _core.debug_flops() == expected == fc.cost(T, p, op="ffn_backward").flops


def test_a_layer_of_given_sizes_costs_what_its_weights_would(isa, gated, rng):
    w = make_weights(rng, D, F, gated=gated, biases=all_biases(gated), dtype=np.float32)
    for needs in (None, ("x",), ("b_up",), ("b_down",), ("activation",)):
        given = {"activation": "xielu", "op": "ffn_backward", "needs": needs}
        assert fc.cost(T, w, **given) == fc.cost(T, d_model=D, d_ff=F, gated=gated, **given)
    packed = fc.cost(T, d_model=D, d_ff=F, gated=gated, packed=True, op="ffn_backward")
    assert packed == fc.cost(T, fc.pack(w), op="ffn_backward")


def test_parameters_of_the_activation_take_workspace():
    layer = {"d_model": D, "d_ff": F, "op": "ffn_backward"}
    silu = fc.cost(T, activation="silu", **layer)
    xielu = fc.cost(T, activation=fc.Activation("xielu", beta=0.4), **layer)
    assert xielu.extra_bytes > silu.extra_bytes
    assert xielu.flops == silu.flops
    without = fc.cost(T, activation="xielu", needs=("x", "gate", "up", "down"), **layer)
    assert without.extra_bytes == silu.extra_bytes


@pytest.mark.parametrize(
    "layer, needs, sentence",
    [
        ({}, ("activation",), "needs has 'activation', but only xielu has trainable parameters"),
        ({"gated": False}, ("gate",), "needs has 'gate', but the weights have no gate"),
        (
            {"packed": True},
            ("x", "up"),
            "needs has 'up', but packed weights give only the gradient of",
        ),
    ],
)
def test_gradients_that_do_not_exist(layer, needs, sentence):
    with pytest.raises(ValueError, match=sentence):
        fc.cost(T, d_model=D, d_ff=F, op="ffn_backward", needs=needs, **layer)


def test_bytes_are_the_weights_and_the_gradients():
    weights = 3 * 384 * 1536 * 4
    forward = fc.cost(1, d_model=384, d_ff=1536)
    assert forward.bytes == pytest.approx(weights, rel=0.02)
    assert fc.cost(1, d_model=384, d_ff=1536, dtype=np.float64).bytes == 2 * forward.bytes
    backward = fc.cost(512, d_model=384, d_ff=1536, op="ffn_backward")
    assert backward.bytes >= 2 * weights * 0.98
    assert (
        fc.cost(512, d_model=384, d_ff=1536, op="ffn_backward", needs=("x",)).bytes < backward.bytes
    )


def test_can_be_read():
    told = fc.cost(512, d_model=4096, d_ff=14336)
    assert told.activations == 512 * 14336
    assert "GFLOP" in str(told)
    assert told.intensity == told.flops / told.bytes
    assert fc.cost(0, d_model=4, d_ff=4).flops == 0
