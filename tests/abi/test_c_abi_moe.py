"""Mixtures through the C ABI and cffi: the bits of the Python API, and the error texts."""

import numpy as np
import pytest
from c_abi import (
    WEIGHTS,
    activation,
    check,
    code,
    experts,
    ffi,
    lib,
    matrix,
    mixture,
    moe_args,
    refused,
    said,
    set_field,
    vector,
    weights,
)
from support import DTYPES
from support_moe import both, forward, to_one

import ffncore as fc

BOTH_PLACES = pytest.mark.parametrize("on_input", [0, 1])
ALL_DTYPES = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def saved_bytes(x, ids, w):
    return lib.ffncore_moe_saved_bytes(
        code(x), ffi.cast("int32_t *", ids.ctypes.data), *ids.shape, w.n_experts, w.d_ff, w.gated
    )


def room(count):
    """Bytes that begin at a cache line."""
    memory = np.zeros(count + 64, np.uint8)
    return memory[-memory.ctypes.data % 64 :]


XIELU = fc.Activation("xielu", alpha_p=0.3, alpha_n=-0.4, beta=0.4, eps=-0.3)


def xielu():
    made = activation(lib.FFNCORE_XIELU)
    for name in ("alpha_p", "alpha_n", "beta", "eps"):
        setattr(made, name, getattr(XIELU, name))
    return made


def bytes_of(array):
    return ffi.from_buffer("char[]", array)


def only(name, array):
    """An ffncore_experts with only one array."""
    first = vector(array[0]) if name.startswith("b_") else matrix(array[0])
    block = {"size": ffi.sizeof("ffncore_weights"), name: first}
    return {**experts(None), f"{name}_stride": array[0].size, "first": block}


@ALL_DTYPES
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("biases", [True, False])
@BOTH_PLACES
def test_forward(dtype, gated, biases, on_input):
    x, _, ids, factors, w = mixture(dtype, gated, biases)
    y = np.full(x.shape, np.nan, dtype)
    by_columns = np.asfortranarray(factors)  # the arguments keep no array alive
    args = moe_args("forward", x, ids, by_columns, w, lib.FFNCORE_GELU, y=y)
    args.weight_on_input = on_input
    check(lib.ffncore_moe_forward(args))
    routing = fc.Routing(experts=ids, weights=factors)
    expected, _ = forward(x, routing, w, activation="gelu", on_input=bool(on_input))
    np.testing.assert_array_equal(y, expected)


@ALL_DTYPES
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("save", [True, False])
@BOTH_PLACES
def test_backward(dtype, gated, save, on_input):
    x, grad_y, ids, factors, w = mixture(dtype, gated)
    saved_room = room(saved_bytes(x, ids, w))
    saved = bytes_of(saved_room) if save else ffi.NULL
    args = (x, ids, factors, w, xielu())
    y, grad_x = np.empty_like(x), np.full(x.shape, np.nan, dtype)
    grad_factors = np.full(factors.shape[::-1], np.nan, factors.dtype).T
    grads = fc.FFNWeights(**{n: np.full(a.shape, np.nan, dtype) for n, a in w.arrays().items()})
    fields = {"weight_on_input": on_input, "saved": saved}
    check(lib.ffncore_moe_forward(moe_args("forward", *args, y=y, **fields)))
    alphas = ffi.new("double[2]")
    fields |= {"grad_y": grad_y, "grad_x": grad_x, "grad_routing_weights": grad_factors}
    fields |= {"grad_experts": experts(grads), "grad_alpha_p": alphas, "grad_alpha_n": alphas + 1}
    check(lib.ffncore_moe_backward(moe_args("backward", *args, **fields)))

    routing = fc.Routing(experts=ids, weights=factors)
    options = {"activation": XIELU, "on_input": bool(on_input)}
    expected_y, expected = both(x, routing, w, grad_y, **options)
    np.testing.assert_array_equal(y, expected_y)
    np.testing.assert_array_equal(grad_x, expected["x"])
    np.testing.assert_array_equal(grad_factors, expected["routing_weights"])
    np.testing.assert_array_equal(list(alphas), expected["activation"])
    for name, a in grads.arrays().items():
        np.testing.assert_array_equal(a, expected[name], err_msg=name)

    fields["accumulate"] = 1
    before = {name: a.copy() for name, a in grads.arrays().items()}
    check(lib.ffncore_moe_backward(moe_args("backward", *args, **fields)))
    np.testing.assert_array_equal(grads.down, 2 * before["down"])
    np.testing.assert_array_equal(list(alphas), 2 * expected["activation"])


