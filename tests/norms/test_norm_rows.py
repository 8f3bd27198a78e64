"""fc.rms_norm, fc.layer_norm and their backward passes against the reference, on every level."""

import numpy as np
import pytest
from support import (
    DTYPES,
    NARROW,
    ODD_SIZES,
    complex_step,
    debug_plan,
    in_every_isa,
    normal,
    same_bits,
    strided_copies,
    unaligned,
)

import ffncore as fc
from ffncore import _core, reference
from ffncore.norms.norm import EPS, KINDS, Norm
from ffncore.norms.rows import normed, normed_backward

# A few roundings of numbers near 1; sums over rows have more.
BOUND = {4: 4e-6, 8: 1e-13}


def make(rng, kind, d, dtype, gain_dtype=None, offset=0.0):
    own = gain_dtype or dtype
    bias = normal(rng, d, dtype=own) if kind == "layer" else None
    return Norm(kind, normal(rng, d, dtype=own), bias, None, offset)


def exact(x, norm):
    gain, bias = norm.gain, norm.bias
    return reference.norm(x, norm.kind, gain, bias, eps=norm.eps, gain_offset=norm.gain_offset)


def exact_backward(grad, x, norm):
    return reference.norm_backward(
        grad, x, norm.kind, norm.gain, eps=norm.eps, gain_offset=norm.gain_offset
    )


def close(found, wanted, rows=1):
    """Equal up to rounding: for 16 bits, one rounding of the result, beside float32's."""
    wanted = np.asarray(wanted, np.float64)
    size = np.abs(wanted).max(initial=1)
    if found.dtype.itemsize == 2:
        unit = 2.0**-8 if found.dtype.name == "bfloat16" else 2.0**-11
        bound = 1.01 * unit * np.abs(wanted) + 1e-5 * size
    else:
        bound = BOUND[found.dtype.itemsize] * max(1, rows) ** 0.5 * size
    assert np.all(np.abs(found.astype(np.float64) - wanted) <= bound)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_odd_sizes(kind, dtype, rng):
    for d in [*ODD_SIZES[1:], 255, 257, 1031]:
        norm = make(rng, kind, d, dtype, offset=0.5)
        x, grad = normal(rng, 5, d, dtype=dtype), normal(rng, 5, d, dtype=dtype)
        y, *grads = in_every_isa(
            lambda x=x, grad=grad, norm=norm: (
                normed(x, norm),
                *normed_backward(grad, x, norm).arrays().values(),
            )
        )
        # With one element a LayerNorm's variance is 0, and u is exactly 0.
        close(y, exact(x, norm))
        for found, name in zip(grads, ("x", "gain", "bias"), strict=False):
            if d > 1:
                close(found, exact_backward(grad, x, norm)[name], rows=5)


@pytest.mark.parametrize("rows", [0, 1, 15, 16, 17, 127 * 16 + 1, 2 * 128 * 16 + 3])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_and_threads(kind, rows, rng):
    x, grad = normal(rng, rows, 37, dtype="f4"), normal(rng, rows, 37, dtype="f4")
    norm = make(rng, kind, 37, "f4")
    y, grads = normed(x, norm), normed_backward(grad, x, norm)
    close(y, exact(x, norm))
    for name, found in grads.arrays().items():
        close(found, exact_backward(grad, x, norm)[name], rows=max(1, rows))
    debug_plan(0, 0)
    try:
        for threads in (1, 2, 3):
            with fc.num_threads(threads):
                assert same_bits(normed(x, norm), y)
                again = normed_backward(grad, x, norm)
            for name, found in again.arrays().items():
                assert same_bits(found, grads.arrays()[name])
    finally:
        _core.debug_plan()
    # A row has the same bits alone.
    if rows:
        assert same_bits(normed(x[-1:], norm), y[-1:])


@pytest.mark.parametrize("kind", KINDS)
def test_long_groups_sum_in_blocks(kind, rng):
    """More rows than 128 groups of 512, so that a group has several blocks."""
    rows = 128 * 512 + 700
    x, grad = normal(rng, rows, 3, dtype="f4"), np.ones((rows, 3), "f4")
    norm = make(rng, kind, 3, "f4")
    found = normed_backward(grad, x, norm)
    wanted = exact_backward(grad, x, norm)
    np.testing.assert_allclose(found.gain, wanted["gain"], atol=2e-7 * rows, rtol=0)
    if found.bias is not None:
        np.testing.assert_array_equal(found.bias, rows)


