"""The C ABI, called through cffi from the installed header and library, against the Python API.

Both ways run the same kernels, so results are compared bit by bit. Bad input: test_c_abi_errors.py.
"""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from c_abi import (
    HEADER,
    PACKAGE,
    activation,
    activation_args,
    check,
    code,
    ffi,
    forward_args,
    layer,
    lib,
    matrix,
    packed_layer,
    vector,
    weights,
)
from support import DTYPES, TOLERANCE

import ffncore as fc
from ffncore.values.activation import KINDS


def functions():
    return re.findall(r"\b(ffncore_\w+)\(", re.sub(r"(?s)/\*.*?\*/", "", HEADER))


def test_version():
    numbers = [
        re.search(rf"VERSION_{part} (\d+)", HEADER)[1] for part in ("MAJOR", "MINOR", "PATCH")
    ]
    assert ffi.string(lib.ffncore_version()).decode() == ".".join(numbers) == fc.__version__


def test_every_declared_function_is_exported_and_little_else():
    declared = set(functions())
    assert len(declared) >= 20
    for name in declared:
        assert getattr(lib, name)
    library = str(PACKAGE / "libffncore.so")
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", library], capture_output=True, text=True
    )
    exported = {line.split()[-1] for line in listing.stdout.splitlines()}
    assert exported - declared <= {"ffncore_measure"}  # private, for the bench


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("biases", [True, False])
def test_forward(dtype, gated, biases):
    x, w = layer(dtype, gated, biases)
    y = np.full(x.shape, np.nan, dtype)
    check(lib.ffncore_ffn_forward(forward_args(x, y, w, lib.FFNCORE_SILU)))
    np.testing.assert_array_equal(y, fc.ffn(x, w, activation="silu"))


def test_forward_against_numpy():
    x, w = layer(np.float64, biases=False)
    y = np.empty_like(x)
    check(lib.ffncore_ffn_forward(forward_args(x, y, w, lib.FFNCORE_SIGMOID)))
    h = 1 / (1 + np.exp(-(x @ w.gate.T))) * (x @ w.up.T)
    np.testing.assert_allclose(y, h @ w.down.T, rtol=1e-11, atol=1e-10)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("save", [True, False])
