"""ffn and its passes against the reference: odd sizes, strides, out=, needs, accumulate."""

# ruff: noqa: ARG001 (a test names the fixtures that it runs under)

import itertools

import numpy as np
import pytest
from support import ODD_SIZES, Accuracy, all_biases, make_weights, normal, same_bits

import ffncore as fc
from ffncore import reference
from ffncore.weights import NAMES

# Each size once as the number of tokens, of inputs, of hidden units.
SIZES = [
    *((t, 17, 33) for t in ODD_SIZES),
    *((5, d, 19) for d in ODD_SIZES[1:]),
    *((33, 7, f) for f in ODD_SIZES[1:]),
    *((65, 33, 97), (31, 97, 64), (16, 16, 16), (64, 64, 64), (1, 1, 1)),
]


def gradients(grads):
    """FFNGrads -> arrays by name, as the reference has them."""
    return grads.arrays()


@pytest.mark.parametrize("activation", ["silu", "gelu", "relu"])
def test_odd_sizes(activation, isa, dtype, gated, rng):
    accuracy = Accuracy()
    single = dtype == np.float32
    for t, d, f in SIZES:
        w = make_weights(rng, d, f, gated=gated, biases=all_biases(gated), dtype=dtype)
        x, grad_y = normal(rng, t, d, dtype=dtype), normal(rng, t, d, dtype=dtype)
        where = f"T={t} d={d} f={f}"
        y, saved = fc.ffn_forward(x, w, activation=activation)
        exact = reference.ffn(x, w, activation=activation)
        numpy32 = reference.ffn(x, w, activation=activation, dtype=np.float32) if single else None
        accuracy.add("y", y, exact, numpy32, where)
        grads = gradients(fc.ffn_backward(grad_y, saved))
        exact = reference.ffn_backward(grad_y, x, w, activation=activation)
        numpys = {}
        if single:
            numpys = reference.ffn_backward(grad_y, x, w, activation=activation, dtype=np.float32)
        assert set(grads) == set(exact)
        for name, gradient in grads.items():
            accuracy.add(name, gradient, exact[name], numpys.get(name), where)
    accuracy.check()


def test_biases_each_alone(isa, dtype, gated, rng):
    names = all_biases(gated)
    for count in range(len(names) + 1):
        for biases in itertools.combinations(names, count):
            w = make_weights(rng, 17, 19, gated=gated, biases=biases, dtype=dtype)
            x, grad_y = normal(rng, 9, 17, dtype=dtype), normal(rng, 9, 17, dtype=dtype)
            accuracy = Accuracy()
            exact = reference.ffn(x, w, activation="gelu")
            y, saved = fc.ffn_forward(x, w, activation="gelu")
            accuracy.add("y", y, exact, where=str(biases))
            assert same_bits(fc.ffn(x, fc.pack(w), activation="gelu"), y)
            grads = fc.ffn_backward(grad_y, saved)
            exact = reference.ffn_backward(grad_y, x, w, activation="gelu")
            assert set(gradients(grads)) == set(exact)
            for name, gradient in gradients(grads).items():
                accuracy.add(name, gradient, exact[name], where=str(biases))


def test_long_sums_are_as_good_as_numpys(gated, rng):
    """k up to 28672, float32: blocks of 512 keep the error where pairwise sums have it."""
    for t, d, f in ((6, 28672, 24), (6, 24, 28672)):
        w = make_weights(rng, d, f, gated=gated, dtype=np.float32)
        x = normal(rng, t, d, dtype=np.float32)
        accuracy = Accuracy()
        exact = reference.ffn(x, w, activation="silu")
        numpys = reference.ffn(x, w, activation="silu", dtype=np.float32)
        accuracy.add("y", fc.ffn(x, w, activation="silu"), exact, numpys)
        accuracy.check()


# ---- what is saved -----------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [0, 1, 15, 16, 17, 63, 64, 65, 130])
def test_saved_can_be_looked_at(tokens, isa, dtype, gated, rng):
    w = make_weights(rng, 7, 19, gated=gated, biases=all_biases(gated), dtype=dtype)
    x = normal(rng, tokens, 7, dtype=dtype)
    _, saved = fc.ffn_forward(x, w, activation="silu")
    gate, up = reference.preactivations(x, w)
    allowed = 1e-5 if dtype == np.float32 else 1e-13
    np.testing.assert_allclose(saved.up, up, rtol=allowed, atol=allowed)
    if gated:
        np.testing.assert_allclose(saved.gate, gate, rtol=allowed, atol=allowed)
    else:
        assert saved.gate is None
    assert saved.x is x
    assert saved.weights is w
    assert saved.activation == fc.Activation("silu")
    assert saved.nbytes >= (1 + gated) * tokens * 19 * dtype.itemsize
    with pytest.raises(AttributeError):
        saved.x = None