def test_the_public_functions(rng):
    x, grad = normal(rng, 2, 3, 8), normal(rng, 2, 3, 8)
    gain, bias = normal(rng, 8), normal(rng, 8)
    rms, layer = Norm("rms", gain, None, 0.1, 1), Norm("layer", gain, bias, 0.2, 1)
    assert same_bits(fc.rms_norm(x, gain, 0.1, 1), normed(x, rms))
    assert same_bits(fc.layer_norm(x, gain, bias, 0.2, 1), normed(x, layer))
    found = fc.rms_norm_backward(grad, x, gain, 0.1, 1)
    assert same_bits(found.x, normed_backward(grad, x, rms).x)
    assert found.bias is None
    found = fc.layer_norm_backward(grad, x, gain, bias, 0.2, 1)
    assert same_bits(found.bias, normed_backward(grad, x, layer).bias)
    assert repr(found) == "NormGrads(x=(2, 3, 8), gain=(8,), bias=(8,))"
    assert fc.layer_norm_backward(grad, x, None).arrays().keys() == {"x"}


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_derivatives(kind, rng):
    x, gain, bias, grad = (normal(rng, *shape) for shape in ((4, 7), (7,), (7,), (4, 7)))
    options = {"eps": 1e-3, "gain_offset": 0.5}

    def loss(x, gain, bias):
        y = reference.norm(x, kind, gain, bias, **options, dtype=np.complex128)
        return (y * grad).sum()

    found = reference.norm_backward(grad, x, kind, gain, **options)
    for name, moved in (
        ("x", complex_step(lambda a: loss(a, gain, bias), x)),
        ("gain", complex_step(lambda a: loss(x, a, bias), gain)),
        ("bias", complex_step(lambda a: loss(x, gain, a), bias)),
    ):
        np.testing.assert_allclose(found[name], moved, rtol=1e-12, atol=1e-12)
    norm = Norm(kind, gain, bias, **options)
    ours = normed_backward(grad, x, norm)
    step, differences = 1e-5, np.empty(x.shape)
    for index in np.ndindex(x.shape):
        ends = []
        for sign in (1, -1):
            moved = x.copy()
            moved[index] += sign * step
            ends.append((normed(moved, norm) * grad).sum())
        differences[index] = (ends[0] - ends[1]) / (2 * step)
    np.testing.assert_allclose(ours.x, differences, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_strides_and_out(kind, dtype, rng):
    x, grad = normal(rng, 3, 5, 19, dtype=dtype), normal(rng, 3, 5, 19, dtype=dtype)
    norm = make(rng, kind, 19, dtype)
    y, grads = normed(x, norm), normed_backward(grad, x, norm)
    grads_of_y = [*strided_copies(grad), grad]
    for other, dy in zip([*strided_copies(x), unaligned(x)], grads_of_y, strict=True):
        out, dx = np.empty_like(other), np.zeros((19, 5, 3), dtype).T
        if out.flags.aligned:
            assert normed(other, norm, out) is out
            assert same_bits(out, y)
        assert same_bits(normed(other, norm), y)
        found = normed_backward(dy, other, norm, dx)
        assert found.x is dx
        for name, array in found.arrays().items():
            assert same_bits(array, grads.arrays()[name])
    reversed_norm = Norm(kind, norm.gain[::-1].copy()[::-1], norm.bias, norm.eps)
    assert same_bits(normed(x, reversed_norm), y)


@pytest.mark.parametrize("narrow", NARROW, ids=str)
def test_mixed_dtypes(narrow, rng):
    x, grad = normal(rng, 6, 33, dtype=narrow), normal(rng, 6, 33, dtype=narrow)
    wide = make(rng, "layer", 33, narrow, gain_dtype=np.float32)
    y, *grads = in_every_isa(
        lambda: (normed(x, wide), *normed_backward(grad, x, wide).arrays().values())
    )
    assert [g.dtype for g in grads] == [narrow, np.float32, np.float32]
    close(y, exact(x, wide))
    close(grads[1], exact_backward(grad, x, wide)["gain"], rows=6)
    other = make(rng, "layer", 33, np.dtype("f4"), gain_dtype=narrow)
    close(normed(x.astype("f4"), other), exact(x, other))
    assert normed_backward(grad.astype("f4"), x.astype("f4"), other).gain.dtype == narrow


def test_a_small_variance_beside_a_large_mean(rng):
    """One pass over the row, mean x^2 - mean^2, would err by some percent."""
    noise = normal(rng, 4, 4096)
    x = (10 + 1e-2 * noise).astype("f4")
    y = fc.layer_norm(x, None, eps=0)
    np.testing.assert_allclose(y, exact(x, Norm("layer", eps=0)), atol=1e-3)
    assert abs(float(y.std()) - 1) < 1e-3


def test_nan_stays_in_its_row(rng):
    x = normal(rng, 3, 40, dtype="f4")
    x[1, 5] = np.nan
    for kind in KINDS:
        (y,) = in_every_isa(lambda kind=kind: (normed(x, Norm(kind)),))
        assert np.isnan(y[1]).all()
        assert np.isfinite(y[[0, 2]]).all()


def test_defaults():
    x = np.array([[1e-3, -1e-3]])
    np.testing.assert_allclose(fc.rms_norm(x, None), exact(x, Norm("rms", eps=EPS["rms"])))
    np.testing.assert_allclose(fc.layer_norm(x, None), exact(x, Norm("layer", eps=EPS["layer"])))


def test_errors(rng):
    x, gain = normal(rng, 3, 4, dtype="f4"), np.ones(4, "f4")
    for call, error, sentence in (
        (lambda: fc.rms_norm([1.0], gain), TypeError, "x is of type list"),
        (lambda: fc.rms_norm(x.astype("i4"), gain), TypeError, "x has dtype int32"),
        (lambda: fc.rms_norm(np.array(1.0), None), ValueError, r"x has shape \(\); expected"),
        (lambda: fc.rms_norm(x, gain[:3]), ValueError, r"gain has shape \(3,\); expected \(4,\)"),
        (lambda: fc.rms_norm(x, np.ones(4)), TypeError, "gain has dtype float64; expected float32"),
        (lambda: fc.rms_norm(x.astype("f8"), gain), TypeError, "gain has dtype float32; expected"),
        (lambda: fc.rms_norm(x, gain, out=x), ValueError, "out overlaps x"),
        (lambda: fc.rms_norm(x, gain, out=x[:2].copy()), ValueError, "out has shape"),
        (lambda: fc.rms_norm(x, gain, -1.0), ValueError, "eps is -1.0"),
        (lambda: fc.rms_norm_backward(x[:2], x, gain), ValueError, "grad_y has shape"),
        (lambda: fc.rms_norm_backward(x.astype("f8"), x, gain), TypeError, "grad_y has dtype"),
        (lambda: fc.rms_norm_backward(x, x, gain, out=x), ValueError, "out overlaps grad_y"),
    ):
        before = x.copy()
        with pytest.raises(error, match=sentence):
            call()
        np.testing.assert_array_equal(x, before)
