"""FFNWeights of a single layer and of experts, and from_gate_up."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest
from support import all_biases, make_experts, make_weights, normal, same_bits, unaligned

import ffncore as fc


def test_holds_the_arrays_that_were_given(rng):
    up, down = normal(rng, 7, 5), normal(rng, 5, 7)
    w = fc.FFNWeights(up=up, down=down)
    assert w.up is up
    assert w.down is down
    assert w.gate is None
    assert (w.d_ff, w.d_model, w.shape, w.gated, w.dtype) == (7, 5, (7, 5), False, np.float64)
    assert w.nbytes == up.nbytes + down.nbytes


def test_is_frozen_and_can_be_replaced_and_pickled(rng):
    w = make_weights(rng, 3, 4, biases=("b_up",))
    with pytest.raises(dataclasses.FrozenInstanceError):
        w.up = None
    assert dataclasses.replace(w, b_up=None).b_up is None
    for other in (pickle.loads(pickle.dumps(w)), copy.deepcopy(w)):
        assert list(other.arrays()) == list(w.arrays())
        assert all(
            same_bits(a, b)
            for a, b in zip(other.arrays().values(), w.arrays().values(), strict=True)
        )


def test_an_array_reshaped_in_place_later_does_no_harm(rng):
    w = make_weights(rng, 4, 4, gated=False)
    x = normal(rng, 2, 4)
    expected = fc.ffn(x, w, activation="relu")
    up = w._views["up"]
    assert up is not w.up
    assert np.shares_memory(up, w.up)
    assert same_bits(fc.ffn(x, w, activation="relu"), expected)


@pytest.mark.parametrize("layout", ["concat", "interleaved"])
@pytest.mark.parametrize("order", ["gate_first", "up_first"])
def test_from_gate_up_makes_views(layout, order, rng):
    gate, up = normal(rng, 2, 6, 5)
    b_gate, b_up = normal(rng, 2, 6)
    first, second = (gate, up) if order == "gate_first" else (up, gate)
    b_first, b_second = (b_gate, b_up) if order == "gate_first" else (b_up, b_gate)
    if layout == "concat":
        fused, bias = np.concatenate([first, second]), np.concatenate([b_first, b_second])
    else:
        fused = np.stack([first, second], axis=1).reshape(12, 5)
        bias = np.stack([b_first, b_second], axis=1).reshape(12)
    down = normal(rng, 5, 6)
    w = fc.FFNWeights.from_gate_up(fused, down, layout=layout, order=order, b_gate_up=bias)
    for given, expected in ((w.gate, gate), (w.up, up), (w.b_gate, b_gate), (w.b_up, b_up)):
        assert np.array_equal(given, expected)
    assert np.shares_memory(w.gate, fused)
    assert np.shares_memory(w.b_up, bias)
    x = normal(rng, 3, 5)
    separate = fc.FFNWeights(gate=gate, up=up, down=down, b_gate=b_gate, b_up=b_up)
    assert same_bits(fc.ffn(x, w, activation="silu"), fc.ffn(x, separate, activation="silu"))


def test_experts(gated, dtype, rng):
    w = make_experts(rng, 4, 5, 7, gated=gated, biases=all_biases(gated), dtype=dtype)
    assert (w.n_experts, w.d_model, w.d_ff, w.shape) == (4, 5, 7, (7, 5))
    assert (w.gated, w.dtype) == (gated, dtype)
    assert w.nbytes == sum(a.nbytes for a in w.arrays().values())
    assert repr(w).endswith(f"b_down=(4, 5), {dtype.name})")
    for e in range(4):
        block = w.expert(e)
        assert block.n_experts is None
        for name, array in block.arrays().items():
            assert np.shares_memory(array, getattr(w, name))
            assert same_bits(array, getattr(w, name)[e])
    assert all(view.base is getattr(w, name) for name, view in w._views.items())
    other = pickle.loads(pickle.dumps(w))
    assert other.n_experts == 4
    assert all(
        same_bits(a, b) for a, b in zip(other.arrays().values(), w.arrays().values(), strict=True)
    )


def test_an_expert_that_is_not_aligned_is_copied_for_a_call(rng):
    w = make_experts(rng, 2, 5, 7)
    odd = fc.FFNWeights(gate=w.gate, up=unaligned(w.up), down=w.down)
    assert odd._struct is None
    x, routing = normal(rng, 3, 5), fc.route(normal(rng, 3, 2), 1)
    y = fc.moe(x, routing, odd, activation="silu")
    assert same_bits(y, fc.moe(x, routing, w, activation="silu"))
    assert odd._struct is None


@pytest.mark.parametrize("layout", ["concat", "interleaved"])
@pytest.mark.parametrize("order", ["gate_first", "up_first"])
def test_from_gate_up_of_experts_is_that_of_each(layout, order, rng):
    # As in a checkpoint that stores [E, in, out].
    fused, bias = normal(rng, 3, 5, 12).swapaxes(1, 2), normal(rng, 3, 12)
    down = normal(rng, 3, 5, 6)
    options = {"layout": layout, "order": order}
    w = fc.FFNWeights.from_gate_up(fused, down, b_gate_up=bias, **options)
    assert (w.n_experts, w.shape) == (3, (6, 5))
    for e in range(3):
        one = fc.FFNWeights.from_gate_up(fused[e], down[e], b_gate_up=bias[e], **options)
        for name, array in one.arrays().items():
            assert same_bits(array, getattr(w, name)[e])
            source = bias if name.startswith("b_") else down if name == "down" else fused
            assert np.shares_memory(getattr(w, name), source)


def test_experts_are_refused_where_one_block_is_expected(rng):
    w = make_experts(rng, 3, 5, 7)
    x = normal(rng, 2, 5)
    for weights in (w, fc.pack(w)):
        for call in (fc.ffn, fc.ffn_forward):
            with pytest.raises(
                ValueError,
                match=r"weights are those of 3 experts; expected those of a single layer",
            ):
                call(x, weights, activation="silu")
        for e in (3, -1):
            with pytest.raises(ValueError, match=f"e is {e}; expected an expert from 0 to 2"):
                weights.expert(e)
        with pytest.raises(TypeError, match="e is of type float; expected the number of an expert"):
            weights.expert(1.0)
        with pytest.raises(ValueError, match="the weights are those of a single layer"):
            weights.expert(0).expert(0)
