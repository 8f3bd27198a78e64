"""16-bit dtypes: conversions, the arithmetic of bfloat16, mixed dtypes, float32 gradients.

Other tests run with 16-bit dtypes, too (the fixture `dtype`). Here all 65,536 values are tested.
"""

# ruff: noqa: ARG001 (a test names the fixtures that it runs under)

import itertools

import numpy as np
import pytest
from support import (
    BFLOAT16,
    NAMES,
    NARROW,
    TOLERANCE,
    all_biases,
    in_every_isa,
    make_weights,
    normal,
    same_bits,
    yardsticks,
)

import ffncore as fc
from ffncore import _core, reference

LEAST_NORMAL = 2.0**-126  # of bfloat16, as of float32


@pytest.fixture(params=NARROW, ids=str)
def narrow(request):
    return request.param


def every_value(dtype):
    return np.arange(65536, dtype=np.uint16).view(dtype)


def rank(a):
    """Map numbers to integers in their order: neighbours differ by 1, and both zeros are 0."""
    bits = a.view(np.int16).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFF), bits)


def widened(w):
    return fc.FFNWeights(**{name: a.astype(np.float32) for name, a in w.arrays().items()})


# ---- conversions ---------------------------------------------------------------------------------


def test_every_value_is_packed_and_unpacked(isa, narrow):
    values = every_value(narrow)
    for up in (values.reshape(512, 128), values.reshape(128, 512).T, values[:-1].reshape(257, 255)):
        w = fc.FFNWeights(up=up, down=np.zeros(up.shape[::-1], narrow))
        assert same_bits(fc.pack(w).unpack().up, up)


