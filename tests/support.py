"""Helpers for tests: layers, activations, tolerances, guard pages, the floating-point mode, a
terminal."""

from __future__ import annotations

import contextlib
import ctypes
import io
import mmap
from collections import defaultdict

import numpy as np

import ffncore as fc
from ffncore import _core, reference
from ffncore.values.activation import KINDS

try:
    from ml_dtypes import bfloat16
except ImportError:  # optional: without it there are no bfloat16 arrays
    BFLOAT16 = []
else:
    BFLOAT16 = [np.dtype(bfloat16)]
NARROW = [np.dtype(np.float16), *BFLOAT16]
DTYPES = [np.dtype(np.float32), np.dtype(np.float64), *NARROW]

# For results near 1 with a handful of roundings.
TOLERANCE = {
    np.dtype(np.float32): 1e-5,
    np.dtype(np.float64): 1e-13,
    np.dtype(np.float16): 4e-3,
    **dict.fromkeys(BFLOAT16, 0.03),
}

# Around every tile width and height of the kernels, and primes between.
ODD_SIZES = (0, 1, 2, 3, 5, 7, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97)

NAMES = tuple(KINDS)

# Every activation, and every option of fc.Activation at least once.
PLAIN_CASES = [fc.Activation(name) for name in NAMES] + [
    fc.Activation("silu", alpha=1.702),
    fc.Activation("silu", alpha=1.3, gate_softcap=2.0),
    fc.Activation("quick_gelu", gate_softcap=1.5),
    fc.Activation("gelu", gate_multiplier=0.7),
    fc.Activation("leaky_relu", negative_slope=0.2),
    fc.Activation("xielu", alpha_p=0.3, alpha_n=-0.4, beta=0.4, eps=-0.3),
]
GATED_CASES = PLAIN_CASES + [
    fc.Activation("silu", alpha=1.702, limit=0.8, clamp="pre", up_offset=1.0),
    fc.Activation("silu", limit=0.5, clamp="post"),
    fc.Activation("gelu", up_offset=-0.5, gate_multiplier=1.5),
    fc.Activation("silu", gate_softcap=2.0, up_softcap=1.5),
    fc.Activation("relu2", limit=0.6, clamp="pre", up_softcap=2.0, gate_multiplier=-1.1),
    fc.Activation("xielu", limit=0.7, clamp="post", up_offset=0.3),
    fc.Activation("tanh", limit=0.4, clamp="post", up_softcap=0.9, up_offset=0.1),
]
CASES = [(False, case) for case in PLAIN_CASES] + [(True, case) for case in GATED_CASES]
CASE_IDS = [f"{'gated' if gated else 'plain'}-{case!r}" for gated, case in CASES]


def make_weights(rng, d, f, *, gated=True, biases=(), dtype=np.float64):
    """Weights that keep preactivations and outputs near 1."""

    def matrix(rows, columns):
        return (rng.standard_normal((rows, columns)) / np.sqrt(max(1, columns))).astype(dtype)

    arrays = {"up": matrix(f, d), "down": matrix(d, f)}
    if gated:
        arrays["gate"] = matrix(f, d)
    for name in biases:
        arrays[name] = rng.standard_normal(d if name == "b_down" else f).astype(dtype)
    return fc.FFNWeights(**arrays)


def make_experts(rng, n, d, f, **options):
    """n layers of make_weights, stacked."""
    blocks = [make_weights(rng, d, f, **options).arrays() for _ in range(n)]
    return fc.FFNWeights(**{name: np.stack([b[name] for b in blocks]) for name in blocks[0]})


def all_biases(gated):
    return ("b_gate", "b_up", "b_down") if gated else ("b_up", "b_down")


def normal(rng, *shape, dtype=np.float64):
    return rng.standard_normal(shape).astype(dtype)


def same_bits(a, b):
    """Equal bit patterns, where any NaN equals any NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    words = f"u{a.dtype.itemsize}"
    with np.errstate(invalid="ignore"):  # signalling NaNs, of 16 bits
        nan, other_nan = np.isnan(a), np.isnan(b)
    equal = np.ascontiguousarray(a).view(words) == np.ascontiguousarray(b).view(words)
    return bool(np.array_equal(nan, other_nan) and np.all(equal | nan))


def debug_plan(*sizes, threads_always=True):
    """Sets the sizes of the plan's chunks, and lets small calls use several threads."""
    try:
        _core.debug_plan(*sizes, threads_always=threads_always)
    except TypeError:  # in a build without this option small calls use one thread
        _core.debug_plan(*sizes)