def test_save_input_keeps_references_alone(isa, dtype, gated, rng):
    w = make_weights(rng, 17, 33, gated=gated, dtype=dtype)
    x, grad_y = normal(rng, 70, 17, dtype=dtype), normal(rng, 70, 17, dtype=dtype)
    y, saved = fc.ffn_forward(x, w, activation="gelu")
    y_input, light = fc.ffn_forward(x, w, activation="gelu", save="input")
    assert (light.nbytes, light.gate, light.up, light.save) == (0, None, None, "input")
    assert same_bits(y, y_input)
    full, again = (gradients(fc.ffn_backward(grad_y, s)) for s in (saved, light))
    assert all(same_bits(full[name], again[name]) for name in full)


def test_backward_can_run_twice(isa, rng):
    w = make_weights(rng, 5, 7)
    x = normal(rng, 4, 5)
    y, saved = fc.ffn_forward(x, w, activation="silu")
    first, second = (gradients(fc.ffn_backward(y, saved)) for _ in range(2))
    assert all(same_bits(first[name], second[name]) for name in first)


def test_xielu_parameters(isa, dtype, gated, rng):
    w = make_weights(rng, 17, 70, gated=gated, dtype=dtype)
    x, grad_y = normal(rng, 70, 17, dtype=dtype), normal(rng, 70, 17, dtype=dtype)
    act = fc.Activation("xielu", alpha_p=0.3, alpha_n=-0.4, beta=0.4, eps=-0.3)
    exact = reference.ffn_backward(grad_y, x, w, activation=act)
    for save in ("preactivations", "input"):
        _, saved = fc.ffn_forward(x, w, activation=act, save=save)
        numbers = fc.ffn_backward(grad_y, saved).activation
        allowed = 1e-4 if dtype == np.float32 else 1e-12
        assert numbers.alpha_p == pytest.approx(exact["alpha_p"], rel=allowed)
        assert numbers.alpha_n == pytest.approx(exact["alpha_n"], rel=allowed)
        only = fc.ffn_backward(grad_y, saved, needs=("activation",))
        assert only.activation == numbers
        assert only.x is None
        assert only.weights is None
        twice = fc.ffn_backward(grad_y, saved, needs=("activation",), out=only, accumulate=True)
        assert twice.activation.alpha_p == 2 * numbers.alpha_p


# ---- shapes and strides ------------------------------------------------------------------------


def strided_copies(array):
    """The same numbers behind other strides: C, F, sliced, reversed."""
    yield np.asfortranarray(array)
    room = np.full(tuple(2 * n + 1 for n in array.shape), np.nan, array.dtype)
    part = room[tuple(slice(1, None, 2) for _ in array.shape)]
    part[...] = array
    yield part
    backwards = tuple(slice(None, None, -1) for _ in array.shape)
    yield np.array(array[backwards])[backwards]


def test_strides_of_inputs(isa, dtype, gated, rng):
    w = make_weights(rng, 17, 35, gated=gated, biases=all_biases(gated), dtype=dtype)
    x, grad_y = normal(rng, 37, 17, dtype=dtype), normal(rng, 37, 17, dtype=dtype)
    y, saved = fc.ffn_forward(x, w, activation="silu")
    grads = gradients(fc.ffn_backward(grad_y, saved))
    arrays = {name: list(strided_copies(a)) for name, a in w.arrays().items()}
    for i, (x2, grad2) in enumerate(zip(strided_copies(x), strided_copies(grad_y), strict=True)):
        w2 = fc.FFNWeights(**{name: copies[i] for name, copies in arrays.items()})
        for tokens in (1, 3, 37):
            assert same_bits(fc.ffn(x2[:tokens], w2, activation="silu"), y[:tokens])
        y2, saved2 = fc.ffn_forward(x2, w2, activation="silu")
        assert same_bits(y2, y)
        for name, gradient in gradients(fc.ffn_backward(grad2, saved2)).items():
            assert same_bits(gradient, grads[name]), name


