"""The elementwise functions against the reference, in every instruction set."""

# ruff: noqa: ARG001 (a test names the fixtures that it runs under)

import numpy as np
import pytest
from support import (
    CASE_IDS,
    CASES,
    NAMES,
    ODD_SIZES,
    TOLERANCE,
    Accuracy,
    in_every_isa,
    normal,
    same_bits,
)

import ffncore as fc
from ffncore import reference

INF = np.inf


@pytest.mark.parametrize("gated, act", CASES, ids=CASE_IDS)
def test_against_the_reference(gated, act, isa, dtype, rng):
    accuracy = Accuracy()
    for n in ODD_SIZES:
        x, up, grad = (2 * normal(rng, 3, n, dtype=dtype) for _ in range(3))
        up = up if gated else None
        where = f"3 x {n}"
        exact = reference.activation(x, up, activation=act)
        accuracy.add("h", fc.activation(x, up, activation=act), exact, where=where)
        exact = reference.activation_backward(grad, x, up, activation=act)
        grads = fc.activation_backward(grad, x, up, activation=act)
        accuracy.add("grad x", grads.x, exact.x, where=where)
        if gated:
            accuracy.add("grad up", grads.up, exact.up, where=where)
        else:
            assert grads.up is None
        if act.name == "xielu":
            wide_grad, wide_x = grad.astype(np.float64), x.astype(np.float64)
            terms = np.abs(wide_grad * wide_x**2).sum()  # 16 bits: summed in float32
            allowed = min(1e-5, TOLERANCE[dtype]) * (1 + terms)
            assert abs(grads.activation.alpha_p - exact.alpha_p) <= allowed
            assert abs(grads.activation.alpha_n - exact.alpha_n) <= allowed
        else:
            assert grads.activation is None


def ulps(result, exact):
    """The error in units in the last place of float32 at the exact value."""
    spacing = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
    return np.abs(result.astype(np.float64) - exact) / spacing


# The largest errors over a dense sweep of all finite float32 numbers; the first three are promised.
ULPS = {"silu": 3, "gelu": 4, "tanh": 2, "sigmoid": 3, "quick_gelu": 4}


@pytest.mark.parametrize("name", ULPS)
def test_error_in_units_of_the_last_place(name, isa):
    step = 20011 if isa != "scalar" else 200_003  # a prime, so that all low bits occur
    bits = np.arange(0, 2**32, step, dtype=np.uint64).astype(np.uint32)
    x = bits.view(np.float32)
    # Only where the result is not subnormal or zero, because these have no digits to spare.
    x = x[np.isfinite(x) & (x > -80)]
    exact = reference.activation(x, activation=name)
    normal_range = (np.abs(exact) > np.finfo(np.float32).tiny) & (np.abs(exact) < 3.4e38)
    error = ulps(fc.activation(x, activation=name), exact)[normal_range]
    assert error.max() <= ULPS[name]


@pytest.mark.parametrize("name", NAMES)
def test_the_far_negative_tail_is_the_same_in_every_isa(name, dtype):
    v = np.linspace(-110, 90, 3001).astype(dtype)
    grad = np.ones_like(v)
    in_every_isa(
        lambda: (
            fc.activation(v, activation=name),
            fc.activation_backward(grad, v, activation=name).x,
        )
    )


@pytest.mark.parametrize("name", NAMES)
def test_nan_and_infinity(name, isa, dtype):
    v = np.array([np.nan, INF, -INF, 0.0, -0.0], dtype)
    h = fc.activation(v, activation=name)
    derivative = fc.activation_backward(np.ones_like(v), v, activation=name).x
    assert np.isnan(h[0])
    assert np.isnan(derivative[0]) or name == "identity"
    saturating = {"sigmoid": 1.0, "tanh": 1.0}
    assert float(h[1]) == saturating.get(name, INF)
    exact = reference.activation(v[3:], activation=name)
    least = 2.0**-24 if dtype == np.float16 else 1e-30  # the last place of subnormal numbers
    np.testing.assert_allclose(h[3:].astype(np.float64), exact, rtol=TOLERANCE[dtype], atol=least)
    with fc.using_isa("scalar"):
        assert same_bits(h, fc.activation(v, activation=name))
        scalar = fc.activation_backward(np.ones_like(v), v, activation=name).x
        assert same_bits(derivative, scalar)


@pytest.mark.parametrize("clamp", ["pre", "post"])
def test_nan_passes_the_clamp(clamp, isa, dtype):
    act = fc.Activation("silu", limit=1.0, clamp=clamp)
    nan, one = np.full(3, np.nan, dtype), np.ones(3, dtype)
    assert np.isnan(fc.activation(nan, one, activation=act)).all()
    assert np.isnan(fc.activation(one, nan, activation=act)).all()


