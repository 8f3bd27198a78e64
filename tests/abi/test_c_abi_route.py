"""Routing through the C ABI: the same bits as from Python, and the error texts."""

import numpy as np
import pytest
from c_abi import check, ffi, lib, matrix, refused, set_field, vector
from support import normal, same_bits

import ffncore as fc

FLOATS = [np.dtype(np.float32), np.dtype(np.float64)]
T, E, K = 37, 24, 3


def router(score_fn=None, **options):
    value = ffi.new("ffncore_router *")
    lib.ffncore_router_init(value, lib.FFNCORE_SCORE_SIGMOID if score_fn is None else score_fn)
    for name, option in options.items():
        setattr(value, name, option)
    return value[0]


def route_args(z, ids, weights, given=False, **options):
    args = ffi.new("ffncore_route_args *")
    args.size = ffi.sizeof("ffncore_route_args")
    args.router = router(**options)
    args.logits, args.weights = matrix(z), matrix(weights)
    args.experts = ffi.cast("int32_t *", ids.__array_interface__["data"][0])
    args.expert_stride = ids.strides[0] // ids.itemsize
    args.experts_given = given
    return args


def backward_args(grad, ids, z, grad_z, **options):
    args = ffi.new("ffncore_route_backward_args *")
    args.size = ffi.sizeof("ffncore_route_backward_args")
    args.router = router(**options)
    args.logits, args.grad_weights, args.grad_logits = matrix(z), matrix(grad), matrix(grad_z)
    args.experts = ffi.cast("int32_t *", ids.__array_interface__["data"][0])
    args.expert_stride = ids.strides[0] // ids.itemsize
    return args