def test_zero_strides(isa, dtype, rng):
    """What autograd sends for y.sum(): one number that stands for a matrix."""
    w = make_weights(rng, 17, 35, biases=all_biases(True), dtype=dtype)
    x = normal(rng, 37, 17, dtype=dtype)
    _, saved = fc.ffn_forward(x, w, activation="silu")
    one = np.broadcast_to(np.ones((), dtype), x.shape)
    grads = gradients(fc.ffn_backward(one, saved))
    again = gradients(fc.ffn_backward(np.ones_like(x), saved))
    assert all(same_bits(grads[name], again[name]) for name in grads)
    same_rows = np.broadcast_to(x[0], x.shape)
    y = fc.ffn(same_rows, w, activation="silu")
    assert same_bits(y, fc.ffn(same_rows.copy(), w, activation="silu"))
    flat = fc.FFNWeights(up=np.broadcast_to(w.up[0], w.up.shape), down=w.down)
    copied = fc.FFNWeights(up=flat.up.copy(), down=w.down)
    assert same_bits(fc.ffn(x, flat, activation="relu"), fc.ffn(x, copied, activation="relu"))
    assert same_bits(fc.pack(flat)._buffer.view(dtype), fc.pack(copied)._buffer.view(dtype))


def test_leading_dimensions(isa, dtype, gated, rng):
    w = make_weights(rng, 7, 19, gated=gated, dtype=dtype)
    x, grad_y = normal(rng, 24, 7, dtype=dtype), normal(rng, 24, 7, dtype=dtype)
    y, saved = fc.ffn_forward(x, w, activation="silu")
    grads = gradients(fc.ffn_backward(grad_y, saved))
    for shape in ((24, 7), (4, 6, 7), (2, 3, 4, 7), (1, 24, 1, 7)):
        x2, grad2 = x.reshape(shape), grad_y.reshape(shape)
        assert same_bits(fc.ffn(x2, w, activation="silu"), y.reshape(shape))
        y2, saved2 = fc.ffn_forward(x2, w, activation="silu")
        assert same_bits(y2, y.reshape(shape))
        assert saved2.up.shape == (*shape[:-1], 19)
        for name, gradient in gradients(fc.ffn_backward(grad2, saved2)).items():
            expected = grads[name].reshape(shape) if name == "x" else grads[name]
            assert same_bits(gradient, expected), name


def test_one_token_without_a_leading_dimension(isa, dtype, rng):
    w = make_weights(rng, 7, 19, dtype=dtype)
    x = normal(rng, 7, dtype=dtype)
    y, saved = fc.ffn_forward(x, w, activation="silu")
    assert y.shape == (7,)
    assert same_bits(y, fc.ffn(x[None], w, activation="silu")[0])
    assert fc.ffn_backward(x, saved).x.shape == (7,)
    assert saved.gate.shape == (19,)


def test_leading_dimensions_that_cannot_be_merged(isa, dtype, rng):
    w = make_weights(rng, 7, 19, dtype=dtype)
    x = normal(rng, 4, 6, 7, dtype=dtype)
    y, saved = fc.ffn_forward(x, w, activation="silu")
    turned = np.array(x.transpose(1, 0, 2)).transpose(1, 0, 2)
    assert same_bits(fc.ffn(turned, w, activation="silu"), y)
    _, saved2 = fc.ffn_forward(turned, w, activation="silu")
    grads, grads2 = fc.ffn_backward(x, saved), fc.ffn_backward(turned, saved2)
    assert same_bits(grads.x, grads2.x)
    assert same_bits(grads.weights.up, grads2.weights.up)


def test_zero_tokens(isa, dtype, gated, rng):
    w = make_weights(rng, 7, 19, gated=gated, biases=all_biases(gated), dtype=dtype)
    for shape in ((0, 7), (3, 0, 7), (0, 3, 7)):
        x = np.empty(shape, dtype)
        y, saved = fc.ffn_forward(x, w, activation="silu")
        assert y.shape == shape
        grads = fc.ffn_backward(y, saved)
        assert grads.x.shape == shape
        assert all(not a.any() for a in grads.weights.arrays().values())
        kept = {"up": np.ones((19, 7), dtype)}
        fc.ffn_backward(y, saved, needs=("up",), out=kept, accumulate=True)
        assert (kept["up"] == 1).all()


