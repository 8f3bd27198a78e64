"""Mixtures of experts in real checkpoints: how families name, store and route them.

    layer.format(number) + a name, behind any prefix

Experts are there as a tensor each (names with {} for the expert) or stacked: gate and up in one
tensor [E, 2 f, d] and down [E, d, f], or both with their last two axes exchanged. Either is found.
What a router does is in config.json; a row says which of it becomes an option of fc.Router. A layer
without router and experts is a dense one (the first layers of DeepSeek-V3, every other one of
Llama 4). How a layer is read: mixture_loading.py.

Formulas: the model code in transformers 5, which tests/conformance compares with.
Tests: tests/models/test_models_moe.py.
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
    """One way to name, store and route experts.

    shared_if: True, False, or the key of config.json that is above 0 where a model_type has a
    shared block. Of other model_types the tensors tell.
    """

    name: str
    model_types: tuple[str, ...]  # of config.json
    routing: Mapping[str, Any] = field(default_factory=dict)  # options of fc.Router
    told: tuple[str, ...] = ()  # options that are keys of config.json
    norm_eps: float = 0.0  # where weights are normalised
    groups: Mapping[str, Any] | None = None  # options beside n_group and topk_group
    group_method: str | None = None  # the topk_method with groups; None: there are always groups
    only: Mapping[str, str] = field(default_factory=dict)  # keys of which we compute one value
    layer: str = "layers.{}."  # as in Family
    router: str = "mlp.gate.weight"
    router_bias: str | None = None
    correction_bias: str | None = None  # e_score_correction_bias
    experts: tuple[str, ...] = ()  # gate, up, down of expert {}
    stacked: tuple[str, str] = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
    stacked_bias: str | None = None  # what follows the names of `stacked`
    in_out: bool = False  # of the stacked ones
    layout: str = "concat"  # of gate and up
    shared: tuple[str, ...] = ()  # gate, up, down; or gate and up in one, down
    shared_gate: str | None = None
    shared_if: Mapping[str, bool | str] = field(default_factory=dict)
    on_input: bool = False
    activation_keys: tuple[str, ...] = ("hidden_act",)  # as in Family
    # Options of fc.Activation: a number, or the key of config.json that has it.
    activation_options: Mapping[str, float | str] = field(default_factory=dict)
    dense: Family = field(default=_LLAMA)  # layers without experts

    def __hash__(self) -> int:
        return hash(self.name)  # its mappings have none

    @property
    def blocks(self) -> tuple[str, ...]:
        """What the names of a layer's tensors start with, and no others' of the model."""
        return tuple({name.split(".")[0] + "." for name in (self.router, *self.shared)})

    @property
    def starts(self) -> tuple[str, ...]:
        """Names that start so make a layer one with experts."""
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
        {"norm_topk_prob": False},  # the key is in its config.json, and unused by its code
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