def arrays(rng, dtype=FLOATS[0]):
    return normal(rng, T, E, dtype=dtype), np.full((T, K), -7, np.int32), np.zeros((T, K), dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_route_and_its_backward_pass(dtype, rng):
    z, _, _ = arrays(rng, dtype)
    z_by_columns = np.asfortranarray(z)  # the arguments keep no array alive
    bias = normal(rng, 2 * E, dtype=dtype)[::2]
    ids = np.full((T, K + 2), -7, np.int32)[:, :K]  # rows with gaps between them
    weights = np.zeros((K, T), dtype).T
    options = {"norm_eps": 0.25, "routed_scaling_factor": 2.5, "n_group": 4, "topk_group": 2}
    check(lib.ffncore_route(route_args(
        z_by_columns, ids, weights, e_score_correction_bias=vector(bias), **options
    )))  # fmt: skip
    routing = fc.route(z, K, score_fn="sigmoid", e_score_correction_bias=bias, **options)
    np.testing.assert_array_equal(ids, routing.experts)
    assert same_bits(weights, routing.weights)

    grad, grad_z = normal(rng, T, K, dtype=dtype), np.full((E, T), np.nan, dtype).T
    check(lib.ffncore_route_backward(backward_args(grad, ids, z, grad_z, **options)))
    assert same_bits(grad_z, fc.route_backward(grad, routing))


def test_experts_given_and_the_log_of_the_sum(rng):
    z, ids, weights = arrays(rng)
    ids[:] = rng.permuted(np.tile(np.arange(E), (T, 1)), axis=1)[:, :K]
    ids[4, 1] = -1
    sums = np.zeros(2 * T, np.float32)[::2]
    args = route_args(z, ids, weights, True, score_fn=lib.FFNCORE_SCORE_SOFTMAX)
    args.log_sum_exp = vector(sums)
    check(lib.ffncore_route(args))
    assert same_bits(weights, fc.route(z, K, experts=ids).weights)
    exact = np.log(np.exp(z.astype(np.float64)).sum(axis=1))
    np.testing.assert_allclose(sums, exact, rtol=2e-7)


def test_no_tokens():
    z, ids, weights = np.ones((0, E)), np.ones((0, K), np.int32), np.ones((0, K))
    check(lib.ffncore_route(route_args(z, ids, weights)))
    check(lib.ffncore_route_backward(backward_args(weights, ids, z, z)))


INF = float("inf")


@pytest.mark.parametrize(
    "path, value, sentence",
    [
        ("size", 0, "args.size"),
        ("router.size", 0, "router.size"),
        ("router.score_fn", 4, "router.score_fn is 4; expected 0 to 3"),
        ("router.norm_eps", -1.0, "router has norm_eps -1 and norm_min 0"),
        ("router.norm_min", float("nan"), "expected no negative number"),
        ("router.routed_scaling_factor", INF, "router.routed_scaling_factor is inf"),
        ("logits.dtype", 99, "logits.dtype is unknown; expected float32 or float64"),
        ("logits.dtype", 3, "logits.dtype is float16; expected float32 or float64"),
        ("logits.rows", -1, "logits has shape (-1, 24)"),
        ("logits.cols", 0, "logits has shape (37, 0); expected (T, E)"),
        ("logits.cols", 2**31, "expected (T, E), E from 1 to 2^31 - 1"),
        ("logits.data", ffi.NULL, "logits is absent"),
        ("experts", ffi.NULL, "experts is NULL"),
    ],
)
def test_both_refuse(path, value, sentence, rng):
    z, ids, weights = arrays(rng)
    grad_z = np.full_like(z, 3)
    for args, function in (
        (route_args(z, ids, weights), lib.ffncore_route),
        (backward_args(weights, np.zeros_like(ids), z, grad_z), lib.ffncore_route_backward),
    ):
        set_field(path, value)(args)
        refused(function(args), sentence)
    assert (ids == -7).all()
    assert (weights == 0).all()
    assert (grad_z == 3).all()


@pytest.mark.parametrize(
    "path, value, sentence",
    [
        ("router.n_group", 5, "router.n_group is 5; expected a divisor of 24 experts"),
        ("router.n_group", 0, "router.n_group is 0"),
        ("router.n_group", 24, "groups of one expert; expected at least two"),
        ("router.topk_group", 2, "router.topk_group is 2; expected 1 to 1"),
        ("router.group_score", 2, "router.group_score is 2; expected 0 or 1"),
        ("router.e_score_correction_bias", vector(np.ones(7, np.float32)),
         "router.e_score_correction_bias has length 7; expected 24"),
        ("router.e_score_correction_bias", vector(np.ones(24)),
         "router.e_score_correction_bias has dtype float64; expected float32"),
        ("weights.rows", 36, "weights has shape (36, 3); expected (37, 3)"),
        ("weights.cols", 0, "weights has shape (T, 0); expected at least one expert a token"),
        ("weights.cols", 25, "k is 25; expected at most 24 experts"),
        ("weights.dtype", 1, "weights has dtype float64; expected float32"),
        ("weights.data", ffi.NULL, "weights is absent"),
        ("log_sum_exp", vector(np.ones(37, np.float32)),
         "log_sum_exp is given; expected it only with FFNCORE_SCORE_SOFTMAX"),
        ("log_sum_exp", vector(np.ones(36, np.float32)), "log_sum_exp has length 36; expected 37"),
    ],
)  # fmt: skip
def test_route_refuses(path, value, sentence, rng):
    z, ids, weights = arrays(rng)
    args = route_args(z, ids, weights)
    set_field(path, value)(args)
    refused(lib.ffncore_route(args), sentence)
    assert (ids == -7).all()


def test_experts_that_are_none(rng):
    z, ids, weights = arrays(rng)
    ids[:] = 0
    ids[8, 1] = E
    sentence = "experts has 24 at (8, 1); expected -1 to 23"
    refused(lib.ffncore_route(route_args(z, ids, weights, True)), sentence)
    grad_z = np.full_like(z, 3)
    refused(lib.ffncore_route_backward(backward_args(weights, ids, z, grad_z)), sentence)
    assert (grad_z == 3).all()
    grads = backward_args(weights, np.zeros_like(ids), z, grad_z)
    grads.grad_logits.cols -= 1
    refused(lib.ffncore_route_backward(grads), "grad_logits has shape (37, 23); expected (37, 24)")


def test_null():
    refused(lib.ffncore_route(ffi.NULL), "args is NULL")
    refused(lib.ffncore_route_backward(ffi.NULL), "args is NULL")
    lib.ffncore_router_init(ffi.NULL, lib.FFNCORE_SCORE_SOFTMAX)