def strided_copies(array):
    """The same numbers with other strides: Fortran order, sliced, reversed."""
    yield np.asfortranarray(array)
    room = np.full(tuple(2 * n + 1 for n in array.shape), np.nan, array.dtype)
    part = room[tuple(slice(1, None, 2) for _ in array.shape)]
    part[...] = array
    yield part
    backwards = tuple(slice(None, None, -1) for _ in array.shape)
    yield np.array(array[backwards])[backwards]


def unaligned(array):
    """The same numbers at unaligned addresses."""
    room = np.zeros(array.shape, np.dtype([("pad", "u1"), ("value", array.dtype)]))
    room["value"] = array
    assert not room["value"].flags.aligned
    return room["value"]


class Accuracy:
    """The errors of many small results against the float64 reference, checked together.

    In float32 the rms error may be 1.5 times that of the same formula in numpy float32; in 16 bits,
    1.5 times that of the same formula with one rounding per tensor (yardsticks). A small result has
    too few numbers for an rms, so all results of a test are pooled by name. In float64 the
    reference has the same precision, and the error may be a small multiple of epsilon.
    """

    FACTOR = 1.5

    def __init__(self):
        self.ours = defaultdict(list)
        self.numpys = defaultdict(list)

    def add(self, name, result, exact, yardstick=None, where=""):
        assert result.shape == exact.shape, (name, where)
        scale = max(1.0, float(np.abs(exact).max(initial=0)))
        error = result.astype(np.float64) - exact
        largest = float(np.abs(error).max(initial=0)) / scale
        allowed = 2 * TOLERANCE[result.dtype]
        assert largest <= allowed, f"{name} is off by {largest:.1e}: {where}"
        if yardstick is not None:
            self.ours[name].append(np.ravel(error) / scale)
            self.numpys[name].append(np.ravel(yardstick.astype(np.float64) - exact) / scale)

    def check(self):
        for name, ours in self.ours.items():
            ours, numpys = (rms(np.concatenate(e)) for e in (ours, self.numpys[name]))
            assert ours <= self.FACTOR * numpys, f"{name}: rms {ours:.2e}, numpy {numpys:.2e}"


COMPLEX_STEP = 1e-30  # it has no cancellation, so that the step may be very small


def complex_step(fn, array):
    """The gradient of a real function of one array, by the complex step."""
    gradient = np.empty(array.shape)
    for index in np.ndindex(array.shape):
        moved = array.astype(np.complex128)
        moved[index] += 1j * COMPLEX_STEP
        gradient[index] = fn(moved).imag / COMPLEX_STEP
    return gradient


def yardsticks(x, w, grad_y, activation, round_results=True):
    """y and the gradients by the simplest formula of the same precision; None for float64.

    float32: everything in numpy float32. 16 bits: in float64, with one rounding of each tensor that
    is a result (unless results are to be accumulated), or is kept between the passes or between the
    products (with float16, h and the gradients of gate and up are float32).
    """
    dtype = x.dtype
    if dtype == np.float64:
        return None, defaultdict(lambda: None)
    if dtype == np.float32:
        y = reference.ffn(x, w, activation=activation, dtype=np.float32)
        grads = reference.ffn_backward(grad_y, x, w, activation=activation, dtype=np.float32)
        return y, grads

    def rounded(a):
        return a.astype(dtype).astype(np.float64)

    def hidden(a):
        return a if dtype == np.float16 else rounded(a)

    arrays = {name: a.astype(np.float64) for name, a in w.arrays().items()}
    wide = fc.FFNWeights(**arrays)
    rows, grad = (a.reshape(-1, a.shape[-1]).astype(np.float64) for a in (x, grad_y))
    gate, up = reference.preactivations(rows, wide)

    def h_of(gate, up):
        first, second = (up, None) if gate is None else (gate, up)
        return hidden(reference.activation(first, second, activation=activation))

    y = h_of(gate, up) @ wide.down.T + arrays.get("b_down", 0)
    gate, up = (None if a is None else rounded(a) for a in (gate, up))
    dh = grad @ wide.down
    found = reference.activation_backward(
        dh, up if gate is None else gate, None if gate is None else up, activation=activation
    )
    dgate, dup = (None, found.x) if gate is None else (found.x, found.up)
    dup, dgate = hidden(dup), None if dgate is None else hidden(dgate)
    grads = {"x": dup @ wide.up, "up": dup.T @ rows, "b_up": dup.sum(0)}
    if gate is not None:
        grads["x"] = grads["x"] + dgate @ wide.gate
        grads |= {"gate": dgate.T @ rows, "b_gate": dgate.sum(0)}
    grads |= {"down": grad.T @ h_of(gate, up), "b_down": grad.sum(0)}
    grads["x"] = grads["x"].reshape(x.shape)
    if not round_results:
        # y_again: computed from the rounded preactivations, with which the backward pass begins.
        y_again = h_of(gate, up) @ wide.down.T + arrays.get("b_down", 0)
        return y.reshape(x.shape), {**grads, "y_again": y_again}
    return rounded(y).reshape(x.shape), {name: rounded(a) for name, a in grads.items()}


