"""The C ABI, called through cffi from the installed header and library, against the Python API.

This keeps ffncore.h true: cffi takes sizes and offsets from its text alone. Both ways run the same
kernels, so results are compared bit by bit.
"""

import importlib.resources
import re
import subprocess

import cffi
import numpy as np
import pytest

import ffncore as fc

PACKAGE = importlib.resources.files("ffncore")
HEADER = (PACKAGE / "include" / "ffncore.h").read_text()
DTYPES = [np.float32, np.float64]


def declarations():
    """The header as cffi wants it: without what only a C++ compiler sees, and without # lines."""
    text = re.sub(r"(?ms)^#ifdef __cplusplus$.*?^#endif$", "", HEADER)
    return "\n".join(line for line in text.splitlines() if not line.startswith("#"))


ffi = cffi.FFI()
ffi.cdef(declarations())
lib = ffi.dlopen(str(PACKAGE / "libffncore.so"))


def functions():
    return re.findall(r"\b(ffncore_\w+)\(", re.sub(r"(?s)/\*.*?\*/", "", HEADER))


def code(array):
    return {"float32": lib.FFNCORE_FLOAT32, "float64": lib.FFNCORE_FLOAT64}[array.dtype.name]


def matrix(array):
    if array is None:
        return {}
    row, col = (stride // array.itemsize for stride in array.strides)
    return {
        "data": ffi.cast("void *", array.__array_interface__["data"][0]),
        "rows": array.shape[0],
        "cols": array.shape[1],
        "row_stride": row,
        "col_stride": col,
    }


def vector(array):
    if array is None:
        return {}
    return {
        "data": ffi.cast("void *", array.__array_interface__["data"][0]),
        "length": array.shape[0],
        "stride": array.strides[0] // array.itemsize,
    }


def weights(w):
    return {
        "size": ffi.sizeof("ffncore_weights"),
        **{name: matrix(getattr(w, name)) for name in ("gate", "up", "down")},
        **{name: vector(getattr(w, name)) for name in ("b_gate", "b_up", "b_down")},
    }


def activation(kind):
    value = ffi.new("ffncore_activation *")
    lib.ffncore_activation_init(value, kind)
    return value[0]


def forward_args(x, y, w, kind, saved=ffi.NULL):
    args = ffi.new("ffncore_forward_args *")
    args.size = ffi.sizeof("ffncore_forward_args")
    args.dtype, args.saved = code(x), saved
    args.x, args.y, args.weights, args.activation = (
        matrix(x),
        matrix(y),
        weights(w),
        activation(kind),
    )
    return args


def check(status):
    assert status == lib.FFNCORE_OK, ffi.string(lib.ffncore_last_error()).decode()


def layer(dtype, gated=True, biases=True, tokens=37, d=70, f=130):
    rng = np.random.default_rng(7)
    draw = lambda *shape: rng.standard_normal(shape).astype(dtype)  # noqa: E731
    w = fc.FFNWeights(
        gate=draw(f, d) if gated else None,
        up=draw(d, f).T,  # any strides
        down=draw(d, 2 * f)[:, ::-2],
        b_gate=draw(f) if gated and biases else None,
        b_up=draw(f) if biases else None,
        b_down=draw(2 * d)[::2] if biases else None,
    )
    return draw(tokens, d), w


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
    assert exported - declared <= {"ffncore_measure"}  # of the bench, private


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
    grad_y = np.cos(np.arange(x.size, dtype=dtype)).reshape(x.shape)
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
    args.dtype, args.saved, args.accumulate = code(x), saved, 0
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
    check(lib.ffncore_unpack(code(x), ffi.new("ffncore_weights *", weights(back)), packed))
    for name in ("gate", "up", "down", "b_gate", "b_up", "b_down"):
        np.testing.assert_array_equal(getattr(back, name), getattr(w, name), err_msg=name)


@pytest.mark.parametrize("dtype", DTYPES)
def test_activation(dtype):
    rng = np.random.default_rng(3)
    gate, up, grad = (rng.standard_normal((5, 23)).astype(dtype) for _ in range(3))
    h, grad_gate, grad_up = (np.empty_like(gate) for _ in range(3))
    args = ffi.new("ffncore_activation_args *")
    args.size, args.dtype = ffi.sizeof("ffncore_activation_args"), code(gate)
    args.activation = activation(lib.FFNCORE_TANH)
    args.gate, args.up, args.h = matrix(gate), matrix(up), matrix(h)
    check(lib.ffncore_activation_forward(args))
    args.grad_h, args.grad_gate, args.grad_up = matrix(grad), matrix(grad_gate), matrix(grad_up)
    check(lib.ffncore_activation_backward(args))
    tanh = np.tanh(gate)
    close = {
        "rtol": 1e-5 if dtype is np.float32 else 1e-12,
        "atol": 1e-6 if dtype is np.float32 else 0,
    }
    np.testing.assert_allclose(h, tanh * up, **close)
    np.testing.assert_allclose(grad_gate, grad * up * (1 - tanh**2), **close)
    np.testing.assert_allclose(grad_up, grad * tanh, **close)


def test_cost():
    x, w = layer(np.float32, biases=False)
    cost = ffi.new("ffncore_cost *", {"size": ffi.sizeof("ffncore_cost")})
    args = forward_args(x, np.empty_like(x), w, lib.FFNCORE_SILU)
    check(lib.ffncore_forward_cost(args, 0, cost))
    assert cost.flops == 2 * 3 * x.size * len(w.up)
    assert cost.token_chunk > 0
    assert cost.ff_chunk > 0


def wrong_size(args):
    args.size = 0


def wrong_dtype(args):
    args.dtype = 99


def wrong_shape(args):
    args.weights.down.cols += 1


def wrong_kind(args):
    args.activation.kind = 1000


def no_output(args):
    args.y.data = ffi.NULL


@pytest.mark.parametrize("spoil", [wrong_size, wrong_dtype, wrong_shape, wrong_kind, no_output])
def test_invalid_arguments(spoil):
    x, w = layer(np.float32)
    y = np.full_like(x, 3)
    args = forward_args(x, y, w, lib.FFNCORE_SILU)
    spoil(args)
    assert lib.ffncore_ffn_forward(args) == lib.FFNCORE_INVALID_ARGUMENT
    assert len(ffi.string(lib.ffncore_last_error())) > 10
    assert (y == 3).all()


def test_null():
    assert lib.ffncore_ffn_forward(ffi.NULL) == lib.FFNCORE_INVALID_ARGUMENT
    assert lib.ffncore_ffn_backward(ffi.NULL) == lib.FFNCORE_INVALID_ARGUMENT


def test_isa_and_threads():
    names = [ffi.string(lib.ffncore_isa_name(i)).decode() for i in range(lib.ffncore_isa_count())]
    assert tuple(names) == fc.available_isas()
    assert ffi.string(lib.ffncore_isa_current()).decode() == fc.active_isa()
    assert lib.ffncore_isa_use(b"avx9") == lib.FFNCORE_UNSUPPORTED
    assert b'"avx9"' in ffi.string(lib.ffncore_last_error())
    with fc.num_threads(3):
        assert lib.ffncore_num_threads() == 3  # one pool, whichever door
    assert lib.ffncore_set_num_threads(-1) == lib.FFNCORE_INVALID_ARGUMENT
    lib.ffncore_clear_workspace()