@pytest.mark.parametrize("name", ["x", "routing_weights", *WEIGHTS])
def test_each_gradient_may_be_alone(name):
    x, grad_y, ids, factors, w = mixture(np.float32)
    routing = fc.Routing(experts=ids, weights=factors)
    _, expected = both(x, routing, w, grad_y, activation="gelu")
    alone = np.full(expected[name].shape, np.nan, np.float32)
    if name in WEIGHTS:
        fields = {"grad_experts": only(name, alone)}
    else:
        fields = {f"grad_{name}": alone}
    args = moe_args("backward", x, ids, factors, w, lib.FFNCORE_GELU, grad_y=grad_y, **fields)
    check(lib.ffncore_moe_backward(args))
    np.testing.assert_array_equal(alone, expected[name])


@ALL_DTYPES
@pytest.mark.parametrize("gated", [True, False])
def test_packed(dtype, gated):
    x, _, ids, factors, w = mixture(dtype, gated)
    blocks = [ffi.new("ffncore_weights *", weights(w.expert(e))) for e in range(w.n_experts)]
    stride = -(-lib.ffncore_packed_bytes(code(x), blocks[0]) // 64) * 64 + 128
    packed = room(w.n_experts * stride)
    for e, raw in enumerate(blocks):
        check(lib.ffncore_pack(code(x), raw, bytes_of(packed[e * stride :])))
    y = np.full(x.shape, np.nan, dtype)
    args = moe_args("forward", x, ids, factors, w, lib.FFNCORE_SILU, y=y)
    for name in WEIGHTS:
        getattr(args.experts.first, name).data = ffi.NULL
    args.experts.first.packed = bytes_of(packed)
    args.experts.packed_stride = stride
    check(lib.ffncore_moe_forward(args))
    routing = fc.Routing(experts=ids, weights=factors)
    np.testing.assert_array_equal(y, forward(x, routing, w)[0])


def test_saved_bytes():
    """The rows of each expert are saved as a layer's: panels of 64, the last rounded up to 16."""
    x, _, ids, _, w = mixture(np.float32)
    counts = [int((ids == e).sum()) for e in range(w.n_experts)]
    alone = [lib.ffncore_saved_bytes(lib.FFNCORE_FLOAT32, t, w.d_ff, 1) for t in counts]
    assert saved_bytes(x, ids, w) == sum(alone)
    assert saved_bytes(x, np.full_like(ids, -1), w) == 0
    assert saved_bytes(x, ids[:0], w) == 0
    one = to_one(200, 2, np.float32).experts
    block = lib.ffncore_saved_bytes(lib.FFNCORE_FLOAT32, 200, w.d_ff, 1)
    assert saved_bytes(x, one, w) == block


def test_no_tokens():
    x, _, ids, factors, w = mixture(np.float32)
    args = moe_args("forward", x[:0], ids[:0], factors[:0], w, lib.FFNCORE_SILU)
    args.x.data = args.expert_ids = ffi.NULL
    check(lib.ffncore_moe_forward(args))
    up = np.full((3, 34, 18), np.nan, np.float32)
    none = (x[:0], ids[:0], factors[:0], w, lib.FFNCORE_SILU)
    args = moe_args("backward", *none, grad_experts=only("up", up))
    check(lib.ffncore_moe_backward(args))
    assert not up.any()


# ---- what is refused -----------------------------------------------------------------------------

SHARED = [
    ("size", 0, "args.size is 0"),
    ("experts.size", 1, "experts.size is 1"),
    ("experts.first.size", 2, "weights.size is 2"),
    ("activation.size", 3, "activation.size is 3"),
    ("activation.kind", 1000, "activation.kind is 1000"),
    ("experts.count", 0, "the number of experts is 0; expected at least 1"),
    ("experts.count", -5, "the number of experts is -5; expected at least 1"),
    ("experts.count", 2, "expert_ids has 2 for token"),
    ("expert_ids", ffi.NULL, "expert_ids is NULL"),
    ("x.dtype", 99, "x.dtype is 99"),
    ("x.dtype", lib.FFNCORE_FLOAT64, "weights.up has dtype float32; expected float64"),
    ("x.rows", -1, "x has -1 rows; expected at least 0"),
    ("x.rows", 2**31, "are too many; expected fewer than 2^31"),
    ("x.rows", 36, "routing_weights has shape (37, 2); expected (36, 2)"),
    ("x.cols", 17, "x has 17 columns; expected 18"),
    ("x.data", ffi.NULL, "x.data is NULL"),
    ("routing_weights.cols", 0, "top_k is 0; expected at least 1"),
    ("routing_weights.cols", -2, "top_k is -2; expected at least 1"),
    ("routing_weights.data", ffi.NULL, "routing_weights is absent; expected shape (37, 2)"),
    ("routing_weights.dtype", lib.FFNCORE_FLOAT64, "routing_weights has dtype float64"),
    ("experts.first.down.cols", 35, "weights.down has shape (18, 35); expected (18, 34)"),
    ("experts.first.gate.rows", 33, "weights.gate has shape (33, 18); expected (34, 18)"),
    ("experts.first.down.data", ffi.NULL, "weights.down is absent"),
    ("experts.first.up.dtype", lib.FFNCORE_BFLOAT16, "weights.down has dtype float32"),
    ("experts.first.b_down.length", 17, "weights.b_down has length 17; expected 18"),
    ("experts.first.b_up.dtype", lib.FFNCORE_FLOAT64, "weights.b_up has dtype float64"),
]
FORWARD = [
    ("y.data", ffi.NULL, "y is absent; expected shape (37, 18)"),
    ("y.rows", 36, "y has shape (36, 18); expected (37, 18)"),
    ("y.dtype", lib.FFNCORE_FLOAT16, "y has dtype float16; expected float32"),
]
BACKWARD = [
    ("grad_y.data", ffi.NULL, "grad_y is absent; expected shape (37, 18)"),
    ("grad_y.dtype", lib.FFNCORE_FLOAT16, "grad_y has dtype float16; expected float32"),
    ("grad_x.cols", 17, "grad_x has shape (37, 17); expected (37, 18)"),
    ("grad_x.dtype", lib.FFNCORE_FLOAT64, "grad_x has dtype float64; expected float32"),
    ("grad_routing_weights.rows", 2, "grad_routing_weights has shape (2, 2); expected (37, 2)"),
    ("grad_routing_weights.dtype", lib.FFNCORE_FLOAT64, "grad_routing_weights has dtype float64"),
    ("grad_experts.size", 0, "grad_experts.size is 0"),
    ("grad_experts.first.up.cols", 17, "grad_up has shape (34, 17); expected (34, 18)"),
    ("grad_experts.first.down.dtype", lib.FFNCORE_FLOAT64, "grad_down has dtype float64"),
    ("grad_experts.first.b_gate.length", 3, "grad_b_gate has length 3; expected 34"),
]


def untouched():
    x, grad_y, ids, factors, w = mixture(np.float32)
    made = {"y": x, "grad_x": x, "grad_routing_weights": factors}
    made = {name: np.full(a.shape, 3, np.float32) for name, a in made.items()}
    grads = fc.FFNWeights(**{n: np.full(a.shape, 3, np.float32) for n, a in w.arrays().items()})
    return (x, ids, factors, w, lib.FFNCORE_SILU), grad_y, made, grads


@pytest.mark.parametrize("path, value, sentence", SHARED + FORWARD)
def test_forward_refuses(path, value, sentence):
    args, _, made, _ = untouched()
    given = moe_args("forward", *args, y=made["y"])
    set_field(path, value)(given)
    refused(lib.ffncore_moe_forward(given), sentence)
    assert (made["y"] == 3).all()


@pytest.mark.parametrize("path, value, sentence", SHARED + BACKWARD)
def test_backward_refuses(path, value, sentence):
    args, grad_y, made, grads = untouched()
    del made["y"]
    given = moe_args("backward", *args, grad_y=grad_y, grad_experts=experts(grads), **made)
    set_field(path, value)(given)
    refused(lib.ffncore_moe_backward(given), sentence)
    assert all((a == 3).all() for a in (*made.values(), *grads.arrays().values()))


@pytest.mark.parametrize("wrong", [-2, 3, 2**31 - 1, -(2**31)])
def test_ids_out_of_range(wrong):
    x, grad_y, ids, factors, w = mixture(np.float32)
    ids[36, 1] = wrong
    y = np.full_like(x, 3)
    sentence = f"expert_ids has {wrong} for token 36; expected -1 (no expert) to 2"
    args = (x, ids, factors, w, lib.FFNCORE_SILU)
    refused(lib.ffncore_moe_forward(moe_args("forward", *args, y=y)), sentence)
    given = moe_args("backward", *args, grad_y=grad_y, grad_x=y)
    refused(lib.ffncore_moe_backward(given), sentence)
    assert saved_bytes(x, ids, w) == -1
    assert sentence in said()
    assert (y == 3).all()


def test_gradients_of_a_gate_that_is_not_there():
    x, grad_y, ids, factors, w = mixture(np.float32, gated=False)
    gate = np.full((3, 34, 18), 3, np.float32)
    args = (x, ids, factors, w, lib.FFNCORE_SILU)
    given = moe_args("backward", *args, grad_y=grad_y, grad_experts=only("gate", gate))
    sentence = "a gradient of gate or b_gate is asked for, but the experts are plain"
    refused(lib.ffncore_moe_backward(given), sentence)
    assert (gate == 3).all()


def test_null_and_numbers_of_bytes():
    refused(lib.ffncore_moe_forward(ffi.NULL), "args is NULL")
    refused(lib.ffncore_moe_backward(ffi.NULL), "args is NULL")
    x, _, ids, factors, w = mixture(np.float32)
    args = moe_args("forward", x, ids, factors, w, lib.FFNCORE_SILU, y=x.copy())
    args.experts.first.packed = bytes_of(room(1024))
    refused(lib.ffncore_moe_forward(args), "weights.packed was not written by ffncore_pack")
    here = ffi.cast("int32_t *", ids.ctypes.data)
    for given, sentence in (
        ((7, here, 37, 2, 3, 34, 1), "dtype is 7"),
        ((0, here, 37, 0, 3, 34, 1), "top_k is 0"),
        ((0, here, 37, 2, 0, 34, 1), "the number of experts is 0"),
        ((0, ffi.NULL, 37, 2, 3, 34, 1), "expert_ids is NULL"),
        ((0, here, -1, 2, 3, 34, 1), "the number of tokens is -1"),
        ((0, here, -(2**62), 4, 3, 34, 1), "expected"),
        ((0, here, 2**40, 2, 3, 34, 1), "expected fewer than 2^31"),
        ((0, here, 37, 2, 3, -1, 1), "the hidden state has shape (74, -1)"),
        ((0, here, 37, 2, 3, 2**56, 1), "the hidden state has shape"),
    ):
        assert lib.ffncore_moe_saved_bytes(*given) == -1, sentence
        assert sentence in said()