def test_rounding_to_16_bits(isa, narrow):
    """All float32 neighbours of 16-bit numbers, all ties, and their neighbours."""
    upper = np.arange(65536, dtype=np.uint32) << 16
    lower = (0, 1, 0x0FFF, 0x1000, 0x1001, 0x2FFF, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xEFFF, 0xFFFF)
    numbers = np.concatenate([upper + bits for bits in lower]).view(np.float32)
    halves = every_value(np.float16).astype(np.float32)
    halves = np.unique(halves[np.isfinite(halves)])
    middle = (halves[1:] + halves[:-1]) / 2
    numbers = np.concatenate(
        [numbers, middle, np.nextafter(middle, 9e9), np.nextafter(middle, -9e9)]
    )
    up = np.resize(numbers, (-(-numbers.size // 64), 64))
    with np.errstate(over="ignore", invalid="ignore"):
        expected = up.astype(narrow)
    w = fc.FFNWeights(up=up, down=np.zeros(up.shape[::-1], np.float32))
    p = fc.pack(fc.FFNWeights(up=np.zeros_like(w.up), down=w.down), dtype=narrow)
    # fc.pack refuses what becomes infinite; the kernels round it, as the C ABI does.
    _core.pack(narrow.name, w._core_weights(), p._buffer)
    assert same_bits(p.unpack().up, expected)


@pytest.mark.skipif(not BFLOAT16, reason="ml_dtypes is not installed")
def test_float64_is_rounded_once(isa):
    """Numbers so close to ties that float32 cannot tell, and the last one that is not infinite."""
    ties = (1 + (2 * np.arange(64) + 1) * 2.0**-8) * 2.0 ** np.arange(-120, 120, 4)[:, None]
    beside = ties * (1 + 2.0**-40), ties * (1 - 2.0**-40)
    up = np.concatenate([a * sign for a in (*beside, ties) for sign in (1, -1)])
    spacing = 2.0 ** (np.floor(np.log2(np.abs(up))) - 7)
    expected = np.round(up / spacing) * spacing  # to nearest even
    up[0, 0] = np.nextafter((2 - 2.0**-8) * 2.0**127, 0)
    expected[0, 0] = (2 - 2.0**-7) * 2.0**127
    w = fc.FFNWeights(up=up, down=np.zeros(up.shape[::-1]))
    assert same_bits(fc.pack(w, dtype=BFLOAT16[0]).unpack().up, expected.astype(BFLOAT16[0]))


def test_packed_weights_of_half_the_size(narrow, gated, rng):
    w = make_weights(rng, 70, 130, gated=gated, biases=all_biases(gated), dtype=np.float32)
    p = fc.pack(w, dtype=narrow)
    assert p.dtype == narrow
    assert p.nbytes < 0.6 * fc.pack(w).nbytes
    assert p.nbytes == fc.pack(fc.FFNWeights(**p.unpack().arrays())).nbytes
    for name, a in p.unpack().arrays().items():
        rounded = getattr(w, name) if name.startswith("b_") else getattr(w, name).astype(narrow)
        assert same_bits(a, rounded), name
    again = fc.pack(fc.FFNWeights(**w.arrays()), dtype=narrow, out=p)
    assert again is p
    with pytest.raises(TypeError, match=f"out has dtype {narrow}; expected float32"):
        fc.pack(w, out=p)


@np.errstate(all="ignore")
@pytest.mark.parametrize("name", NAMES)
def test_every_value_through_every_activation(name, narrow):
    """Results are within one rounding of the exact ones, with the same bits for every ISA."""
    values = every_value(narrow)
    one = np.ones_like(values)
    answers = in_every_isa(
        lambda: (
            fc.activation(values, activation=name),
            fc.activation_backward(one, values, activation=name).x,
        )
    )

    wide = values.astype(np.float64)
    if narrow.name == "bfloat16":
        wide = np.where(np.abs(wide) < LEAST_NORMAL, np.copysign(0, wide), wide)
    finite = np.isfinite(wide)
    exact = reference.activation(wide, activation=name)
    slope = reference.activation_backward(np.ones_like(wide), wide, activation=name).x
    for ours, theirs in zip(answers, (exact, slope), strict=True):
        rounded = theirs.astype(np.float32).astype(narrow)
        assert np.isnan(ours[np.isnan(wide)]).all() or (name == "identity" and theirs is slope)
        numbers = finite & ~np.isnan(theirs)
        apart = np.abs(rank(ours) - rank(rounded))[numbers]
        # Derivatives cancel near their zeros: there the last place is that of the terms.
        small = np.abs(ours.astype(np.float64) - theirs)[numbers] < 4e-7
        if narrow.name == "bfloat16":
            small |= np.abs(theirs[numbers]) < 1.01 * LEAST_NORMAL
        assert ((apart <= 1) | small).all()


# ---- the arithmetic ------------------------------------------------------------------------------


def fma(a, b, c):
    """A product of two bfloat16 plus a float32, rounded once: it is almost exact in float64."""
    exact = np.longdouble(a) * np.longdouble(b) + np.longdouble(c)
    result = np.float32(exact)
    return np.float32(np.copysign(0, result)) if abs(result) < LEAST_NORMAL else result


def contract_product(a, b):
    """The sum over k of a[i, k] b[j, k] in the order of csrc/README.md for bfloat16."""
    a, b = a.astype(np.float32), b.astype(np.float32)
    k = a.shape[1]
    out = np.zeros((len(a), len(b)), np.float32)
    for i, j in np.ndindex(out.shape):
        total = None
        for start in range(0, k, 512):
            s = np.float32(0)
            for pair in range(start, min(start + 512, k), 2):
                odd = (a[i, pair + 1], b[j, pair + 1]) if pair + 1 < k else (0, 0)
                s = fma(a[i, pair], b[j, pair], fma(*odd, s))
            total = s if total is None else total + s
        out[i, j] = total
    return out


@pytest.mark.skipif(not BFLOAT16, reason="ml_dtypes is not installed")
@pytest.mark.parametrize("d, f", [(1, 1), (2, 3), (7, 5), (33, 8), (519, 2)])
def test_bfloat16_adds_odd_terms_first(d, f, isa, rng):
    bfloat16 = BFLOAT16[0]
    x, grad_y = normal(rng, 3, d, dtype=bfloat16), normal(rng, 3, d, dtype=bfloat16)
    w = make_weights(rng, d, f, gated=False, dtype=bfloat16)
    h = contract_product(x, w.up).astype(bfloat16)
    y, saved = fc.ffn_forward(x, w, activation="identity")
    assert same_bits(saved.up, h)
    assert same_bits(y, contract_product(h, w.down).astype(bfloat16))
    assert same_bits(fc.ffn(x, fc.pack(w), activation="identity"), y)
    grads = fc.ffn_backward(grad_y, saved)
    dh = contract_product(grad_y, w.down.T).astype(bfloat16)
    assert same_bits(grads.x, contract_product(dh, w.up.T).astype(bfloat16))
    assert same_bits(grads.weights.up, contract_product(dh.T, x.T).astype(bfloat16))
    assert same_bits(grads.weights.down, contract_product(grad_y.T, h.T).astype(bfloat16))


def test_subnormals(isa, narrow):
    """Subnormal inputs and results are zero in bfloat16, but not in float16."""
    values = every_value(narrow)
    exponent = 0x7F80 if narrow.name == "bfloat16" else 0x7C00
    tiny = values[values.view(np.uint16) & exponent == 0]
    expected = np.copysign(narrow.type(0), tiny) if narrow.name == "bfloat16" else tiny
    assert same_bits(fc.activation(tiny, activation="identity"), expected)
    eye = np.eye(1, dtype=narrow)
    w = fc.FFNWeights(up=eye, down=eye)
    for weights in (w, fc.pack(w)):
        y = fc.ffn(tiny[:, None], weights, activation="identity")[:, 0]
        assert (y == expected).all()


# ---- float32 with 16 bits ------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [1, 3, 9, 37, 70, 530])
def test_float32_x_with_narrow_weights_is_exact(tokens, isa, narrow, gated, rng):
    w = make_weights(rng, 67, 130, gated=gated, biases=all_biases(gated), dtype=narrow)
    wide = widened(w)
    x, grad_y = (normal(rng, tokens, 67, dtype=np.float32) for _ in range(2))
    y, saved = fc.ffn_forward(x, wide, activation="gelu")
    grads = fc.ffn_backward(grad_y, saved).arrays()
    for weights in (w, fc.pack(w), fc.pack(wide, dtype=narrow)):
        assert same_bits(fc.ffn(x, weights, activation="gelu"), y)
        y2, saved = fc.ffn_forward(x, weights, activation="gelu")
        assert same_bits(y2, y)
        assert y2.dtype == saved.up.dtype == np.float32
        assert same_bits(fc.ffn_backward(grad_y, saved, needs=("x",)).x, grads["x"])
    _, saved = fc.ffn_forward(x, w, activation="gelu")
    narrow_grads = fc.ffn_backward(grad_y, saved).arrays()
    out = {name: np.empty_like(a) for name, a in grads.items()}
    assert all(
        same_bits(fc.ffn_backward(grad_y, saved, out=out).arrays()[n], grads[n]) for n in out
    )
    for name, a in narrow_grads.items():
        assert a.dtype == (np.float32 if name == "x" else narrow)
        assert same_bits(a, grads[name].astype(a.dtype)), name


@pytest.mark.parametrize("tokens", [1, 37, 70, 1100])
def test_float32_gradients(tokens, isa, narrow, gated, rng, plan):
    """Rounded once they are the 16-bit gradients: sums over tokens are never kept in 16 bits."""
    w = make_weights(rng, 17, 35, gated=gated, biases=all_biases(gated), dtype=narrow)
    x, grad_y = (normal(rng, tokens, 17, dtype=narrow) for _ in range(2))
    for sizes in ((0, 0, 0, -1), (1, 1, 1, 0), (1, 1, 1, 1)):
        plan(*sizes)
        _, saved = fc.ffn_forward(x, w, activation="silu")
        grads = fc.ffn_backward(grad_y, saved).arrays()
        wide = {name: np.empty(a.shape, np.float32) for name, a in grads.items()}
        fc.ffn_backward(grad_y, saved, out=wide)
        for name, a in grads.items():
            assert a.dtype == narrow
            assert same_bits(a, wide[name].astype(narrow)), (name, sizes)
        mixed = {"up": np.empty((35, 17), np.float32)}
        some = fc.ffn_backward(grad_y, saved, out=mixed)
        assert same_bits(mixed["up"], wide["up"])
        assert same_bits(some.weights.down, grads["down"])
        before = {name: a.copy() for name, a in wide.items()}
        fc.ffn_backward(grad_y, saved, out=wide, accumulate=True)
        for name, a in wide.items():
            np.testing.assert_allclose(a, 2 * before[name], rtol=1e-5, atol=1e-5)


def test_many_tokens_are_summed_in_float32(narrow, rng):
    """Long sums are as exact as short ones; kept in 16 bits, they would stop growing."""
    w = make_weights(rng, 5, 7, dtype=narrow)
    x, grad_y = (np.abs(normal(rng, 5000, 5, dtype=narrow)) for _ in range(2))
    _, saved = fc.ffn_forward(x, w, activation="silu")
    exact = reference.ffn_backward(grad_y, x, w, activation="silu")
    _, rough = yardsticks(x, w, grad_y, "silu")
    for name, a in fc.ffn_backward(grad_y, saved, needs=("gate", "up", "down")).arrays().items():
        error, allowed = (np.abs(g.astype(np.float64) - exact[name]) for g in (a, rough[name]))
        assert error.max() <= 1.5 * allowed.max() + 1e-12, name


def test_biases_may_be_float32(isa, narrow, gated, rng):
    w = make_weights(rng, 17, 35, gated=gated, biases=all_biases(gated), dtype=narrow)
    biases = {
        name: normal(rng, len(getattr(w, name)), dtype=np.float32) for name in all_biases(gated)
    }
    w = fc.FFNWeights(**{**w.arrays(), **biases})
    x = normal(rng, 9, 17, dtype=narrow)
    y, saved = fc.ffn_forward(x, w, activation="silu")
    exact = reference.ffn(x, w, activation="silu")
    np.testing.assert_allclose(y.astype(np.float64), exact, atol=4 * TOLERANCE[narrow])
    p = fc.pack(w)
    assert same_bits(fc.ffn(x, p, activation="silu"), y)
    back = p.unpack().arrays()
    assert all(same_bits(back[name], a) for name, a in w.arrays().items())
    grads = fc.ffn_backward(x, saved).weights
    assert all(getattr(grads, name).dtype == a.dtype for name, a in w.arrays().items())


def test_what_does_not_go_together(narrow, rng):
    w = make_weights(rng, 5, 7, dtype=narrow)
    x = normal(rng, 3, 5, dtype=narrow)
    other = next(t for t in (np.dtype(np.float16), *BFLOAT16) if t != narrow or len(NARROW) == 1)
    if other != narrow:
        with pytest.raises(TypeError, match=f"expected {narrow} or float32 to match the weights"):
            fc.ffn(x.astype(other), w, activation="silu")
    with pytest.raises(TypeError, match="x has dtype float64"):
        fc.ffn(x.astype(np.float64), w, activation="silu")
    with pytest.raises(TypeError, match=f"out has dtype float32; expected {narrow} to match x"):
        fc.ffn(x, w, activation="silu", out=np.empty((3, 5), np.float32))
    _, saved = fc.ffn_forward(x, w, activation="silu")
    with pytest.raises(TypeError, match=f"grad_y has dtype float32; expected {narrow}"):
        fc.ffn_backward(x.astype(np.float32), saved)
    with pytest.raises(TypeError, match=f"out.up has dtype float64; expected {narrow} or float32"):
        fc.ffn_backward(x, saved, out={"up": np.empty((7, 5))})
    with pytest.raises(TypeError, match="expected float32 to match the weights"):
        fc.ffn(x, widened(w), activation="silu")


def test_cost(narrow):
    layer = {"d_model": 64, "d_ff": 128}
    assert fc.cost(3, **layer, dtype=narrow).bytes * 2 == fc.cost(3, **layer).bytes
    mixed = fc.cost(3, **layer, dtype=narrow, x_dtype="float32", op="ffn_backward")
    assert mixed.bytes * 2 == fc.cost(3, **layer, op="ffn_backward").bytes
    with pytest.raises(TypeError, match="x_dtype is float64"):
        fc.cost(3, **layer, dtype=narrow, x_dtype="float64")


def test_all_orders_of_strides(isa, narrow, rng):
    """Each way of copying weights, with each tail: rows, columns, neither, odd lengths."""
    for d, f in itertools.product((8, 33), (16, 35)):
        w = make_weights(rng, d, f, dtype=narrow)
        x = normal(rng, 70, d, dtype=narrow)
        y, saved = fc.ffn_forward(x, w, activation="silu")
        grads = fc.ffn_backward(x, saved).arrays()
        for turn in (np.asfortranarray, lambda a: np.repeat(a, 2, axis=1)[:, ::2]):
            turned = fc.FFNWeights(**{name: turn(a) for name, a in w.arrays().items()})
            y2, saved2 = fc.ffn_forward(turn(x), turned, activation="silu")
            assert same_bits(y2, y)
            assert same_bits(fc.ffn(x, fc.pack(turned), activation="silu"), y)
            for name, a in fc.ffn_backward(turn(x), saved2).arrays().items():
                assert same_bits(a, grads[name]), name
