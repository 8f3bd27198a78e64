"""Families whose routers score each expert alone: sigmoid, or the square root of softplus."""

from __future__ import annotations

from typing import Any

from blocks import D, E, F, K
from moe_block import (
    CORRECTION,
    GROUPED,
    LOCAL,
    PLAIN,
    ROUTED,
    SCALED,
    SHARED,
    SIGMOID,
    SIGMOID_V3,
    SOFTMAX,
    Family,
    clamped,
)
from moe_tensors import concat_in_out, plain, shared_fused, shared_plain

import ffncore as fc


def deepseek_v3(module: str, name: str, block: str, grouped: bool = True, **changes: Any) -> Family:
    """The block of DeepSeek-V3, which many families share."""
    defaults: dict[str, Any] = {
        "arguments": {**ROUTED, "n_shared_experts": 1, **GROUPED, **SCALED},
        "routing": {**SIGMOID_V3, **(GROUPED if grouped else {})},
        "correction": CORRECTION,
        "shared": SHARED,
    }
    if not grouped:
        defaults["arguments"] |= {"n_group": 1, "topk_group": 1}
    defaults["arguments"] |= changes.pop("arguments", {})
    return Family(module, name, block, **{**defaults, **changes})


FAMILIES = {
    # sigmoid of the largest logits
    "cohere2-sigmoid": Family(
        *("cohere2_moe", "Cohere2MoeConfig", "Cohere2MoeSparseMoeBlock"),
        {
            **PLAIN,
            "intermediate_size": F,
            "expert_selection_fn": "sigmoid",
            "norm_topk_prob": True,
            "num_shared_experts": 1,
            "shared_expert_combination_strategy": "sum",
        },
        {**SIGMOID, "select_on": "logits"},
        shared=SHARED,
    ),
    "llama4": Family(
        *("llama4", "Llama4TextConfig", "Llama4TextMoe"),
        {**LOCAL, "intermediate_size": F, "num_experts_per_tok": 1},
        {"top_k": 1, "score_fn": "sigmoid", "select_on": "logits", "norm_topk_prob": False},
        router="router.weight",
        experts=concat_in_out,
        shared="shared_expert.",
        options={"apply_router_weight_on_input": True},
    ),
    "kolibri1": Family(
        *("kolibri1", "Kolibri1Config", "Kolibri1SparseMoeBlock"),
        {**PLAIN, "shared_expert_intermediate_size": 10, "norm_topk_prob": False},
        {**SIGMOID, "select_on": "logits", "norm_topk_prob": False},
        correction=CORRECTION,
        shared=SHARED,
    ),
    # sigmoid, with a bias of the selection
    "deepseek-v3": deepseek_v3("deepseek_v3", "DeepseekV3Config", "DeepseekV3MoE"),
    "kimi-k2": deepseek_v3("deepseek_v3", "DeepseekV3Config", "DeepseekV3MoE", grouped=False),
    "glm-4.5": deepseek_v3("glm4_moe", "Glm4MoeConfig", "Glm4MoeMoE", grouped=False),
    "glm-4.7-flash": deepseek_v3("glm4_moe_lite", "Glm4MoeLiteConfig", "Glm4MoeLiteMoE"),
    "dots1": deepseek_v3(
        *("dots1", "Dots1Config", "Dots1MoE"),
        arguments={"norm_topk_prob": True, "n_shared_experts": 2},
    ),
    "solar-open": deepseek_v3("solar_open", "SolarOpenConfig", "SolarOpenMoE"),
    "mimo-v2": deepseek_v3("mimo_v2_flash", "MiMoV2FlashConfig", "MiMoV2FlashMoE", shared=None),
    "kimi-linear": deepseek_v3(
        *("kimi_linear", "KimiLinearConfig", "KimiLinearMoE"),
        arguments={**PLAIN, "num_shared_experts": 1},
    ),
    "bailing-hybrid": deepseek_v3(
        *("bailing_hybrid", "BailingHybridConfig", "BailingHybridMoE"),
        arguments={**PLAIN, "num_shared_experts": 1},
    ),
    "exaone-moe": deepseek_v3(
        *("exaone_moe", "ExaoneMoeConfig", "ExaoneMoeSparseMoEBlock"),
        arguments={**PLAIN, "num_shared_experts": 1},
    ),
    "hy-v3": Family(
        *("hy_v3", "HYV3Config", "HYV3MoE"),
        {**PLAIN, "router_scaling_factor": 2.5},
        SIGMOID_V3,
        correction="e_score_correction_bias",
        shared=SHARED,
    ),
    "hy-v4": deepseek_v3(
        *("hy_v4", "HYV4Config", "HYV4MoE"),
        arguments={"swiglu_limit": 1.0},
        activation=fc.Activation("silu", limit=1.0),
        shared_activation="silu",
    ),
    "a.x-k2": deepseek_v3(
        *("axk2", "AXK2Config", "AXK2MoE"),
        routing={**SIGMOID_V3, **GROUPED, "group_mask_value": 0.0},
        # Masked experts all have 0. If chosen they tie, and torch does not define who wins.
        selection=0.0,
    ),
    "afmoe": Family(
        *("afmoe", "AfmoeConfig", "AfmoeSparseMoeBlock"),
        {**PLAIN, "route_scale": 2.5, "num_shared_experts": 1},
        SIGMOID_V3,
        router="router.gate.weight",
        correction="expert_bias",
        shared=SHARED,
        without=("expert_bias",),
    ),
    "minimax-m2": Family(
        *("minimax_m2", "MiniMaxM2Config", "MiniMaxM2SparseMoeBlock"),
        {"intermediate_size": F, **LOCAL},
        SIGMOID,
        correction="e_score_correction_bias",
    ),
    "minimax-m3": Family(
        *("minimax_m3_vl", "MiniMaxM3VLTextConfig", "MiniMaxM3VLSparseMoeBlock"),
        {
            **LOCAL,
            **SCALED,
            "intermediate_size": F,
            "shared_intermediate_size": 10,
            "swiglu_limit": 1.0,
        },
        {**SIGMOID, **SCALED},
        correction=CORRECTION,
        shared=SHARED,
        shared_form=shared_fused,
        activation=clamped(1.0),
    ),
    "lfm2-moe": Family(
        *("lfm2_moe", "Lfm2MoeConfig", "Lfm2MoeSparseMoeBlock"),
        PLAIN,
        {**SIGMOID, "norm_eps": 1e-6},
        correction="expert_bias",
    ),
    "laguna": Family(
        *("laguna", "LagunaConfig", "LagunaSparseMoeBlock"),
        {
            **PLAIN,
            "shared_expert_intermediate_size": 10,
            "moe_router_logit_softcapping": 1.5,
            "moe_routed_scaling_factor": 2.5,
        },
        {**SIGMOID, **SCALED, "logit_softcap": 1.5},
        correction=CORRECTION,
        shared=SHARED,
        without=(CORRECTION,),
    ),
    "flint": Family(
        *("flint", "FlintConfig", "FlintSparseMoeBlock"),
        {**PLAIN, "shared_expert_intermediate_size": 10, "norm_topk_prob": True},
        SIGMOID,
        shared="shared_expert.",
    ),
    "step-3.7": Family(
        *("step3p7", "Step3p7TextConfig", "Step3p7SparseMoeBlock"),
        {
            **ROUTED,
            "share_expert_dim": 10,
            "swiglu_limits": [0.3, 0.3],
            "swiglu_limits_shared": [0.2, 0.2],
            "moe_router_scaling_factor": 2.5,
            "num_hidden_layers": 2,
        },
        {**SIGMOID, **SCALED},
        block_arguments=(1,),
        correction=CORRECTION,
        shared=SHARED,
        activation=fc.Activation("silu", limit=0.3, clamp="post"),
        shared_activation=fc.Activation("silu", limit=0.2, clamp="post"),
    ),
    "nemotron-h": Family(
        *("nemotron_h", "NemotronHConfig", "NemotronHMoE"),
        {**ROUTED, **GROUPED, **SCALED, "moe_shared_expert_intermediate_size": 10},
        {**SIGMOID_V3, **GROUPED},
        correction=CORRECTION,
        experts=plain,
        shared=SHARED,
        shared_form=shared_plain,
        activation="relu2",
    ),
    "nemotron-h-latent": Family(
        *("nemotron_h", "NemotronHConfig", "NemotronHMoE"),
        {
            **ROUTED,
            **GROUPED,
            **SCALED,
            "moe_shared_expert_intermediate_size": 10,
            "moe_latent_size": 6,
        },
        {**SIGMOID_V3, **GROUPED},
        correction=CORRECTION,
        experts=plain,
        shared=SHARED,
        shared_form=shared_plain,
        more={"latent_in": "fc1_latent_proj.weight", "latent_out": "fc2_latent_proj.weight"},
        activation="relu2",
    ),
    # square roots of softplus, softcaps
    "deepseek-v4": Family(
        *("deepseek_v4", "DeepseekV4Config", "DeepseekV4SparseMoeBlock"),
        {
            "hidden_size": D,
            "n_routed_experts": E,
            "num_experts_per_tok": K,
            "moe_intermediate_size": F,
            "swiglu_limit": 1.0,
            "routed_scaling_factor": 1.5,
        },
        {**SOFTMAX, "score_fn": "sqrtsoftplus", "norm_eps": 1e-20, "routed_scaling_factor": 1.5},
        block_arguments=(5,),  # the first layers choose experts by the token's id
        correction=CORRECTION,
        shared=SHARED,
        activation=fc.Activation("silu", limit=1.0),
    ),
    "inkling2": Family(
        *("inkling2", "Inkling2TextConfig", "Inkling2SparseMoeBlock"),
        {
            **ROUTED,
            "route_scale": 2.5,
            "mlp_gate_softcap": 0.8,
            "mlp_up_softcap": 1.1,
        },
        SIGMOID_V3,
        correction=CORRECTION,
        activation=fc.Activation("silu", gate_softcap=0.8, up_softcap=1.1),
        float32_alone=True,  # its router converts x to float32, but here its weight is float64
    ),
}
