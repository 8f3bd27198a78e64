"""Every activation and its derivative at all 65,536 values of bfloat16 and of float16.

Each result is at most one unit in the last place from the formula in float64, rounded once.
Subnormal inputs and results of bfloat16 are zero, so that the smallest normal number is the
neighbour of zero. NaN has to be where the formula has it, and the derivative at infinity is its
limit. In the gated form, results with a factor that is not a normal number of float32 are left out;
reference.activation says why.
"""

# ruff: noqa: ARG001 (a test names the fixtures that it runs under)

import functools

import numpy as np
import pytest
from support import CASES, NARROW

import ffncore as fc
from ffncore import reference
from ffncore.arrays.dtypes import rounded

# The other factor of the gated form: not a power of two, so that products are rounded.
FACTOR = 0.71875

PLAIN = sorted({repr(case): case for gated, case in CASES if not gated}.items())
GATED = sorted({repr(case): case for gated, case in CASES if gated}.items())


def all_values(dtype):
    return np.arange(1 << 16, dtype=np.uint16).view(dtype)


def flushes(dtype):
    return dtype.name == "bfloat16"


def wide(a):
    """Convert to float64, with subnormals of bfloat16 as zero."""
    with np.errstate(invalid="ignore"):  # ml_dtypes warns when it casts NaN
        values = a.astype(np.float64)
    small = np.abs(values) < np.finfo(np.float32).tiny
    return np.where(small, np.copysign(0.0, values), values) if flushes(a.dtype) else values


def places(a):
    """Map numbers to integers in their order: neighbours differ by 1, and both zeros are 0."""
    bits = a.view(np.int16).astype(np.int64)
    size = bits & 0x7FFF
    if flushes(a.dtype):
        size = np.maximum(size - 0x7F, 0)
    return np.where(bits < 0, -size, size)


def check(found, exact, counts=True):
    """counts: where the result is checked."""
    exact, found = np.asarray(exact), np.asarray(found)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = rounded(exact, found.dtype)
    nan = np.isnan(exact)
    assert not ((np.isnan(wide(found)) != nan) & counts).any()
    apart = np.where(nan | ~np.asarray(counts), 0, np.abs(places(found) - places(expected)))
    worst = int(apart.argmax())
    assert apart[worst] <= 1, (all_values(found.dtype)[worst], found[worst], exact[worst])


def all_normal(*factors):
    """Where each of them is a normal float32 number, or 0, infinite or NaN also in float64."""
    least, most = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
    size = np.abs(np.stack(factors))
    inside = (size >= least) & (size <= most)
    return (inside | (size == 0) | ~np.isfinite(size)).all(axis=0)


@functools.cache
def exact_plain(case, dtype):
    act, x = dict(PLAIN)[case], wide(all_values(dtype))
    return (
        reference.activation(x, activation=act),
        reference.activation_backward(np.ones_like(x), x, activation=act).x,
    )


@functools.cache
def exact_gated(case, dtype, sweeps):
    act, x = dict(GATED)[case], wide(all_values(dtype))
    gate, up = np.full_like(x, FACTOR), np.full_like(x, FACTOR)
    gate, up = (x, up) if sweeps == "gate" else (gate, x)
    grads = reference.activation_backward(np.ones_like(x), gate, up, activation=act)
    value, derivative = reference.FORMULAS[act.name]
    with np.errstate(all="ignore"):
        v = gate * act.gate_multiplier
        factors = [v, value(v, act), derivative(v, act)]
        if act.gate_softcap is not None:  # the derivative is a sum
            factors.append(reference.sigmoid_derivative(reference.slope_of(act) * v))
        if act.up_softcap is not None:
            z = up / act.up_softcap
            factors += [z, act.up_softcap * np.tanh(z), reference.tanh_derivative(z)]
    counts = all_normal(*factors) if flushes(dtype) else np.ones(x.shape, bool)
    return reference.activation(gate, up, activation=act), grads.x, grads.up, counts


@pytest.mark.parametrize("narrow", NARROW, ids=str)
@pytest.mark.parametrize("case", [case for case, _ in PLAIN])
def test_plain(case, narrow, isa):
    act, x = dict(PLAIN)[case], all_values(narrow)
    value, slope = exact_plain(case, narrow)
    check(fc.activation(x, activation=act), value)
    check(fc.activation_backward(np.ones_like(x), x, activation=act).x, slope)


@pytest.mark.parametrize("narrow", NARROW, ids=str)
@pytest.mark.parametrize("sweeps", ["gate", "up"])
@pytest.mark.parametrize("case", [case for case, _ in GATED])
def test_gated(case, sweeps, narrow, isa):
    act, x = dict(GATED)[case], all_values(narrow)
    other = np.full_like(x, FACTOR)
    gate, up = (x, other) if sweeps == "gate" else (other, x)
    value, grad_gate, grad_up, counts = exact_gated(case, narrow, sweeps)
    check(fc.activation(gate, up, activation=act), value, counts)
    grads = fc.activation_backward(np.ones_like(x), gate, up, activation=act)
    check(grads.x, grad_gate, counts)
    check(grads.up, grad_up, counts)
    assert counts.mean() > 0.5
