"""fc.moe and fc.moe_forward against a loop in numpy: sizes, routings, biases, strides, dtypes."""

# ruff: noqa: ARG001 (a test names the fixtures that it runs under)

import itertools

import numpy as np
import pytest
from support import (
    NARROW,
    TOLERANCE,
    Accuracy,
    all_biases,
    in_every_isa,
    make_experts,
    normal,
    same_bits,
    strided_copies,
    unaligned,
)
from support_moe import factor_dtype, forward, loop, make_routing, moe, part, rough, turned

import ffncore as fc

# T, E, k, d, f: more slots than experts (so that experts occur twice), fewer tokens than experts,
# and numbers of rows of an expert below and above that from which tokens are packed.
SIZES = [
    *((1, 1, 1, 1, 1), (1, 3, 2, 17, 33), (2, 64, 5, 7, 19), (5, 3, 5, 33, 9), (7, 64, 1, 31, 5)),
    *((13, 1, 3, 15, 31), (31, 3, 1, 16, 65), (61, 64, 2, 9, 17), (97, 3, 4, 35, 21)),
    *((131, 2, 2, 19, 5), (257, 1, 1, 5, 11)),
]


def test_odd_sizes(dtype, gated, on_input, rng):
    accuracy = Accuracy()
    for t, n, k, d, f in SIZES:
        w = make_experts(rng, n, d, f, gated=gated, biases=all_biases(gated), dtype=dtype)
        routing = make_routing(rng, t, n, k, dtype, none=0.1)
        x = normal(rng, t, d, dtype=dtype)
        options = {"activation": "gelu", "on_input": on_input}
        y, y_saved = in_every_isa(
            lambda: (moe(x, routing, w, **options), forward(x, routing, w, **options)[0])  # noqa: B023
        )
        assert same_bits(y, y_saved)
        exact, _ = loop(x, routing, w, x, **options)
        yardstick, _ = rough(x, routing, w, x, **options)
        accuracy.add("y", y, exact, yardstick, f"T={t} E={n} k={k} d={d} f={f}")
    accuracy.check()


def test_biases_each_alone(isa, dtype, gated, on_input, rng):
    names = all_biases(gated)
    accuracy = Accuracy()
    for count in range(len(names) + 1):
        for biases in itertools.combinations(names, count):
            w = make_experts(rng, 3, 17, 19, gated=gated, biases=biases, dtype=dtype)
            routing = make_routing(rng, 9, 3, 2, dtype)
            x = normal(rng, 9, 17, dtype=dtype)
            y = moe(x, routing, w, on_input=on_input)
            exact, _ = loop(x, routing, w, x, on_input=on_input)
            accuracy.add("y", y, exact, where=str(biases))
            assert same_bits(moe(x, routing, fc.pack(w), on_input=on_input), y)


# ---- routings ------------------------------------------------------------------------------------


def test_no_tokens(isa, dtype, gated, rng):
    w = make_experts(rng, 3, 7, 19, gated=gated, biases=all_biases(gated), dtype=dtype)
    for lead in ((0,), (3, 0), (0, 3)):
        routing = make_routing(rng, lead, 3, 2, dtype)
        x = np.empty((*lead, 7), dtype)
        for weights in (w, fc.pack(w)):
            assert moe(x, routing, weights).shape == x.shape
            y, saved = forward(x, routing, weights)
            assert y.shape == x.shape
            assert saved.up.shape == (*lead, 2, 19)


def test_slots_without_an_expert(isa, dtype, gated, on_input, rng):
    """Empty slots add nothing: the others have the same bits as without them, or y is 0."""
    w = make_experts(rng, 3, 17, 19, gated=gated, biases=all_biases(gated), dtype=dtype)
    x = normal(rng, 12, 17, dtype=dtype)
    x[2:4] = np.inf  # empty slots are skipped, not multiplied by 0
    routing = make_routing(rng, 12, 3, 3, dtype)
    ids = routing.experts.copy()
    ids[:4], ids[4:, 1] = -1, -1
    some = fc.Routing(experts=ids, weights=routing.weights)
    y = moe(x, some, w, on_input=on_input)
    assert same_bits(y[:4], np.zeros((4, 17), dtype))
    without = fc.Routing(experts=ids[:, ::2], weights=routing.weights[:, ::2])
    assert same_bits(y, moe(x, without, w, on_input=on_input))
    nobody = fc.Routing(experts=np.full_like(ids, -1), weights=routing.weights)
    for weights in (w, fc.pack(w)):
        y, saved = forward(x, nobody, weights, on_input=on_input)
        assert same_bits(y, np.zeros_like(x))
        assert not saved.up.any()
        assert saved.nbytes == 0