def test_read_only_and_unaligned_inputs(isa, dtype, rng):
    w = make_weights(rng, 7, 19, dtype=dtype)
    x = normal(rng, 5, 7, dtype=dtype)
    y, saved = fc.ffn_forward(x, w, activation="silu")
    frozen = x.copy()
    frozen.flags.writeable = False
    locked = {name: a.copy() for name, a in w.arrays().items()}
    for a in locked.values():
        a.flags.writeable = False
    assert same_bits(fc.ffn(frozen, fc.FFNWeights(**locked), activation="silu"), y)

    def unaligned(a):
        room = np.zeros(a.shape, np.dtype([("pad", "u1"), ("value", a.dtype)]))
        room["value"] = a
        return room["value"]

    assert not unaligned(x).flags.aligned
    packed_fields = fc.FFNWeights(**{name: unaligned(a) for name, a in w.arrays().items()})
    assert same_bits(fc.ffn(unaligned(x), packed_fields, activation="silu"), y)
    assert same_bits(fc.ffn(x, fc.pack(packed_fields), activation="silu"), y)
    _, saved2 = fc.ffn_forward(unaligned(x), packed_fields, activation="silu")
    grads, grads2 = fc.ffn_backward(x, saved), fc.ffn_backward(unaligned(x), saved2)
    assert same_bits(grads.weights.gate, grads2.weights.gate)
    packed_fields.up[...] *= 2  # the weights are looked at anew in each call
    w.up[...] *= 2
    assert same_bits(fc.ffn(x, packed_fields, activation="silu"), fc.ffn(x, w, activation="silu"))


# ---- out=, needs=, accumulate= -----------------------------------------------------------------


def test_out_of_any_strides(isa, dtype, rng):
    w = make_weights(rng, 8, 19, biases=all_biases(True), dtype=dtype)
    x = normal(rng, 6, 4, 8, dtype=dtype)
    expected, saved = fc.ffn_forward(x, w, activation="silu")
    grad_x = fc.ffn_backward(x, saved).x
    room = np.empty((8, 12, 8, 2), dtype)
    outs = (
        room[:6, :4, :, 0],
        room[1:7, 10:2:-2, ::-1, 1],
        room[:, :4, :6, 1].transpose(2, 1, 0),
        np.empty((4, 6, 8), dtype).transpose(1, 0, 2),
    )
    for out in outs:
        room[...] = -7
        assert fc.ffn(x, w, activation="silu", out=out) is out
        assert same_bits(out, expected)
        if np.shares_memory(out, room):
            assert (room == -7).sum() == room.size - out.size
        out[...] = 0
        assert fc.ffn_forward(x, w, activation="silu", out=out)[0] is out
        assert same_bits(out, expected)
        filled = fc.ffn_backward(x, saved, needs=("x",), out={"x": out})
        assert filled.x is out
        assert same_bits(out, grad_x)
        out[...] = 1
        fc.ffn_backward(x, saved, needs=("x",), out={"x": out}, accumulate=True)
        np.testing.assert_allclose(out, 1 + grad_x, rtol=1e-5, atol=1e-5)


def test_out_that_has_to_be_written_in_blocks(rng, monkeypatch):
    w = make_weights(rng, 3, 5)
    x = normal(rng, 7, 4, 2, 3)
    expected = fc.ffn(x, w, activation="silu")
    for nbytes in (1, 3 * 8, 10 * 3 * 8, 10**6):
        monkeypatch.setattr("ffncore.functional.BLOCK_BYTES", nbytes)
        out = np.empty((2, 4, 7, 3)).transpose(2, 1, 0, 3)
        fc.ffn(x, w, activation="silu", out=out)
        assert same_bits(out, expected)


def test_needs_computes_what_is_asked_for(isa, dtype, gated, rng):
    w = make_weights(rng, 17, 35, gated=gated, biases=all_biases(gated), dtype=dtype)
    x, grad_y = normal(rng, 37, 17, dtype=dtype), normal(rng, 37, 17, dtype=dtype)
    for save in ("preactivations", "input"):
        _, saved = fc.ffn_forward(x, w, activation="silu", save=save)
        everything = gradients(fc.ffn_backward(grad_y, saved))
        names = list(everything)
        assert names == ["x", *(n for n in NAMES if n in w.arrays())]
        some = [(n,) for n in names] + [("x", "down"), ("up", "b_down"), ("b_up", "down", "x"), ()]
        for needs in some:
            grads = gradients(fc.ffn_backward(grad_y, saved, needs=needs))
            assert set(grads) == set(needs)
            assert all(same_bits(grads[name], everything[name]) for name in needs), needs


