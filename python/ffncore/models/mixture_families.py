"""MOE_FAMILIES: how model families name, store and route their mixtures of experts, one row each.

The name of a tensor is, after any prefix, layer.format(number) followed by a name of the row.
Experts are stored in one of two forms, and either is found:

    one by one   three tensors for each expert, in whose names {} stands for its number
    stacked      gate and up in one tensor [E, 2 f, d], down [E, d, f]; or [E, d, 2 f], [E, f, d]

A row says which keys of config.json become options of fc.Router. A layer without router and experts
is a dense layer, such as the first layers of DeepSeek-V3 and every other layer of Llama 4.
mixture_loading.py reads the layers. The routers are those of the model code in transformers 5, with
which tests/conformance compares them. Tests: tests/models/test_models_moe.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .families import FAMILIES, Family

_LLAMA = next(row for row in FAMILIES if row.name == "llama")
_PROJECTIONS = ("gate_proj.weight", "up_proj.weight", "down_proj.weight")


def _each(start: str) -> tuple[str, ...]:
    return tuple(start + name for name in _PROJECTIONS)


@dataclass(frozen=True)
class MoEFamily:
    """How a model family names, stores and routes its experts.

    name                of the family, for family= of fc.load
    model_types         the values of model_type in config.json that belong to it
    routing             options of fc.Router
    told                options of fc.Router that are keys of config.json
    norm_eps            the option norm_eps, if the weights are divided by their sum
    groups              options of fc.Router if there are groups; n_group and topk_group are in
                        config.json
    group_method        the topk_method in config.json with which there are groups; None: always
    only                keys of config.json, and the only value of each that ffncore computes
    layer               the first part of the names, as in Family
    router              the name of the router's matrix
    router_bias         the name of its bias
    correction_bias     the name of e_score_correction_bias
    experts             the names of gate, up and down of an expert; {} stands for its number
    stacked             the names of gate and up in one tensor, and of down, for all experts
    stacked_bias        what is added to these names for biases
    in_out              whether stacked matrices are [in, out]
    layout              of gate and up in one tensor, as in FFNWeights.from_gate_up
    shared              the names of the shared expert: gate, up, down, or gate and up in one, down
    shared_gate         the name of its gate
    shared_if           by model_type, whether there is a shared expert: True, False, or a key of
                        config.json that is above 0 if there is one. With any other model_type,
                        there is one if its tensors exist
    on_input            the option apply_router_weight_on_input of fc.MoE
    activation_keys     as in Family
    activation_options  options of fc.Activation: numbers, or keys of config.json that have them
    dense               the Family of layers without experts
    """

    name: str
    model_types: tuple[str, ...]
    routing: Mapping[str, Any] = field(default_factory=dict)
    told: tuple[str, ...] = ()
    norm_eps: float = 0.0
    groups: Mapping[str, Any] | None = None
    group_method: str | None = None
    only: Mapping[str, str] = field(default_factory=dict)
    layer: str = "layers.{}."
    router: str = "mlp.gate.weight"
    router_bias: str | None = None
    correction_bias: str | None = None
    experts: tuple[str, ...] = ()
    stacked: tuple[str, str] = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
    stacked_bias: str | None = None
    in_out: bool = False
    layout: str = "concat"
    shared: tuple[str, ...] = ()
    shared_gate: str | None = None
    shared_if: Mapping[str, bool | str] = field(default_factory=dict)
    on_input: bool = False
    activation_keys: tuple[str, ...] = ("hidden_act",)
    activation_options: Mapping[str, float | str] = field(default_factory=dict)
    dense: Family = field(default=_LLAMA)

    def __hash__(self) -> int:
        return hash(self.name)  # the mappings cannot be hashed

    @property
    def blocks(self) -> tuple[str, ...]:
        """Starts of names that only the tensors of the mixture have."""
        return tuple({name.split(".")[0] + "." for name in (self.router, *self.shared)})

    @property
    def starts(self) -> tuple[str, ...]:
        """Starts of names that show that the layer has experts of this family."""
        experts = {name.split("{}")[0] for name in self.experts}
        return (self.router.removesuffix("weight"), *experts, *self.stacked)


_SOFTMAX_AFTER = {"score_fn": "softmax_topk"}

MOE_FAMILIES = (
    MoEFamily(
        "mixtral",
        ("mixtral",),
        router="block_sparse_moe.gate.weight",
        experts=tuple(f"block_sparse_moe.experts.{{}}.{w}.weight" for w in ("w1", "w3", "w2")),
    ),
    MoEFamily(
        "qwen2_moe",
        ("qwen2_moe", "qwen3_moe", "olmoe"),
        told=("norm_topk_prob",),
        experts=_each("mlp.experts.{}."),
        shared=_each("mlp.shared_expert."),
        shared_gate="mlp.shared_expert_gate.weight",
        shared_if={"qwen2_moe": True, "qwen3_moe": False, "olmoe": False},
    ),
    MoEFamily(
        "deepseek_v2",
        ("deepseek_v2",),
        {"norm_topk_prob": False},  # its config.json has the key, but its code does not use it
        told=("routed_scaling_factor",),
        groups={"group_score": "max", "group_mask_value": 0.0},
        group_method="group_limited_greedy",
        only={"scoring_func": "softmax"},
        experts=_each("mlp.experts.{}."),
        shared=_each("mlp.shared_experts."),
        shared_if={"deepseek_v2": "n_shared_experts"},
    ),
    MoEFamily(
        "deepseek_v3",
        ("deepseek_v3", "kimi_k2", "glm4_moe"),
        {"score_fn": "sigmoid"},
        told=("norm_topk_prob", "routed_scaling_factor"),
        norm_eps=1e-20,
        groups={"group_score": "top2_sum", "group_mask_value": -np.inf},
        only={"scoring_func": "sigmoid", "topk_method": "noaux_tc"},
        correction_bias="mlp.gate.e_score_correction_bias",
        experts=_each("mlp.experts.{}."),
        shared=_each("mlp.shared_experts."),
        shared_if=dict.fromkeys(("deepseek_v3", "kimi_k2", "glm4_moe"), "n_shared_experts"),
    ),
    MoEFamily(
        "gpt_oss",
        ("gpt_oss",),
        _SOFTMAX_AFTER,
        router="mlp.router.weight",
        router_bias="mlp.router.bias",
        stacked_bias="_bias",
        in_out=True,
        layout="interleaved",
        activation_options={"alpha": "swiglu_alpha", "limit": "swiglu_limit", "up_offset": 1.0},
    ),
    MoEFamily(
        "granitemoe",
        ("granitemoe", "granitemoeshared", "granitemoehybrid"),
        _SOFTMAX_AFTER,
        router="block_sparse_moe.router.layer.weight",
        stacked=(
            "block_sparse_moe.input_linear.weight",
            "block_sparse_moe.output_linear.weight",
        ),
        shared=("shared_mlp.input_linear.weight", "shared_mlp.output_linear.weight"),
        shared_if={
            "granitemoe": False,
            "granitemoeshared": "shared_intermediate_size",
            "granitemoehybrid": True,
        },
    ),
    MoEFamily(
        "llama4",
        ("llama4", "llama4_text"),
        {"score_fn": "sigmoid", "select_on": "logits", "norm_topk_prob": False},
        router="feed_forward.router.weight",
        stacked=("feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"),
        in_out=True,
        shared=_each("feed_forward.shared_expert."),
        shared_if={"llama4": True, "llama4_text": True},
        on_input=True,
        dense=Family(
            "llama4",
            (),
            "layers.{}.",
            gate="feed_forward.gate_proj",
            up="feed_forward.up_proj",
            down="feed_forward.down_proj",
        ),
    ),
)
