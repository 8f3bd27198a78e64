"""hypothesis: any strides give the bits of a contiguous copy; bad input raises the right errors."""

import numpy as np
import pytest
import support
from support import NAMES, same_bits

import ffncore as fc

pytest.importorskip("hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st

small = st.integers(1, 20)
DTYPES = st.sampled_from(support.DTYPES)


@st.composite
def strided(draw, shape, dtype):
    """An array of this shape with random strides: steps, reversals, orders, zeros, offsets."""
    seed = draw(st.integers(0, 2**32 - 1))
    order = draw(st.permutations(range(len(shape))))
    steps = [draw(st.sampled_from([1, 1, 2, 3, -1, -2, 0])) for _ in shape]
    room_shape = [max(1, n * max(1, abs(s))) + 1 for n, s in zip(shape, steps, strict=True)]
    room = np.random.default_rng(seed).standard_normal([room_shape[i] for i in order])
    room = room.astype(dtype).transpose(np.argsort(order))
    parts = []
    for n, step in zip(shape, steps, strict=True):
        if step == 0:
            parts.append(slice(0, 1))
        elif step > 0:
            parts.append(slice(1, 1 + n * step, step))
        else:
            parts.append(slice(-1, -1 + n * step, step) if n else slice(0, 0))
    view = room[tuple(parts)]
    return np.broadcast_to(view, shape) if 0 in steps else view


@st.composite
def layers(draw):
    dtype = draw(DTYPES)
    d, f = draw(small), draw(small)
    leading = draw(st.lists(st.integers(0, 5), max_size=3))
    gated = draw(st.booleans())
    arrays = {"up": draw(strided((f, d), dtype)), "down": draw(strided((d, f), dtype))}
    if gated:
        arrays["gate"] = draw(strided((f, d), dtype))
    for name, length in (("b_gate", f), ("b_up", f), ("b_down", d)):
        if (gated or name != "b_gate") and draw(st.booleans()):
            arrays[name] = draw(strided((length,), dtype))
    x = draw(strided((*leading, d), dtype))
    grad_y = draw(strided((*leading, d), dtype))
    return x, grad_y, arrays, draw(st.sampled_from(NAMES))


@settings(max_examples=150)
@given(layers())
def test_strides_do_not_matter(layer):
    x, grad_y, arrays, activation = layer
    w = fc.FFNWeights(**arrays)
    copies = fc.FFNWeights(**{name: np.array(a, order="C") for name, a in arrays.items()})
    before = [a.tobytes() for a in (x, grad_y, *arrays.values())]
    y, saved = fc.ffn_forward(x, w, activation=activation)
    grads = fc.ffn_backward(grad_y, saved).arrays()
    y2, saved2 = fc.ffn_forward(np.array(x, order="C"), copies, activation=activation)
    grads2 = fc.ffn_backward(np.array(grad_y, order="C"), saved2).arrays()
    assert same_bits(y, y2)
    assert list(grads) == list(grads2)
    for name in grads:
        assert same_bits(grads[name], grads2[name]), name
    assert same_bits(fc.ffn(x, fc.pack(w), activation=activation), y)
    assert [a.tobytes() for a in (x, grad_y, *arrays.values())] == before


@settings(max_examples=150)
@given(st.data())
def test_out_is_written_and_nothing_beside(data):
    dtype = data.draw(DTYPES)
    d, f = data.draw(small), data.draw(small)
    shape = (*data.draw(st.lists(st.integers(0, 5), max_size=3)), d)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    x = rng.standard_normal(shape).astype(dtype)
    w = fc.FFNWeights(
        up=rng.standard_normal((f, d)).astype(dtype), down=rng.standard_normal((d, f)).astype(dtype)
    )
    steps = [data.draw(st.sampled_from([1, 2, 3])) for _ in shape]
    order = data.draw(st.permutations(range(len(shape))))
    room = np.full([shape[i] * steps[i] for i in order], -7, dtype)
    back = room.transpose(np.argsort(order))
    out = back[tuple(slice(None, None, step) for step in steps)]
    assert out.shape == shape
    assert fc.ffn(x, w, activation="relu", out=out) is out
    assert same_bits(out, fc.ffn(x, w, activation="relu"))
    mask = np.ones(back.shape, bool)
    mask[tuple(slice(None, None, step) for step in steps)] = False
    assert (back[mask] == -7).all()


@settings(max_examples=100)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 3), st.integers(1, 3))
def test_every_overlap_of_out_is_found(first, second, x_step, out_step):
    room = np.ones(200, np.float32)
    x = room[first : first + 12 * x_step : x_step].reshape(3, 4)
    out = room[second : second + 12 * out_step : out_step].reshape(3, 4)
    w = fc.FFNWeights(up=np.ones((2, 4), np.float32), down=np.ones((4, 2), np.float32))
    # Computed for each element, from the addresses.
    places = set(range(first, first + 12 * x_step, x_step))
    overlap = places & set(range(second, second + 12 * out_step, out_step))
    if overlap:
        with pytest.raises(ValueError, match="out overlaps x"):
            fc.ffn(x, w, activation="relu", out=out)
        assert (room == 1).all()
    else:
        fc.ffn(x, w, activation="relu", out=out)
        assert (out == 8).all()


shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
arrays_of_any_kind = st.one_of(
    st.builds(
        lambda shape, dtype: np.ones(shape).astype(dtype),
        shapes,
        st.sampled_from(["f4", "f8", "f2", "i4", "O", ">f4", "c8", "?"]),
    ),
    st.sampled_from([None, 1.0, [1.0], "x", {}]),
)
words = st.sampled_from(["silu", "relu", "gelu_new", "", "x", None, 3, "preactivations", "input"])


@settings(max_examples=300)
@given(st.lists(arrays_of_any_kind, min_size=9, max_size=9), words, words)
def test_anything_else_raises_the_two_errors_alone(arrays, activation, save):
    x, gate, up, down, b_gate, b_up, b_down, grad_y, out = arrays
    try:
        w = fc.FFNWeights(gate=gate, up=up, down=down, b_gate=b_gate, b_up=b_up, b_down=b_down)
        y, saved = fc.ffn_forward(x, w, activation=activation, save=save)
        grads = fc.ffn_backward(grad_y, saved, out={"x": out})
    except (ValueError, TypeError):
        pass
    else:
        assert y.shape == x.shape
        assert grads.x.shape == x.shape