def own_kernels(dtype):
    """The instruction sets whose kernels for a dtype are no other's.

    avx512bf16 is a copy of avx512's table with other products of bfloat16 in it
    (csrc/kernels/isa_avx512bf16.cpp).
    """
    isas = fc.available_isas()
    return [isa for isa in isas if isa != "avx512bf16" or dtype in BFLOAT16]


def in_every_isa(compute):
    """Check that compute(), a tuple of arrays, has the same bits in every instruction set."""
    answers = {}
    for isa in fc.available_isas():
        with fc.using_isa(isa):
            answers[isa] = compute()
        for answer, scalar in zip(answers[isa], answers["scalar"], strict=True):
            assert same_bits(answer, scalar), isa
    return answers["scalar"]


def rms(error):
    return float(np.sqrt(np.mean(np.square(error)))) if error.size else 0.0


# ---- guard pages -------------------------------------------------------------------------------

_PAGE = mmap.PAGESIZE
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def guarded(array, end=True):
    """A copy of an array next to a page that faults: after its end, or before its start."""
    array = np.ascontiguousarray(array)
    inner = max(1, -(-array.nbytes // _PAGE)) * _PAGE
    pages = mmap.mmap(-1, inner + 2 * _PAGE)
    start = np.frombuffer(pages, np.uint8).ctypes.data
    for address in (start, start + _PAGE + inner):
        if _libc.mprotect(address, _PAGE, 0) != 0:  # 0: no access
            raise OSError(ctypes.get_errno(), "mprotect")
    offset = _PAGE + (inner - array.nbytes if end else 0)
    copy = np.frombuffer(pages, np.uint8, count=array.nbytes, offset=offset).view(array.dtype)
    copy = copy.reshape(array.shape)
    copy[...] = array
    return copy


# ---- the caller's floating-point mode ----------------------------------------------------------

_LDMXCSR = bytes((0x0F, 0xAE, 0x17, 0xC3))  # ldmxcsr [rdi]; ret
_STMXCSR = bytes((0x0F, 0xAE, 0x1F, 0xC3))  # stmxcsr [rdi]; ret
FLUSH_TO_ZERO = 0x8040  # FTZ and DAZ


@contextlib.contextmanager
def mxcsr_bits(bits):
    """Sets bits in the MXCSR of this thread; yields a function that reads it."""
    code = mmap.mmap(-1, _PAGE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(_LDMXCSR.ljust(16, b"\xcc") + _STMXCSR)
    address = np.frombuffer(code, np.uint8).ctypes.data
    prototype = ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_uint32))
    load, store = prototype(address), prototype(address + 16)

    def read():
        word = ctypes.c_uint32()
        store(ctypes.byref(word))
        return word.value

    before = read()
    load(ctypes.byref(ctypes.c_uint32(before | bits)))
    try:
        yield read
    finally:
        load(ctypes.byref(ctypes.c_uint32(before)))


class Terminal(io.StringIO):
    """What a progress bar takes for a terminal."""

    def isatty(self):
        return True