def test_backward(dtype, gated, save):
    x, w = layer(dtype, gated)
    grad_y = np.cos(np.arange(x.size)).reshape(x.shape).astype(dtype)
    f, d = w.up.shape
    saved = ffi.NULL
    if save:
        room = np.zeros(lib.ffncore_saved_bytes(code(x), len(x), f, gated) + 64, np.uint8)
        start = -room.__array_interface__["data"][0] % 64
        saved = ffi.from_buffer("char[]", room[start:])
    y = np.empty_like(x)
    check(lib.ffncore_ffn_forward(forward_args(x, y, w, lib.FFNCORE_GELU, saved)))

    new = lambda *shape: np.full(shape, np.nan, dtype)  # noqa: E731
    grad_x = new(*x.shape)
    grads = fc.FFNWeights(
        gate=new(f, d) if gated else None, up=new(f, d), down=new(d, f),
        b_gate=new(f) if gated else None, b_up=new(f), b_down=new(d),
    )  # fmt: skip
    args = ffi.new("ffncore_backward_args *")
    args.size = ffi.sizeof("ffncore_backward_args")
    args.saved, args.accumulate = saved, 0
    args.x, args.grad_y, args.weights = matrix(x), matrix(grad_y), weights(w)
    args.activation = activation(lib.FFNCORE_GELU)
    args.grad_x = matrix(grad_x)
    for name in ("gate", "up", "down"):
        setattr(args, f"grad_{name}", matrix(getattr(grads, name)))
    for name in ("b_gate", "b_up", "b_down"):
        setattr(args, f"grad_{name}", vector(getattr(grads, name)))
    check(lib.ffncore_ffn_backward(args))

    mode = "preactivations" if save else "input"
    _, state = fc.ffn_forward(x, w, activation="gelu", save=mode)
    expected = fc.ffn_backward(grad_y, state)
    np.testing.assert_array_equal(grad_x, expected.x)
    for name in ("gate", "up", "down", "b_gate", "b_up", "b_down"):
        ours, theirs = getattr(grads, name), getattr(expected.weights, name)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            np.testing.assert_array_equal(ours, theirs, err_msg=name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gated", [True, False])
def test_pack(dtype, gated):
    x, w = layer(dtype, gated)
    raw = ffi.new("ffncore_weights *", weights(w))
    room = np.zeros(lib.ffncore_packed_bytes(code(x), raw) + 64, np.uint8)
    start = -room.__array_interface__["data"][0] % 64
    packed = ffi.from_buffer("char[]", room[start:])
    check(lib.ffncore_pack(code(x), raw, packed))

    y = np.full(x.shape, np.nan, dtype)
    args = forward_args(x, y, w, lib.FFNCORE_SILU)
    for name in ("gate", "up", "down"):
        getattr(args.weights, name).data = ffi.NULL
    for name in ("b_gate", "b_up", "b_down"):
        getattr(args.weights, name).data = ffi.NULL
    args.weights.packed = packed
    check(lib.ffncore_ffn_forward(args))
    np.testing.assert_array_equal(y, fc.ffn(x, w, activation="silu"))
    np.testing.assert_array_equal(y, fc.ffn(x, fc.pack(w), activation="silu"))

    back = fc.FFNWeights(**{
        name: None if getattr(w, name) is None else np.zeros(getattr(w, name).shape, dtype)
        for name in ("gate", "up", "down", "b_gate", "b_up", "b_down")
    })  # fmt: skip
    check(lib.ffncore_unpack(ffi.new("ffncore_weights *", weights(back)), packed))
    for name in ("gate", "up", "down", "b_gate", "b_up", "b_down"):
        np.testing.assert_array_equal(getattr(back, name), getattr(w, name), err_msg=name)


def test_options_begin_as_in_python():
    for kind, name in enumerate(KINDS):
        ours, theirs = activation(kind), fc.Activation(name)
        for option in ("alpha", "negative_slope", "alpha_p", "alpha_n", "beta", "eps"):
            if getattr(theirs, option) is not None:
                assert getattr(ours, option) == pytest.approx(getattr(theirs, option), rel=1e-15)
        assert (ours.clamp, ours.up_offset, ours.gate_multiplier) == (0, 0, 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_activation(dtype):
    rng = np.random.default_rng(3)
    gate, up, grad = (rng.standard_normal((5, 23)).astype(dtype) for _ in range(3))
    h, grad_gate, grad_up = (np.empty_like(gate) for _ in range(3))
    args = ffi.new("ffncore_activation_args *")
    args.size = ffi.sizeof("ffncore_activation_args")
    args.activation = activation(lib.FFNCORE_TANH)
    args.gate, args.up, args.h = matrix(gate), matrix(up), matrix(h)
    check(lib.ffncore_activation_forward(args))
    args.grad_h, args.grad_gate, args.grad_up = matrix(grad), matrix(grad_gate), matrix(grad_up)
    check(lib.ffncore_activation_backward(args))
    gate, up, grad = (a.astype(np.float64) for a in (gate, up, grad))
    tanh = np.tanh(gate)
    for ours, exact in (
        (h, tanh * up),
        (grad_gate, grad * up * (1 - tanh**2)),
        (grad_up, grad * tanh),
    ):
        np.testing.assert_allclose(ours.astype(np.float64), exact, atol=TOLERANCE[dtype])


def test_cost():
    x, w = layer(np.float32, biases=False)
    cost = ffi.new("ffncore_cost *", {"size": ffi.sizeof("ffncore_cost")})
    args = forward_args(x, np.empty_like(x), w, lib.FFNCORE_SILU)
    check(lib.ffncore_forward_cost(args, 0, cost))
    assert cost.flops == 2 * 3 * x.size * len(w.up)
    assert cost.token_chunk > 0
    assert cost.ff_chunk > 0


def test_unpack_of_a_part():
    _x, w, packed = packed_layer()
    into = ffi.new("ffncore_weights *", {"size": ffi.sizeof("ffncore_weights")})
    down = np.zeros((70, 130), np.float32)
    into.down = matrix(down)
    check(lib.ffncore_unpack(into, ffi.from_buffer("char[]", packed)))
    np.testing.assert_array_equal(down, w.down)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gated", [True, False])
def test_equal_weights_make_equal_bytes(dtype, gated):
    """Packing depends neither on strides, threads and level nor on what the buffer held before."""
    rng = np.random.default_rng(1)
    f, d = 150, 2061
    values = {"up": (f, d), "down": (d, f), "b_up": (f,), "b_down": (d,)}
    if gated:
        values |= {"gate": (f, d), "b_gate": (f,)}
    values = {name: rng.standard_normal(shape).astype(dtype) for name, shape in values.items()}
    layouts = {
        "C": lambda a: a,
        "F": np.asfortranarray,
        "gaps": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
        "backwards": lambda a: a[::-1].copy()[::-1],
    }
    first = None
    for isa in fc.available_isas():
        for threads, (name, layout) in zip((1, 2, 3, 1), layouts.items(), strict=True):
            w = fc.FFNWeights(**{field: layout(a) for field, a in values.items()})
            raw = ffi.new("ffncore_weights *", weights(w))
            kind = code(w.up)
            packed = np.full(lib.ffncore_packed_bytes(kind, raw), 0xAB, np.uint8)
            back = fc.FFNWeights(**{
                field: layout(np.zeros_like(a)) for field, a in values.items()
            })  # fmt: skip
            with fc.using_isa(isa), fc.num_threads(threads):
                check(lib.ffncore_pack(kind, raw, ffi.from_buffer("char[]", packed)))
                into = ffi.new("ffncore_weights *", weights(back))
                check(lib.ffncore_unpack(into, ffi.from_buffer("char[]", packed)))
            first = packed if first is None else first
            np.testing.assert_array_equal(packed, first, err_msg=f"{isa} {name}")
            for field, a in back.arrays().items():
                np.testing.assert_array_equal(a, values[field], err_msg=f"{isa} {name} {field}")


def test_activation_gradients_may_be_absent():
    rng = np.random.default_rng(5)
    gate, up, grad_h = rng.standard_normal((3, 7, 19)).astype(np.float32)
    both = [np.empty_like(up), np.empty_like(up)]
    args = activation_args(lib.FFNCORE_GELU, gate=gate, up=up, grad_h=grad_h)
    args.grad_gate, args.grad_up = matrix(both[0]), matrix(both[1])
    check(lib.ffncore_activation_backward(args))
    for index, name in enumerate(("grad_gate", "grad_up")):
        alone = np.empty_like(up)
        args = activation_args(lib.FFNCORE_GELU, gate=gate, up=up, grad_h=grad_h)
        setattr(args, name, matrix(alone))
        check(lib.ffncore_activation_backward(args))
        np.testing.assert_array_equal(alone, both[index])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 50001), (50001, 1), (3, 17), (301, 997), (20000, 3)])
