"""Every error of fc.MoE, each one sentence."""

from functools import partial

import numpy as np
import pytest
from support import make_experts, make_weights, normal

import ffncore as fc

E, D, F, K = 6, 5, 7, 2


def wrong_layers(rng):
    experts = make_experts(rng, E, D, F)
    router = fc.Router(normal(rng, E, D), top_k=K)
    make = partial(fc.MoE, experts, "silu", router)
    yield (
        lambda: fc.MoE(experts.expert(0), "silu", router),
        "experts are weights of a single layer; expected weights with a leading",
    )
    yield (
        lambda: make(n_null_experts=2),
        "router has 6 experts; expected 8: 6 experts and 2 null experts",
    )
    yield (
        lambda: fc.MoE(experts, "silu", fc.Router(normal(rng, D, E), top_k=K)),
        r"router has 5 experts; expected 6 \(transposed\? pass the router's weight.T\)$",
    )
    yield (
        lambda: fc.MoE(experts, "silu", fc.Router(normal(rng, E + 1, D), top_k=K)),
        "router has 7 experts; expected 6$",
    )
    two = fc.FFNWeights(**{name: array[:2] for name, array in experts.arrays().items()})
    part = partial(fc.MoE, two, "silu")
    yield lambda: part(router, expert_ids=(1,)), "expert_ids has 1 numbers; expected 2"
    yield lambda: part(None, expert_ids=(1, 2)), "expert_ids is given and router is None"
    yield (
        lambda: part(router, expert_ids=(1, 6)),
        r"expert_ids is \(1, 6\); expected different numbers from 0 to 5",
    )
    yield lambda: part(router, expert_ids=(1, 1)), r"expert_ids is \(1, 1\); expected different"
    yield lambda: make(null_experts="zero"), "null_experts is 'zero'; expected one of"
    yield lambda: make(shared_gate=normal(rng, D)), "shared_gate is given and shared is None"
    yield lambda: make(latent_in=normal(rng, D, 3)), "one of latent_in and latent_out is given"
    yield (
        lambda: make(output_bias=normal(rng, D + 1)),
        r"output_bias has shape \(6,\); expected \(5,\) to match d_model 5",
    )
    yield (
        lambda: make(shared=fc.FFN(make_weights(rng, D + 1, 3), "silu")),
        "shared has d_model 6; expected 5",
    )
    yield (
        lambda: make()(normal(rng, 3, D + 1)),
        r"x has shape \(3, 6\); expected a last dimension of 5",
    )
    yield (
        lambda: make()(normal(rng, 3, D), jitter=np.ones(4)),
        r"jitter has shape \(4,\); expected one that broadcasts to x \(3, 5\)",
    )
    yield (
        lambda: make()(normal(rng, 3, D), router_x=normal(rng, 4, D)),
        r"router_x has shape \(4, 5\); expected \(3, 'd'\) to match x",
    )


def test_value_errors(rng):
    for call, sentence in wrong_layers(rng):
        with pytest.raises(ValueError, match=sentence):
            call()


def test_types(rng):
    experts = make_experts(rng, E, D, F)
    with pytest.raises(TypeError, match="n_null_experts is of type float; expected an integer"):
        fc.MoE(experts, "silu", None, n_null_experts=1.9)
    with pytest.raises(TypeError, match="activation is of type int; expected a name"):
        fc.FFN(experts.expert(0), 3)


def test_what_a_router_is(rng):
    experts, weight = make_experts(rng, E, D, F), normal(rng, E, D)
    with pytest.raises(TypeError, match=r"router is of type ndarray; expected fc.Router\(weight"):
        fc.MoE(experts, "silu", weight)
    with pytest.raises(
        TypeError, match="top_k is missing; expected the number of experts of each token"
    ):
        fc.Router(weight)
    assert "MoEGrads(" in repr(fc.moe_backward(*routed(rng, experts)))


def routed(rng, experts):
    x = normal(rng, 3, D)
    routing = fc.route(normal(rng, 3, E), K)
    y, saved = fc.moe_forward(x, routing, experts, activation="silu")
    return y, saved


def test_out_must_not_overlap(rng):
    experts = make_experts(rng, E, D, F)
    layer = fc.MoE(experts, "silu", fc.Router(normal(rng, E, D), top_k=K), combine=0.5)
    x = normal(rng, D, D)
    for out, name in ((x, "x"), (experts.expert(0).up[:D], "experts.up")):
        with pytest.raises(ValueError, match=f"out overlaps {name}; expected memory of its own"):
            layer(x, out=out)
    with pytest.raises(ValueError, match="out overlaps router_x; expected memory of its own"):
        layer(x.copy(), router_x=x, out=x)


def test_a_block_and_experts_are_not_taken_for_each_other(rng):
    with pytest.raises(
        ValueError, match="weights are those of 6 experts; expected those of a single layer"
    ):
        fc.FFN(make_experts(rng, E, D, F), "silu")


def test_type_errors(rng):
    experts = make_experts(rng, E, D, F, dtype=np.float32)
    router = fc.Router(normal(rng, E, D, dtype=np.float32), top_k=K)
    layer = fc.MoE(experts, "silu", router)
    with pytest.raises(TypeError, match="x has dtype float64; expected float32 to match"):
        layer(normal(rng, 3, D))
    with pytest.raises(
        TypeError, match="output_bias has dtype float64; expected float32 or 16 bits"
    ):
        fc.MoE(experts, "silu", router, output_bias=normal(rng, D))
    with pytest.raises(TypeError, match="shared has dtype float64; expected float32"):
        fc.MoE(experts, "silu", router, shared=fc.FFN(make_weights(rng, D, 3), "silu"))
    with pytest.raises(
        TypeError, match=r"router\.weight has dtype float64; expected float32 or 16"
    ):
        fc.MoE(experts, "silu", fc.Router(normal(rng, E, D), top_k=K))
    x = normal(rng, 3, D, dtype=np.float32)
    _, saved = layer.forward(x)
    with pytest.raises(TypeError, match="grad_y has dtype float64; expected float32"):
        layer.backward(normal(rng, 3, D), saved)
    with pytest.raises(ValueError, match=r"needs has 'experts\.upp'"):
        layer.backward(x, saved, needs=("experts.upp",))
    with pytest.raises(ValueError, match=r"out\.x overlaps x; expected memory of its own"):
        layer.backward(x.copy(), saved, out={"x": x})
