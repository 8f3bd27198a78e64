"""The saved activations of moe_forward: gate and up of every slot, which cannot be changed."""

import gc

import numpy as np
import pytest
from support import TOLERANCE, all_biases, make_experts, normal, same_bits
from support_moe import backward, forward, make_routing

import ffncore as fc
from ffncore import reference
from ffncore.arrays import memory


def per_slot(x, routing, w, on_input):
    """gate and up [..., k, f] by the reference, with 0 in slots without an expert."""
    ids = routing.experts
    gate, up = np.zeros((2, *ids.shape, w.d_ff))
    for index in np.argwhere(ids >= 0):
        t, s = index[:-1], index[-1]
        row, number = x[tuple(t)], routing.weights.dtype
        if on_input:
            row = (routing.weights[(*t, s)] * row.astype(number)).astype(x.dtype)
        found = reference.preactivations(row, w.expert(ids[(*t, s)]))
        gate[(*t, s)], up[(*t, s)] = 0 if found[0] is None else found[0], found[1]
    return gate, up


@pytest.mark.parametrize("lead", [(0,), (1,), (17,), (3, 7), (64,), (150,)])
def test_saved_can_be_looked_at(lead, dtype, gated, on_input, rng):
    """The last panel of an expert is narrower than the others; 150 x 2 slots fill several."""
    w = make_experts(rng, 3, 7, 19, gated=gated, biases=all_biases(gated), dtype=dtype)
    x, routing = normal(rng, *lead, 7, dtype=dtype), make_routing(rng, lead, 3, 2, dtype, none=0.1)
    gate, up = per_slot(x, routing, w, on_input)
    for isa in fc.available_isas():
        with fc.using_isa(isa):
            _, saved = forward(x, routing, w, on_input=on_input)
        close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
        np.testing.assert_allclose(saved.up.astype(np.float64), up, **close)
        assert saved.up.dtype == dtype
        if gated:
            np.testing.assert_allclose(saved.gate.astype(np.float64), gate, **close)
        else:
            assert saved.gate is None
    assert saved.x is x
    assert saved.weights is w
    assert saved.routing is routing
    assert saved.apply_router_weight_on_input is on_input
    assert saved.activation == fc.Activation("silu")
    assert saved.save == "preactivations"
    used = int((routing.experts >= 0).sum())
    assert used <= saved.nbytes / (19 * (1 + gated) * dtype.itemsize) < used + 3 * 16


def test_it_cannot_be_changed(rng):
    w, x = make_experts(rng, 3, 5, 7), normal(rng, 9, 5)
    _, saved = forward(x, make_routing(rng, 9, 3, 2), w)
    for name in ("x", "routing", "weights", "gate", "apply_router_weight_on_input", "new"):
        with pytest.raises(AttributeError, match=f"MoESaved cannot be changed; {name} was"):
            setattr(saved, name, None)
    up = saved.up
    saved.up[...] = 0  # a copy
    assert same_bits(saved.up, up)
    assert "MoESaved(x=(9, 5), FFNWeights(" in repr(saved)


def test_a_shape_changed_in_place_does_not_matter(rng):
    w, x, routing = make_experts(rng, 3, 5, 7), normal(rng, 8, 5), make_routing(rng, 8, 3, 2)
    y, saved = forward(x, routing, w)
    expected = backward(y, saved)
    x.shape = (5, 8)
    assert all(same_bits(a, expected[name]) for name, a in backward(y, saved).items())


@pytest.mark.parametrize("save", ["preactivations", "input"])
def test_ids_changed_in_between_lead_nowhere(save, rng):
    """The layout depends on the ids: with other ids, reads would go beyond its end."""
    w, x = make_experts(rng, 40, 5, 7), normal(rng, 400, 5)
    routing = make_routing(rng, 400, 1, 1)
    y, saved = forward(x, routing, w, save=save)
    expected = backward(y, saved)
    routing.experts[...] = np.arange(400)[:, None] % 40  # a panel for each expert
    try:
        grads = backward(y, saved)
    except ValueError:
        return
    if save == "preactivations":
        assert all(same_bits(grads[name], a) for name, a in expected.items())


def test_steps_of_training_use_one_buffer(rng):
    gc.collect()
    fc.clear_workspace()
    w = make_experts(rng, 3, 16, 600, dtype=np.float32)
    x, routing = normal(rng, 700, 16, dtype=np.float32), make_routing(rng, 700, 3, 2, np.float32)

    def step():
        y, saved = forward(x, routing, w)
        assert saved.nbytes > 2**22
        return saved._panels.__array_interface__["data"][0], backward(y, saved)["x"]

    (first, grad_x), (second, again) = step(), step()
    assert first == second
    assert same_bits(grad_x, again)
    _, saved = forward(x, routing, w)
    gate = saved.gate
    _, other = forward(2 * x, routing, w)
    assert not np.shares_memory(other._panels, saved._panels)
    assert same_bits(gate, saved.gate)
    del saved, other
    fc.clear_workspace()
    assert not memory._released