def test_experts_that_no_token_chose(isa, dtype, gated, rng):
    """The weights of empty slots are not read, so that they may be anything."""
    w = make_experts(rng, 7, 17, 19, gated=gated, biases=all_biases(gated), dtype=dtype)
    for a in w.arrays().values():
        a[[0, 2, 3, 5, 6]] = np.nan
    few = make_routing(rng, 31, 2, 2, dtype)
    chosen = np.array([1, 4])
    routing = fc.Routing(experts=chosen[few.experts], weights=few.weights)
    x = normal(rng, 31, 17, dtype=dtype)
    y = moe(x, routing, w)
    assert np.isfinite(y.astype(np.float64)).all()
    assert same_bits(y, moe(x, few, turned(w, lambda a: a[chosen])))
    assert same_bits(y, moe(x, routing, fc.pack(w)))


def test_an_expert_twice_within_a_token(isa, dtype, gated, rng):
    """Two slots with half of a weight have the bits of one with all of it: 0.5 y + 0.5 y is y."""
    w = make_experts(rng, 2, 17, 19, gated=gated, biases=all_biases(gated), dtype=dtype)
    x = normal(rng, 37, 17, dtype=dtype)
    once = make_routing(rng, 37, 2, 1, dtype)
    twice = fc.Routing(
        experts=np.repeat(once.experts, 2, axis=1), weights=np.repeat(once.weights / 2, 2, axis=1)
    )
    assert same_bits(moe(x, twice, w), moe(x, once, w))


@pytest.mark.parametrize("integer", [np.int8, np.uint8, np.int32, np.int64])
def test_ids_of_any_integer_type(integer, rng):
    w = make_experts(rng, 3, 5, 7)
    x, routing = normal(rng, 9, 5), make_routing(rng, 9, 3, 2)
    ids = np.repeat(routing.experts.astype(integer), 2, axis=1)[:, ::2]
    assert same_bits(
        moe(x, fc.Routing(experts=ids, weights=routing.weights), w), moe(x, routing, w)
    )


def test_slots_are_added_in_float32_and_rounded_once(isa, gated, rng):
    """float16 results are the float32 results on the same numbers, and only y is rounded."""
    w = make_experts(rng, 3, 33, 67, gated=gated, biases=all_biases(gated), dtype=np.float16)
    x, routing = normal(rng, 37, 33, dtype=np.float16), make_routing(rng, 37, 3, 5, np.float16)
    wide = turned(w, lambda a: a.astype(np.float32))
    y = moe(x.astype(np.float32), routing, wide)
    assert same_bits(moe(x, routing, w), y.astype(np.float16))


def test_the_input_is_multiplied_and_rounded_first(isa, dtype, gated, rng):
    """A weight on the input is the same as weight 1 with an x that the caller has scaled."""
    w = make_experts(rng, 3, 17, 35, gated=gated, biases=all_biases(gated), dtype=dtype)
    for tokens in (1, 5, 37, 300):
        routing = make_routing(rng, tokens, 3, 1, dtype)
        x = normal(rng, tokens, 17, dtype=dtype)
        scaled = (routing.weights * x.astype(factor_dtype(dtype))).astype(dtype)
        ones = fc.Routing(experts=routing.experts, weights=np.ones_like(routing.weights))
        y, saved = forward(x, routing, w, on_input=True)
        y_ones, saved_ones = forward(scaled, ones, w)
        assert same_bits(y, y_ones)
        assert same_bits(saved.up, saved_ones.up)


# ---- arrays --------------------------------------------------------------------------------------


