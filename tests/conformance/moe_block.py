"""Blocks with experts of the transformers library, and the fc.MoE that computes the same.

A Family has the names of the block's tensors and the options of fc.MoE with which it computes the
same numbers; families only differ in these. families_softmax.py and families_sigmoid.py have them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from blocks import HEADS, Arrays, D, E, F, Get, K, Tensors, block_of, configuration, fill
from moe_tensors import concat, separate

import ffncore as fc


@dataclass(frozen=True)
class Family:
    module: str
    config: str
    block: str
    arguments: dict[str, Any]
    routing: dict[str, Any]  # options of fc.Router
    block_arguments: tuple[Any, ...] = ()
    router: str = "gate.weight"
    router_bias: str | None = None
    correction: str | None = None  # e_score_correction_bias
    experts: Callable[[Get], Arrays] = concat
    shared: str | None = None
    shared_form: Callable[[Get, str], Arrays] = separate
    more: dict[str, str] = field(default_factory=dict)  # other arrays of fc.MoE, and their tensors
    activation: str | fc.Activation = "silu"
    shared_activation: str | fc.Activation | None = None  # None: the activation of the experts
    options: dict[str, Any] = field(default_factory=dict)  # options of fc.MoE
    without: tuple[str, ...] = ()  # the parameters whose gradients are not compared
    prepare: Callable[[Any], Any] = lambda block: block
    selection: float = -0.6  # the mean of the biases of the selection
    float32_alone: bool = False  # a block that mixes types in float64
    wrapper: Any = None  # if no class of the library is the block: one made here from its config

    def make(self, rng: np.random.Generator, dtype: Any) -> Any:
        config = configuration(self.module, self.config, **self.arguments)
        if self.wrapper is not None:
            return fill(self.wrapper(config), rng, dtype, self.selection)
        block = block_of(self.module, self.block, config, *self.block_arguments)
        return fill(self.prepare(block), rng, dtype, self.selection)

    def arrays(self, get: Get) -> Arrays:
        found = {"router_weight": get(self.router)}
        if self.router_bias is not None:
            found["router_bias"] = get(self.router_bias)
        for name, tensor in self.more.items():
            array = get(tensor)
            found[name] = array[0] if name == "shared_gate" else array
        found |= {f"experts.{n}": a for n, a in self.experts(get).items()}
        if self.shared is not None:
            form = self.shared_form(get, self.shared)
            found |= {f"shared.{n}": a for n, a in form.items()}
        return found

    def layer(self, get: Tensors) -> fc.MoE:
        found = self.arrays(get)

        def group(prefix: str) -> fc.FFNWeights:
            names = [name for name in found if name.startswith(prefix)]
            return fc.FFNWeights(**{n.removeprefix(prefix): found.pop(n) for n in names})

        experts = group("experts.")
        shared = None
        if self.shared is not None:
            shared = fc.FFN(group("shared."), self.shared_activation or self.activation)
        routing = dict(self.routing)
        if self.correction is not None:
            routing["e_score_correction_bias"] = get(self.correction).reshape(-1)
        router = fc.Router(
            found.pop("router_weight"),
            bias=found.pop("router_bias", None),
            per_expert_scale=found.pop("per_expert_scale", None),
            **routing,
        )
        return fc.MoE(experts, self.activation, router, shared=shared, **found, **self.options)


SIZES = {"hidden_size": D, **HEADS}
LOCAL = {"num_local_experts": E, "num_experts_per_tok": K, **SIZES}
PLAIN = {"num_experts": E, "num_experts_per_tok": K, "moe_intermediate_size": F, **SIZES}
ROUTED = {"n_routed_experts": E, "num_experts_per_tok": K, "moe_intermediate_size": F, **SIZES}
GROUPED = {"n_group": 4, "topk_group": 2}
SCALED = {"routed_scaling_factor": 2.5}

SOFTMAX = {"top_k": K}
UNNORMALIZED = {"top_k": K, "norm_topk_prob": False}
SOFTMAX_AFTER = {"top_k": K, "score_fn": "softmax_topk"}
SIGMOID = {"top_k": K, "score_fn": "sigmoid"}
SIGMOID_V3 = {**SIGMOID, "norm_eps": 1e-20, **SCALED}

CORRECTION = "gate.e_score_correction_bias"
SHARED = "shared_experts."


def clamped(limit: float) -> fc.Activation:
    """As in gpt-oss."""
    return fc.Activation("silu", alpha=1.702, limit=limit, up_offset=1.0)
