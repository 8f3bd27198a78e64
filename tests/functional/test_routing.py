"""fc.route and fc.route_backward against the reference, and fc.Routing."""

# ruff: noqa: ARG001 (a test names the fixtures that it runs under)

import itertools

import numpy as np
import pytest
from support import (
    FLUSH_TO_ZERO,
    in_every_isa,
    mxcsr_bits,
    normal,
    rms,
    same_bits,
    strided_copies,
    unaligned,
)
from support_routing import CASES, FLOATS, GROUPS, options_of, weighting

import ffncore as fc
from ffncore import reference

INF = np.inf
TOLERANCE = {FLOATS[0]: 4e-6, FLOATS[1]: 2e-14}
EXPERTS = (1, 2, 3, 7, 8, 15, 16, 17, 33, 60, 64, 128, 255, 256, 384, 512)


def far_apart(rng, tokens, experts, dtype):
    """Logits with large gaps, so that rounding does not change their order, shuffled per token."""
    # Not evenly spaced, because sums of two would be equal.
    steps = np.arange(experts) + 0.3 * np.sin(np.arange(experts) ** 2)
    z = np.tile(steps * 6 / experts - 3, (tokens, 1))
    return rng.permuted(z, axis=1).astype(dtype)


def check_case(rng, case, tokens, experts, k, dtype, **groups):
    options = {**options_of(case, rng, experts, dtype), **groups}
    z = far_apart(rng, tokens, experts, dtype)
    grad = normal(rng, tokens, k, dtype=dtype)

    def both_passes():
        routing = fc.route(z, k, **options)
        return routing.experts, routing.weights, fc.route_backward(grad, routing)

    in_every_isa(both_passes)
    routing = fc.route(z, k, **options)
    assert routing.experts.dtype == np.int32
    assert routing.experts.flags.c_contiguous
    assert routing.weights.dtype == dtype
    # float32 may swap two values that a bias has brought close.
    wide = reference.route(z, k, **options)
    if dtype == np.float64:
        np.testing.assert_array_equal(routing.experts, wide.experts)
    exact = reference.route(z, k, experts=routing.experts, **weighting(options)).weights
    where = f"T={tokens} E={experts} k={k}"
    np.testing.assert_allclose(
        routing.weights, exact, rtol=TOLERANCE[dtype], atol=1e-37, err_msg=where
    )
    differ = (routing.experts != wide.experts).any(axis=-1)
    assert differ.sum() <= max(1, tokens // 10), where
    found = fc.route_backward(grad, routing)
    assert found.dtype == dtype
    exact = reference.route_backward(grad, z, routing.experts, **weighting(options))
    scale = max(1e-30, float(np.abs(exact).max(initial=0)))
    assert np.abs(found - exact).max(initial=0) <= 4 * TOLERANCE[dtype] * max(scale, 1), where


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_against_the_reference(case, dtype, rng):
    for experts in EXPERTS:
        for k in sorted({1, 2, 3, 8, 16, 17, 40, experts}):
            if k <= experts:
                check_case(rng, case, 5, experts, k, dtype)
    for tokens in (0, 1, 67):
        check_case(rng, case, tokens, 60, 4, dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", GROUPS.values(), ids=GROUPS)
def test_groups_against_the_reference(case, dtype, rng):
    for experts, n_group, topk_group in (
        *((8, 4, 2), (6, 3, 3), (160, 8, 3), (256, 8, 4), (64, 32, 5), (33, 3, 1), (384, 2, 1)),
    ):
        left = experts // n_group * topk_group
        for k in sorted({1, 3, 8, left}):
            if k <= left:
                groups = {"n_group": n_group, "topk_group": topk_group}
                check_case(rng, case, 30, experts, k, dtype, **groups)


def test_groups_of_one_expert_by_their_largest(isa):
    z = np.array([[1.0, 4.0, 3.0, 2.0]])
    routing = fc.route(z, 2, n_group=4, topk_group=2, group_score="max")
    np.testing.assert_array_equal(routing.experts, [[1, 2]])


def test_a_mask_of_zero_is_above_negative_values(isa):
    """As in transformers 4.57, a masked expert is preferred to one with score + bias below 0."""
    z = np.zeros((1, 6))
    bias = np.array([-0.1, -0.8, -0.9, -0.9, -0.9, -0.9])
    options = {"score_fn": "sigmoid", "e_score_correction_bias": bias, "n_group": 3}
    options |= {"topk_group": 1}
    masked = fc.route(z, 2, **options)
    np.testing.assert_array_equal(masked.experts, [[0, 1]])
    zero = fc.route(z, 2, **options, group_mask_value=0)
    np.testing.assert_array_equal(zero.experts, [[0, 2]])


# ---- accuracy -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mixtral", "gpt-oss", "sigmoid", "deepseek v4", "olmoe"])
def test_error_beside_numpy_in_float32(name, isa, rng):
    options = options_of(CASES[name], rng, 256, FLOATS[0])
    z = 2 * normal(rng, 200, 256, dtype=np.float32)
    routing = fc.route(z, 8, **options)
    given = {"experts": routing.experts, **weighting(options)}
    exact = reference.route(z, 8, **given).weights
    numpys = reference.route(z, 8, dtype=np.float32, **given).weights
    assert rms(routing.weights / exact - 1) <= 1.5 * rms(numpys / exact - 1)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_far_tails_of_sqrtsoftplus(isa, dtype):
    """e^z underflows long before its root: weights and gradients are right down to e^(z / 2)."""
    z = np.array([-200, -150, -104, -88, -40, -1, 0, 1, 40, 1e4], dtype)[:, None]
    routing = fc.route(z, 1, score_fn="sqrtsoftplus", norm_topk_prob=False)
    exact = reference.route(z, 1, score_fn="sqrtsoftplus", norm_topk_prob=False)
    close = {"rtol": 10 * TOLERANCE[dtype], "atol": 1e-45}
    np.testing.assert_allclose(routing.weights, exact.weights, **close)
    assert (routing.weights > 0).all()
    found = fc.route_backward(np.ones_like(z), routing)
    below = z[:, 0] < -20
    half = np.exp(z[below].astype(np.float64) / 2) / 2
    np.testing.assert_allclose(found[below], half, rtol=1e-6, atol=3e-45)
    assert np.isfinite(found).all()


# ---- gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [*CASES.values(), *GROUPS.values()], ids=[*CASES, *GROUPS])
def test_gradient_by_central_differences(case, isa, rng):
    options = options_of(case, rng, 16, FLOATS[1])
    if case in GROUPS.values():
        options |= {"n_group": 4, "topk_group": 2}
    z = far_apart(rng, 6, 16, FLOATS[1])
    chosen = fc.route(z, 3, **options).experts

    def fn(z):
        routing = fc.route(z, 3, **options)
        np.testing.assert_array_equal(routing.experts, chosen)  # no kink is crossed
        return routing.weights, lambda grad: fc.route_backward(grad, routing)

    fc.check_gradients(fn, [z], samples=96)


def test_who_has_a_gradient(isa, rng):
    z, grad = normal(rng, 9, 24), normal(rng, 9, 4)
    everybody = fc.route_backward(grad, fc.route(z, 4, norm_topk_prob=False))
    assert (everybody != 0).all()
    for options in ({}, {"score_fn": "softmax_topk"}, {"score_fn": "sigmoid", "norm_eps": 0.1},
                    {"score_fn": "sqrtsoftplus", "norm_topk_prob": False}):  # fmt: skip
        routing = fc.route(z, 4, **options)
        found = fc.route_backward(grad, routing)
        chosen = np.zeros(z.shape, bool)
        np.put_along_axis(chosen, routing.experts.astype(int), True, axis=-1)
        np.testing.assert_array_equal(found != 0, chosen)


def test_the_divisor_is_a_constant_where_the_minimum_is_reached(isa):
    z = np.array([[0.0, -1.0, -2.0]])
    routing = fc.route(z, 2, score_fn="sigmoid", norm_min=10.0)
    s = 1 / (1 + np.exp(-z))
    np.testing.assert_allclose(routing.weights, s[:, :2] / 10)
    found = fc.route_backward(np.ones((1, 2)), routing)
    np.testing.assert_allclose(found, [[*(s * (1 - s) / 10)[0, :2], 0]])


# ---- ties and NaN -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_ties_go_to_the_lowest_index(isa, dtype, rng):
    for experts, k in itertools.product((8, 60, 256, 300), (1, 3, 8, 20)):
        if k > experts:
            continue
        z = rng.integers(0, 4, (20, experts)).astype(dtype)
        for options in ({}, {"score_fn": "sigmoid"}, {"score_fn": "softmax_topk"}):
            found = fc.route(z, k, **options).experts
            expected = np.argsort(-z, axis=-1, kind="stable")[:, :k]
            np.testing.assert_array_equal(found, expected)
    zeros = np.array([[-0.0, 0.0, -0.0, 0.0]], dtype)
    assert fc.route(zeros, 3, score_fn="softmax_topk").experts.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("score_fn", ["softmax", "sigmoid", "sqrtsoftplus", "softmax_topk"])
def test_nan_stays_with_its_token(score_fn, isa, dtype, rng):
    z = normal(rng, 30, 40, dtype=dtype)
    clean = fc.route(z, 6, score_fn=score_fn)
    clean_grad = fc.route_backward(clean.weights, clean)
    z[[3, 11, 12], [5, 0, 39]] = np.nan
    z[20] = np.nan
    z[21, ::3] = INF
    z[22] = -INF
    routing = fc.route(z, 6, score_fn=score_fn)
    sick = np.array([3, 11, 12, 20])
    well = np.setdiff1d(np.arange(30), [*sick, 21, 22])
    np.testing.assert_array_equal(routing.experts[well], clean.experts[well])
    assert same_bits(routing.weights[well], clean.weights[well])
    assert np.isnan(routing.weights[sick]).any(axis=-1).all()
    for ids in routing.experts:
        assert len(set(ids.tolist())) == 6
    assert routing.experts.min() >= 0
    assert routing.experts.max() < 40
    if score_fn != "softmax":  # then all scores of the token are NaN
        assert routing.experts[[3, 11, 12], 0].tolist() == [5, 0, 39]
    np.testing.assert_array_equal(
        routing.experts, reference.route(z, 6, score_fn=score_fn, dtype=dtype).experts
    )
    grad = fc.route_backward(clean.weights, routing)
    assert same_bits(grad[well], clean_grad[well])
    assert np.isnan(grad[sick]).any(axis=-1).all()


def test_nan_in_groups(isa, rng):
    z = normal(rng, 8, 24)
    z[:, 17] = np.nan
    routing = fc.route(z, 4, score_fn="sigmoid", n_group=4, topk_group=2)
    assert (routing.experts[:, 0] == 17).all()
    exact = reference.route(z, 4, score_fn="sigmoid", n_group=4, topk_group=2)
    np.testing.assert_array_equal(routing.experts, exact.experts)


# ---- one answer, shapes, strides ----------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.usefixtures("always_threads")
def test_one_answer(dtype, rng):
    cases = [(case, {}) for case in CASES.values()]
    cases += [(case, {"n_group": 4, "topk_group": 2}) for case in GROUPS.values()]
    for case, groups in cases:
        for experts, k in ((60, 6), (260, 30)):
            options = {**options_of(case, rng, experts, dtype), **groups}
            z, grad = 3 * normal(rng, 301, experts, dtype=dtype), normal(rng, 301, k, dtype=dtype)

            def run(z, grad, k=k, options=options):
                routing = fc.route(z, k, **options)
                return routing.experts, routing.weights, fc.route_backward(grad, routing)

            first = run(z, grad)
            for isa, threads in itertools.product(fc.available_isas(), (1, 2, 3)):
                with fc.using_isa(isa), fc.num_threads(threads):
                    for found, expected in zip(run(z, grad), first, strict=True):
                        assert same_bits(found, expected), (case, isa, threads)
            with mxcsr_bits(FLUSH_TO_ZERO):  # the caller's floating-point mode has no effect
                flushed = run(z, grad)
            for found, expected in zip(flushed, first, strict=True):
                assert same_bits(found, expected), case
            alone = run(z[7], grad[7])
            few = run(z[5:9], grad[5:9])
            for one, some, expected in zip(alone, few, first, strict=True):
                assert same_bits(one, expected[7])
                assert same_bits(some, expected[5:9])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_strides(isa, dtype, rng):
    z, grad = normal(rng, 3, 5, 20, dtype=dtype), normal(rng, 3, 5, 4, dtype=dtype)
    bias = normal(rng, 20, dtype=dtype)
    options = {"score_fn": "sigmoid", "e_score_correction_bias": bias, "n_group": 2}
    options |= {"topk_group": 1}
    expected = fc.route(z, 4, **options)
    expected_grad = fc.route_backward(grad, expected)
    assert expected.experts.shape == expected.weights.shape == (3, 5, 4)
    for z2, grad2, bias2 in zip(
        [*strided_copies(z), unaligned(z)],
        [*strided_copies(grad), unaligned(grad)],
        [*strided_copies(bias), unaligned(bias)],
        strict=True,
    ):
        routing = fc.route(z2, 4, **{**options, "e_score_correction_bias": bias2})
        assert same_bits(routing.experts, expected.experts)
        assert same_bits(routing.weights, expected.weights)
        assert same_bits(fc.route_backward(grad2, routing), expected_grad)
    same = np.broadcast_to(z[0, 0], (7, 20))
    assert same_bits(fc.route(same, 4).weights, fc.route(same.copy(), 4).weights)
    for shape in ((0, 20), (3, 0, 20), (20,)):
        none = np.ones(shape, dtype)
        routing = fc.route(none, 4)
        assert routing.weights.shape == (*shape[:-1], 4)
        assert fc.route_backward(routing.weights, routing).shape == shape


# ---- experts= ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", ["mixtral", "olmoe", "gpt-oss", "softmax, eps", "minimum"])
def test_experts_given(name, isa, dtype, rng):
    """In any order and with empty slots, as in layers that choose experts by a hash."""
    options = CASES[name]
    z, grad = normal(rng, 2, 9, 30, dtype=dtype), normal(rng, 2, 9, 5, dtype=dtype)
    ids = rng.permuted(np.tile(np.arange(30), (2, 9, 1)), axis=-1)[..., :5]
    ids[0, :, 2] = -1
    ids[1, 3] = -1
    routing = fc.route(z, 5, **options, experts=ids)
    np.testing.assert_array_equal(routing.experts, ids)
    exact = reference.route(z, 5, **options, experts=ids)
    np.testing.assert_allclose(routing.weights, exact.weights, rtol=4 * TOLERANCE[dtype])
    assert (routing.weights[ids < 0] == 0).all()
    found = fc.route_backward(grad, routing)
    exact = reference.route_backward(grad, z, ids, **options)
    np.testing.assert_allclose(found, exact, rtol=0, atol=10 * TOLERANCE[dtype])
    assert (found[1, 3] == 0).all()
    again = fc.route(z, 5, **options, experts=fc.route(z, 5, **options).experts)
    assert same_bits(again.weights, fc.route(z, 5, **options).weights)


# ---- fc.Routing ---------------------------------------------------------------------------------


def test_routing_of_ones_own(rng):
    ids = np.array([[3, 0], [-1, 3], [2, -1]])
    weights = normal(rng, 3, 2, dtype=np.float32)
    routing = fc.Routing(experts=ids, weights=weights, n_experts=5)
    assert routing.experts.dtype == np.int32
    assert routing.weights is weights
    assert routing.top_k == 2
    assert routing.counts.tolist() == [1, 0, 1, 2, 0]
    assert routing.counts.dtype == np.int64
    assert repr(routing) == "Routing(experts=(3, 2), weights=float32, n_experts=5)"
    unknown = fc.Routing(experts=ids.astype(np.uint8) % 9, weights=weights)
    assert unknown.n_experts is None
    with pytest.raises(AttributeError, match="cannot be changed"):
        routing.weights = weights


def test_counts(isa, rng):
    routing = fc.route(normal(rng, 4, 50, 12), 3)
    assert routing.n_experts == 12
    expected = np.bincount(routing.experts.ravel(), minlength=12)
    np.testing.assert_array_equal(routing.counts, expected)
    assert fc.route(np.ones((0, 12)), 3).counts.tolist() == [0] * 12