@pytest.mark.parametrize("gated, act", CASES, ids=CASE_IDS)
def test_nan_gives_the_gradients_that_the_reference_gives(gated, act, isa, dtype):
    """NaN in every operand and every lane, among numbers that the options clamp or do not clamp."""
    values = np.array([np.nan, -5, -0.3, 0, 0.2, 0.6, 4], dtype)
    grad, x, up = (np.ravel(a).copy() for a in np.meshgrid(values, values, values))
    up = up if gated else None
    exact = reference.activation_backward(grad, x, up, activation=act)
    grads = fc.activation_backward(grad, x, up, activation=act)
    assert np.array_equal(np.isnan(grads.x), np.isnan(exact.x))
    assert act.name == "identity" or np.isnan(grads.x[np.isnan(x) & (grad != 0)]).all()
    if gated:
        assert np.array_equal(np.isnan(grads.up), np.isnan(exact.up))
        kept = np.isnan(up) & ~np.isnan(grad * x)
        if (
            act.up_softcap is None
        ):  # a NaN in up does not exceed the limit, so that the derivative of the clamp is 1
            one = fc.activation_backward(grad, x, np.zeros_like(up), activation=act)
            assert same_bits(grads.up[kept], one.up[kept])
    with fc.using_isa("scalar"):
        scalar = fc.activation_backward(grad, x, up, activation=act)
        assert same_bits(grads.x, scalar.x)
        assert not gated or same_bits(grads.up, scalar.up)


def test_a_clamp_passes_the_gradient_at_the_limit_itself(isa, dtype):
    act = fc.Activation("identity", limit=1.0)
    gate, up = (np.array(v, dtype) for v in ([0.5, 1.0, 1.5, -9.0], [-1.0, 1.0, 1.5, -1.5]))
    grads = fc.activation_backward(np.ones(4, dtype), gate, up, activation=act)
    np.testing.assert_array_equal(grads.x, [-1, 1, 0, -1])
    np.testing.assert_array_equal(grads.up, [0.5, 1, 0, 0])


def test_kinks_have_the_derivatives_that_the_reference_says(isa, dtype):
    v = np.array([-3, -0.25, 0, 3], dtype)
    kinked = ("relu", "relu2", "leaky_relu", "hardswish", fc.Activation("xielu", eps=-0.25))
    for act in kinked:
        grads = fc.activation_backward(np.ones_like(v), v, activation=act)
        exact = reference.activation_backward(np.ones_like(v), v, activation=act)
        close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
        np.testing.assert_allclose(grads.x.astype(np.float64), exact.x, **close)


# ---- shapes, strides, out= ---------------------------------------------------------------------


def test_shapes_and_strides(isa, dtype, rng):
    base = normal(rng, 6, 7, 8, dtype=dtype)
    views = [
        *(base, base[0, 0], base[0, 0, 0, ...], base.T, base[::-1, ::2, ::-3], base[:, 0:0]),
        *(np.broadcast_to(base[:1, :, :1], base.shape), base.reshape(-1), base[3, 2, 1:2]),
        np.array(0.5, dtype),
    ]
    for x in views:
        contiguous = np.array(x, order="C")
        expected = fc.activation(contiguous, activation="gelu")
        assert expected.shape == x.shape
        result = fc.activation(x, activation="gelu")
        assert isinstance(result, np.ndarray)
        assert same_bits(result, expected)
        grads = fc.activation_backward(x, x, x, activation="silu")
        again = fc.activation_backward(contiguous, contiguous, contiguous, activation="silu")
        assert same_bits(grads.x, again.x)
        assert same_bits(grads.up, again.up)


def test_out_of_any_strides(isa, dtype, rng):
    x, up = normal(rng, 6, 4, 8, dtype=dtype), normal(rng, 6, 4, 8, dtype=dtype)
    expected = fc.activation(x, up, activation="silu")
    grads = fc.activation_backward(x, x, up, activation="silu")
    room = np.full((8, 12, 8, 2), -7, dtype)
    for out in (
        room[:6, :4, :, 0],
        room[1:7, 10:2:-2, ::-1, 1],
        room[:, :4, :6, 1].transpose(2, 1, 0),
    ):
        room[...] = -7
        assert fc.activation(x, up, activation="silu", out=out) is out
        assert same_bits(out, expected)
        assert (room == -7).sum() == room.size - out.size
        other = np.empty_like(x)
        filled = fc.activation_backward(x, x, up, activation="silu", out=(out, other))
        assert filled.x is out
        assert filled.up is other
        assert same_bits(out, grads.x)
        assert same_bits(other, grads.up)


def test_bits_do_not_depend_on_neighbours(isa, dtype, rng):
    x, up = normal(rng, 37, 41, dtype=dtype), normal(rng, 37, 41, dtype=dtype)
    act = fc.Activation("silu", limit=0.8, up_offset=1.0)
    together = fc.activation(x, up, activation=act)
    for i, j in ((0, 0), (36, 40), (5, 17), (20, 31)):
        alone = fc.activation(x[i, j : j + 1], up[i, j : j + 1], activation=act)
        assert same_bits(alone, together[i, j : j + 1])