def test_needs_of_a_partial_answer(rng):
    w = make_weights(rng, 3, 4)
    x = normal(rng, 5, 3)
    _, saved = fc.ffn_forward(x, w, activation="silu")
    grads = fc.ffn_backward(x, saved, needs=("up",))
    assert grads.x is None
    assert grads.weights.gate is None
    assert grads.weights.up.shape == (4, 3)
    everything = fc.ffn_backward(x, saved).weights
    assert isinstance(everything, fc.FFNWeights)
    assert fc.pack(everything).shape == (4, 3)
    assert fc.ffn_backward(x, saved, needs=iter(["x", "x"])).weights is None


def test_out_and_accumulate_of_gradients(isa, dtype, gated, rng):
    w = make_weights(rng, 17, 35, gated=gated, biases=all_biases(gated), dtype=dtype)
    x, grad_y = normal(rng, 37, 17, dtype=dtype), normal(rng, 37, 17, dtype=dtype)
    _, saved = fc.ffn_forward(x, w, activation="silu")
    fresh = fc.ffn_backward(grad_y, saved)
    for turned in (False, True):

        def room(a, turned=turned):
            return np.full(a.shape[::-1], np.nan, dtype).T if turned else np.full_like(a, np.nan)

        out = {name: room(a) for name, a in gradients(fresh).items()}
        filled = fc.ffn_backward(grad_y, saved, out=out)
        for name, a in gradients(filled).items():
            assert a is out[name]
            assert same_bits(a, gradients(fresh)[name]), name
        again = fc.ffn_backward(grad_y, saved, out=filled, accumulate=True)
        allowed = 1e-5 if dtype == np.float32 else 1e-13
        for name, a in gradients(again).items():
            assert a is out[name]
            np.testing.assert_allclose(a, 2 * gradients(fresh)[name], rtol=allowed, atol=allowed)


def test_out_may_hold_some_of_the_gradients(rng):
    w = make_weights(rng, 3, 4)
    x = normal(rng, 5, 3)
    _, saved = fc.ffn_forward(x, w, activation="silu")
    fresh = gradients(fc.ffn_backward(x, saved))
    up = np.ones((4, 3))
    grads = gradients(fc.ffn_backward(x, saved, out={"up": up, "x": None}, accumulate=True))
    np.testing.assert_allclose(up, 1 + fresh["up"], rtol=1e-13)
    assert all(same_bits(grads[n] + 0.0, fresh[n] + 0.0) for n in fresh if n != "up")


def test_gradient_of_a_fused_array_lands_in_its_halves(rng):
    fused, down = normal(rng, 8, 3), normal(rng, 3, 4)
    x = normal(rng, 5, 3)
    for layout in ("concat", "interleaved"):
        w = fc.FFNWeights.from_gate_up(fused, down, layout=layout)
        _, saved = fc.ffn_forward(x, w, activation="silu")
        room = np.empty_like(fused)
        mirror = fc.FFNWeights.from_gate_up(room, np.empty_like(down), layout=layout)
        out = fc.FFNGrads(weights=mirror)
        grads = fc.ffn_backward(x, saved, needs=("gate", "up", "down"), out=out)
        fresh = fc.ffn_backward(x, saved)
        assert np.shares_memory(grads.weights.gate, room)
        assert same_bits(mirror.gate, fresh.weights.gate)
        assert same_bits(mirror.up, fresh.weights.up)


def test_packed_weights_give_the_gradient_of_x(isa, dtype, gated, rng):
    w = make_weights(rng, 17, 35, gated=gated, biases=all_biases(gated), dtype=dtype)
    x, grad_y = normal(rng, 37, 17, dtype=dtype), normal(rng, 37, 17, dtype=dtype)
    _, saved = fc.ffn_forward(x, w, activation="silu")
    expected = fc.ffn_backward(grad_y, saved).x
    for save in ("preactivations", "input"):
        _, packed = fc.ffn_forward(x, fc.pack(w), activation="silu", save=save)
        grads = fc.ffn_backward(grad_y, packed)
        assert grads.weights is None
        assert same_bits(grads.x, expected)


def test_subclasses_of_arrays_are_arrays(rng, tmp_path):
    w = make_weights(rng, 3, 4)
    x = np.memmap(tmp_path / "x", np.float64, "w+", shape=(5, 3))
    x[...] = 1
    y = fc.ffn(x, w, activation="silu")
    assert type(y) is np.ndarray
    assert same_bits(y, fc.ffn(np.ones((5, 3)), w, activation="silu"))
