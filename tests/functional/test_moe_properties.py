"""hypothesis: any routing and any strides against a loop in numpy; bad input and its errors."""

import numpy as np
import pytest
import support
from support import Accuracy, all_biases, make_experts, normal, same_bits
from support_moe import both, compare, factor_dtype, loop, moe

import ffncore as fc

pytest.importorskip("hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st
from test_properties import arrays_of_any_kind, strided

small = st.integers(1, 9)
DTYPES = st.sampled_from(support.DTYPES)


@st.composite
def routings(draw, dtype):
    """(routing, E): all tokens to one expert, empty experts, duplicates, no experts, no tokens."""
    n, k = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    lead = draw(st.lists(st.integers(0, 7), max_size=2))
    lead[:1] = [draw(st.sampled_from([0, 1, 2, 5, 40, 90]))] if lead else []
    known = draw(st.lists(st.integers(-1, n - 1), min_size=1, max_size=4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ids = rng.choice(known, (*lead, k)).astype(draw(st.sampled_from(["i1", "i4", "i8"])))
    factors = draw(st.sampled_from([np.zeros, np.ones, rng.standard_normal]))(ids.shape)
    routing = fc.Routing(experts=ids, weights=factors.astype(factor_dtype(dtype)))
    return routing, n


@settings(max_examples=150)
@given(st.data())
def test_any_routing(data):
    dtype, gated, on_input = data.draw(DTYPES), data.draw(st.booleans()), data.draw(st.booleans())
    routing, n = data.draw(routings(dtype))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    d, f, biases = data.draw(small), data.draw(small), data.draw(st.booleans())
    names = all_biases(gated) if biases else ()
    w = make_experts(rng, n, d, f, gated=gated, biases=names, dtype=dtype)
    shape = (*routing.experts.shape[:-1], d)
    x, grad_y = normal(rng, *shape, dtype=dtype), normal(rng, *shape, dtype=dtype)
    answer = both(x, routing, w, grad_y, on_input=on_input)
    exact = loop(x, routing, w, grad_y, on_input=on_input)
    compare(Accuracy(), answer, exact, (None, dict.fromkeys(exact[1])))
    y, grads = both(x, routing, fc.pack(w), grad_y, on_input=on_input, save="input")
    assert same_bits(y, answer[0])
    assert all(same_bits(a, answer[1][name]) for name, a in grads.items())
    chosen = np.unique(routing.experts)
    idle = np.setdiff1d(np.arange(n), chosen)
    assert not any(answer[1][name][idle].any() for name in w.arrays())


@settings(max_examples=100)
@given(st.data())
def test_strides_do_not_matter(data):
    dtype, on_input = data.draw(DTYPES), data.draw(st.booleans())
    routing, n = data.draw(routings(dtype))
    d, f = data.draw(small), data.draw(small)
    arrays = {
        "up": data.draw(strided((n, f, d), dtype)),
        "down": data.draw(strided((n, d, f), dtype)),
    }
    if data.draw(st.booleans()):
        arrays["gate"] = data.draw(strided((n, f, d), dtype))
    if data.draw(st.booleans()):
        arrays["b_up"] = data.draw(strided((n, f), dtype))
    shape = (*routing.experts.shape[:-1], d)
    x, grad_y = data.draw(strided(shape, dtype)), data.draw(strided(shape, dtype))
    factors = data.draw(strided(routing.weights.shape, routing.weights.dtype))
    routing = fc.Routing(experts=routing.experts, weights=factors)
    given_arrays = (x, grad_y, factors, routing.experts, *arrays.values())
    before = [a.tobytes() for a in given_arrays]
    options = {"activation": "gelu", "on_input": on_input}
    y, grads = both(x, routing, fc.FFNWeights(**arrays), grad_y, **options)
    x2, grad2, factors2 = (np.array(a, order="C") for a in (x, grad_y, factors))
    copies = fc.FFNWeights(**{name: np.array(a, order="C") for name, a in arrays.items()})
    same = fc.Routing(experts=routing.experts, weights=factors2)
    y2, grads2 = both(x2, same, copies, grad2, **options)
    assert same_bits(y, y2)
    assert all(same_bits(grads[name], a) for name, a in grads2.items())
    assert same_bits(moe(x, routing, fc.pack(copies), **options), y)
    assert [a.tobytes() for a in given_arrays] == before


ids_of_any_kind = st.one_of(
    st.builds(
        lambda shape, dtype, number: np.full(shape, number).astype(dtype),
        st.lists(st.integers(0, 4), max_size=3).map(tuple),
        st.sampled_from(["i4", "i8", "u1", "i2"]),
        st.integers(-3, 3),
    ),
    arrays_of_any_kind,
)


@settings(max_examples=300)
@given(st.lists(arrays_of_any_kind, min_size=7, max_size=7), ids_of_any_kind, st.booleans())
def test_anything_else_raises_the_two_errors_alone(arrays, ids, fits):
    x, factors, up, down, grad_y, out, out_factors = arrays
    if fits:  # the layer is valid, the other arguments are anything
        up, down = np.ones((3, 4, 2), np.float32), np.ones((3, 2, 4), np.float32)
    try:
        routing = fc.Routing(experts=ids, weights=factors)
        w = fc.FFNWeights(up=up, down=down)
        y, saved = fc.moe_forward(x, routing, w, activation="silu")
        outs = {"x": out, "routing_weights": out_factors}
        grads = fc.moe_backward(grad_y, saved, out=outs)
    except (ValueError, TypeError):
        pass
    else:
        assert y.shape == grads.x.shape == x.shape