def test_strides_of_inputs(isa, dtype, gated, on_input, rng):
    w = make_experts(rng, 3, 17, 35, gated=gated, biases=all_biases(gated), dtype=dtype)
    x, routing = normal(rng, 37, 17, dtype=dtype), make_routing(rng, 37, 3, 2, dtype)
    y = moe(x, routing, w, on_input=on_input)
    arrays = {name: list(strided_copies(a)) for name, a in w.arrays().items()}
    copies = zip(strided_copies(x), strided_copies(routing.weights), strict=True)
    for i, (x2, factors) in enumerate(copies):
        w2 = fc.FFNWeights(**{name: a[i] for name, a in arrays.items()})
        given = fc.Routing(experts=routing.experts, weights=factors)
        for tokens in (1, 3, 37):
            few = part(given, slice(tokens))
            assert same_bits(moe(x2[:tokens], few, w2, on_input=on_input), y[:tokens])
        assert same_bits(forward(x2, given, w2, on_input=on_input)[0], y)


@pytest.mark.parametrize("tokens", [5, 40, 200])
def test_matrices_in_different_orders(tokens, isa, dtype, rng):
    """Matrices that are stored as [E, in, out] are passed as their transposes, each one alone."""
    w = make_experts(rng, 2, 35, 70, biases=all_biases(True), dtype=dtype)
    x, routing = normal(rng, tokens, 35, dtype=dtype), make_routing(rng, tokens, 2, 2, dtype)
    y = moe(x, routing, w)
    for names in (("gate",), ("up",), ("down",), ("gate", "up"), ("gate", "up", "down")):
        arrays = w.arrays()
        for name in names:
            arrays[name] = np.ascontiguousarray(arrays[name].swapaxes(1, 2)).swapaxes(1, 2)
        assert same_bits(moe(x, routing, fc.FFNWeights(**arrays)), y), names


@pytest.mark.parametrize("layout", ["concat", "interleaved"])
def test_fused_experts(layout, isa, dtype, rng):
    fused, bias = normal(rng, 3, 38, 17, dtype=dtype), normal(rng, 3, 38, dtype=dtype)
    down = normal(rng, 3, 19, 17, dtype=dtype).swapaxes(1, 2)
    w = fc.FFNWeights.from_gate_up(fused, down, layout=layout, b_gate_up=bias)
    assert np.shares_memory(w.gate, fused)
    x = normal(rng, 37, 17, dtype=dtype) / dtype.type(8)
    routing = make_routing(rng, 37, 3, 2, dtype)
    y = moe(x, routing, w)
    assert same_bits(y, moe(x, routing, turned(w, np.ascontiguousarray)))
    assert same_bits(y, moe(x, routing, fc.pack(w)))


def test_zero_strides(isa, dtype, rng):
    """Strides of 0: one expert for all of them, one row for all tokens."""
    one = make_experts(rng, 1, 17, 19, biases=all_biases(True), dtype=dtype)
    w = turned(one, lambda a: np.broadcast_to(a, (5, *a.shape[1:])))
    x = np.broadcast_to(normal(rng, 17, dtype=dtype), (23, 17))
    routing = make_routing(rng, 23, 5, 2, dtype)
    assert same_bits(moe(x, routing, w), moe(x.copy(), routing, turned(w, np.array)))


def test_read_only_and_unaligned_inputs(isa, dtype, on_input, rng):
    w = make_experts(rng, 3, 7, 19, biases=all_biases(True), dtype=dtype)
    x, routing = normal(rng, 9, 7, dtype=dtype), make_routing(rng, 9, 3, 2, dtype)
    y = moe(x, routing, w, on_input=on_input)
    other = fc.Routing(experts=routing.experts, weights=unaligned(routing.weights))
    fields = turned(w, unaligned)
    assert same_bits(moe(unaligned(x), other, fields, on_input=on_input), y)
    assert same_bits(forward(unaligned(x), other, fields, on_input=on_input)[0], y)
    for a in (x, routing.experts, routing.weights, *w.arrays().values()):
        a.flags.writeable = False
    assert same_bits(moe(x, routing, w, on_input=on_input), y)