def test_alpha_gradients_have_one_order(dtype, shape):
    """The bits are the same for any strides, threads, instruction set and shape of the rows."""
    rng = np.random.default_rng(2)
    up, grad_h = rng.standard_normal((2, *shape)).astype(dtype)

    def strided(a, kind):
        if kind == "F":
            return np.asfortranarray(a)
        if kind == "gaps":
            return np.repeat(np.repeat(a, 2, axis=0), 3, axis=1)[::2, ::3]
        if kind == "padded rows":
            return np.pad(a, ((0, 0), (0, 5)))[:, : a.shape[1]]
        return a.reshape(1, -1) if kind == "flat" else a

    answers = set()
    for isa in fc.available_isas():
        for threads, kind in ((1, "C"), (2, "F"), (3, "gaps"), (2, "padded rows"), (1, "flat")):
            with fc.using_isa(isa), fc.num_threads(threads):
                x, g = strided(up, kind), strided(grad_h, kind)
                grads = fc.activation_backward(g, x, activation="xielu")
            answers.add(tuple(grads.activation))
    assert len(answers) == 1
    exact = fc.activation_backward(
        grad_h.astype(np.float64), up.astype(np.float64), activation="xielu"
    ).activation
    assert answers.pop() == pytest.approx(exact, rel=1e-4, abs=1e-3)  # 16 bits: sums are in float32


VERBOSE = """
import numpy as np, ffncore as fc
from ffncore import _core
fc.set_num_threads(3)
w = fc.FFNWeights(up=np.ones((40, 30)), down=np.ones((30, 40)))
for always in (False, True):
    _core.debug_plan(threads_always=always)
    y, saved = fc.ffn_forward(np.ones((2, 30)), w, activation="silu")
    fc.ffn_backward(y, saved)
    fc.activation_backward(y, fc.activation(y, activation="relu"), activation="relu")
    fc.pack(w).unpack()
    experts = fc.FFNWeights(up=w.up[None], down=w.down[None])
    routing = fc.Routing(experts=np.zeros((2, 1), int), weights=np.ones((2, 1)))
    y, saved = fc.moe_forward(np.ones((2, 30)), routing, experts, activation="silu")
    fc.moe_backward(y, saved)
"""


def test_verbose_prints_a_line_for_each_call():
    environment = {**os.environ, "FFNCORE_VERBOSE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", VERBOSE], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    operations = ["ffn_forward", "ffn_backward", "activation_forward", "activation_backward"]
    operations += ["pack", "unpack", "moe_forward", "moe_backward"]
    assert [line.split()[1] for line in lines] == 2 * operations
    for line, threads in zip(lines, [1] * 8 + [3] * 8, strict=True):
        pattern = rf"ffncore \w+ float64 plain .* isa={fc.active_isa()} threads={threads} [\d.]+ ms"
        assert re.fullmatch(pattern, line)


def test_isa_and_threads():
    names = [ffi.string(lib.ffncore_isa_name(i)).decode() for i in range(lib.ffncore_isa_count())]
    assert tuple(names) == fc.available_isas()
    assert ffi.string(lib.ffncore_isa_current()).decode() == fc.active_isa()
    assert lib.ffncore_isa_use(b"avx9") == lib.FFNCORE_UNSUPPORTED
    assert b'"avx9"' in ffi.string(lib.ffncore_last_error())
    with fc.num_threads(3):
        assert lib.ffncore_num_threads() == 3  # Python and the C ABI share one pool
    assert lib.ffncore_set_num_threads(-1) == lib.FFNCORE_INVALID_ARGUMENT
    lib.ffncore_clear_workspace()
