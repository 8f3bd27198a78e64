"""hypothesis: properties of every routing that fc.route makes."""

import numpy as np
import pytest
from support import same_bits
from support_routing import CASES, FLOATS

import ffncore as fc

pytest.importorskip("hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st

UNBIASED = [case for case in CASES.values() if "bias" not in case]


@st.composite
def routings(draw):
    experts = draw(st.integers(1, 70))
    tokens, k = draw(st.integers(0, 6)), draw(st.integers(1, experts))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.sampled_from([0.0, 0.1, 1.0, 30.0]))
    z = (spread * rng.standard_normal((tokens, experts))).astype(draw(st.sampled_from(FLOATS)))
    options = draw(st.sampled_from(UNBIASED))
    before = z.copy()
    routing = fc.route(z, k, **options)
    assert same_bits(z, before)
    return z, routing, options


@settings(max_examples=300)
@given(routings())
def test_experts_of_a_token_differ_and_are_in_order(case):
    z, routing, _ = case
    ids = np.sort(routing.experts, axis=-1)
    assert (np.diff(ids, axis=-1) > 0).all()
    assert ids.min(initial=0) >= 0
    assert ids.max(initial=0) < z.shape[-1]
    assert (np.diff(routing.weights, axis=-1) <= 0).all()
    assert routing.counts.sum() == routing.experts.size


@settings(max_examples=200)
@given(routings())
def test_nobody_else_has_a_larger_logit(case):
    """No other expert is better, except those with the same score as a chosen one."""
    z, routing, _ = case
    least = np.take_along_axis(z, routing.experts.astype(int), axis=-1).min(axis=-1, initial=80)
    others = z.copy()
    np.put_along_axis(others, routing.experts.astype(int), -np.inf, axis=-1)
    saturated = 16 if z.dtype == np.float32 else 36  # where the sigmoid rounds to 1
    most = np.minimum(others.max(axis=-1, initial=-np.inf), saturated)
    assert (most <= least + 1e-3 * (1 + np.abs(least))).all()


@settings(max_examples=200)
@given(routings())
def test_normalized_weights_sum_to_the_factor(case):
    _, routing, options = case
    if options.get("norm_topk_prob", True) and not {"norm_eps", "norm_min"} & set(options):
        factor = options.get("routed_scaling_factor", 1.0)
        np.testing.assert_allclose(routing.weights.sum(axis=-1), factor, rtol=2e-6)