def test_leading_dimensions(isa, dtype, gated, on_input, rng):
    w = make_experts(rng, 3, 7, 19, gated=gated, dtype=dtype)
    x, flat = normal(rng, 24, 7, dtype=dtype), make_routing(rng, 24, 3, 2, dtype)
    expected = moe(x, flat, w, on_input=on_input)
    for lead in ((24,), (4, 6), (2, 3, 4), (1, 24, 1)):
        routing = fc.Routing(
            experts=flat.experts.reshape(*lead, 2), weights=flat.weights.reshape(*lead, 2)
        )
        x2 = x.reshape(*lead, 7)
        y, saved = forward(x2, routing, w, on_input=on_input)
        assert same_bits(y, expected.reshape(x2.shape))
        assert saved.up.shape == (*lead, 2, 19)
    turned_x = np.array(x.reshape(4, 6, 7).transpose(1, 0, 2)).transpose(1, 0, 2)
    routing = fc.Routing(
        experts=flat.experts.reshape(4, 6, 2), weights=flat.weights.reshape(4, 6, 2)
    )
    assert same_bits(moe(turned_x, routing, w, on_input=on_input), expected.reshape(4, 6, 7))
    one = fc.Routing(experts=flat.experts[0], weights=flat.weights[0])
    assert same_bits(moe(x[0], one, w, on_input=on_input), expected[0])


def test_out_of_any_strides(isa, dtype, rng):
    w = make_experts(rng, 3, 8, 19, biases=all_biases(True), dtype=dtype)
    x, routing = normal(rng, 6, 4, 8, dtype=dtype), make_routing(rng, (6, 4), 3, 2, dtype)
    expected = moe(x, routing, w)
    room = np.empty((8, 12, 8, 2), dtype)
    outs = (
        room[:6, :4, :, 0],
        room[1:7, 10:2:-2, ::-1, 1],
        room[:, :4, :6, 1].transpose(2, 1, 0),
        np.empty((4, 6, 8), dtype).transpose(1, 0, 2),
    )
    for out in outs:
        room[...] = -7
        assert moe(x, routing, w, out=out) is out
        assert same_bits(out, expected)
        if np.shares_memory(out, room):
            assert (room == -7).sum() == room.size - out.size
        out[...] = 0
        assert forward(x, routing, w, out=out)[0] is out
        assert same_bits(out, expected)


# ---- packed weights, and 16 bits -----------------------------------------------------------------


def test_packed_experts(isa, dtype, gated, on_input, rng):
    w = make_experts(rng, 5, 35, 67, gated=gated, biases=all_biases(gated), dtype=dtype)
    p = fc.pack(w)
    for tokens in (1, 9, 200):
        x, routing = normal(rng, tokens, 35, dtype=dtype), make_routing(rng, tokens, 5, 2, dtype)
        y, saved = forward(x, routing, w, on_input=on_input)
        y2, saved2 = forward(x, routing, p, on_input=on_input)
        assert same_bits(y2, y)
        assert same_bits(saved2.up, saved.up)
        assert same_bits(moe(x, routing, p, on_input=on_input), y)


@pytest.mark.parametrize("narrow", NARROW, ids=str)
def test_float32_x_with_narrow_experts_is_exact(narrow, isa, gated, on_input, rng):
    w = make_experts(rng, 3, 35, 67, gated=gated, biases=all_biases(gated), dtype=narrow)
    wide = turned(w, lambda a: a.astype(np.float32))
    for tokens in (1, 9, 150):
        routing = make_routing(rng, tokens, 3, 2, np.float32)
        x = normal(rng, tokens, 35, dtype=np.float32)
        y = moe(x, routing, wide, on_input=on_input)
        for weights in (w, fc.pack(w), fc.pack(wide, dtype=narrow)):
            assert same_bits(moe(x, routing, weights, on_input=on_input), y)
            y2, saved = forward(x, routing, weights, on_input=on_input)
            assert same_bits(y2, y)
            assert saved.up.dtype == np.float32


@pytest.mark.parametrize("narrow", NARROW, ids=str)
def test_biases_may_be_float32(narrow, isa, gated, rng):
    w = make_experts(rng, 3, 17, 35, gated=gated, dtype=narrow)
    biases = {
        name: normal(rng, 3, 17 if name == "b_down" else 35, dtype=np.float32)
        for name in all_biases(gated)
    }
    w = fc.FFNWeights(**w.arrays(), **biases)
    for tokens in (1, 9, 150):
        routing = make_routing(rng, tokens, 3, 2, narrow)
        x = normal(rng, tokens, 17, dtype=narrow)
        y = moe(x, routing, w)
        exact, _ = loop(x, routing, w, x)
        np.testing.assert_allclose(y.astype(np.float64), exact, atol=8 * TOLERANCE[narrow])
        assert same_bits(moe(x, routing, fc.pack(w)), y)
