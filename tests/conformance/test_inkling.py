"""Inkling: the router normalizes the weights of shared experts together with the chosen ones.

    weights = c sigmoid(z) / sum of sigmoid(z),  both over the chosen experts and the shared ones

In fc.MoE the shared experts are further experts, which a router of this test adds to those that
fc.route has chosen. The scale c is one trainable number in the library, and one per expert here.
"""

from types import SimpleNamespace

import numpy as np
from blocks import (
    HEADS,
    D,
    E,
    F,
    K,
    Tensors,
    block_of,
    compare,
    configuration,
    fill,
    generator,
    near,
    no_near_ties,
    torch,
)
from moe_tensors import concat

import ffncore as fc

SHARED = 2


def test_block():
    rng = generator("inkling")
    config = configuration(
        *("inkling", "InklingTextConfig"),
        hidden_size=D,
        moe_intermediate_size=F,
        n_routed_experts=E,
        n_shared_experts=SHARED,
        num_experts_per_tok=K,
        route_scale=2.5,
        **HEADS,
    )
    block = fill(block_of("inkling", "InklingMoE", config), rng)
    get = Tensors(block.state_dict())
    bias = get("gate.e_score_correction_bias")

    def route(logits):
        chosen = fc.route(
            logits[..., :E],
            K,
            score_fn="sigmoid",
            e_score_correction_bias=bias.astype(logits.dtype),
        ).experts
        always = np.broadcast_to(np.arange(E, E + SHARED), (*chosen.shape[:-1], SHARED))
        both = np.concatenate([chosen, always], axis=-1)
        return fc.route(
            logits, K + SHARED, score_fn="sigmoid", experts=both, routed_scaling_factor=2.5
        )

    def arrays(get):
        routed = concat(get)
        found = {"router_weight": get("gate.weight")}
        for name in ("gate", "up", "down"):
            shared = get(f"shared_experts.{name}_proj")
            found[f"experts.{name}"] = np.concatenate([routed[name], shared])
        return found

    found = arrays(get)
    scale = get("gate.global_scale")
    router = fc.Router(
        found["router_weight"], per_expert_scale=np.repeat(scale, E + SHARED), route=route
    )
    experts = {name: found[f"experts.{name}"] for name in ("gate", "up", "down")}
    layer = fc.MoE(fc.FFNWeights(**experts), "silu", router)
    x = rng.standard_normal((2, 5, D))
    no_near_ties(layer, x)
    compared = SimpleNamespace(
        forward=layer.forward,
        backward=lambda grad, saved: layer.backward(grad, saved, needs=("x", *found)),
    )
    compare(block, compared, arrays, x, rng, without=("gate.global_scale",))

    for parameter in block.parameters():
        parameter.grad = None
    (block(torch.from_numpy(x)) ** 2).sum().backward()
    y, saved = layer.forward(x)
    grads = layer.backward(2 * y, saved)
    total = grads.per_expert_scale.sum(keepdims=True)
    near(total, block.gate.global_scale.grad.numpy(), "scale")
