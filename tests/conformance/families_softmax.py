"""Families whose routers compute the softmax of all logits, or of the largest ones."""

from __future__ import annotations

from blocks import D, E, F, K
from moe_block import (
    GROUPED,
    LOCAL,
    PLAIN,
    ROUTED,
    SCALED,
    SHARED,
    SIZES,
    SOFTMAX,
    SOFTMAX_AFTER,
    UNNORMALIZED,
    Family,
    clamped,
)
from moe_tensors import (
    Gemma4,
    GraniteShared,
    flat,
    float64_router,
    granite_experts,
    granite_shared,
    halves,
    interleaved,
    linears,
    modules,
    with_identity,
)

import ffncore as fc

FAMILIES = {
    # softmax over all, then the largest
    "mixtral": Family(
        *("mixtral", "MixtralConfig", "MixtralSparseMoeBlock"),
        {"intermediate_size": F, **LOCAL},
        SOFTMAX,
    ),
    "minimax-01": Family(
        *("minimax", "MiniMaxConfig", "MiniMaxSparseMoeBlock"),
        {"intermediate_size": F, **LOCAL},
        SOFTMAX,
    ),
    "qwen2-moe": Family(
        *("qwen2_moe", "Qwen2MoeConfig", "Qwen2MoeSparseMoeBlock"),
        {**PLAIN, "shared_expert_intermediate_size": 10},
        UNNORMALIZED,
        shared="shared_expert.",
        more={"shared_gate": "shared_expert_gate.weight"},
    ),
    "qwen3-moe": Family(
        *("qwen3_moe", "Qwen3MoeConfig", "Qwen3MoeSparseMoeBlock"),
        {**PLAIN, "norm_topk_prob": True},
        SOFTMAX,
    ),
    "qwen3-next": Family(
        *("qwen3_next", "Qwen3NextConfig", "Qwen3NextSparseMoeBlock"),
        {**PLAIN, "shared_expert_intermediate_size": 10, "norm_topk_prob": True},
        SOFTMAX,
        shared="shared_expert.",
        more={"shared_gate": "shared_expert_gate.weight"},
    ),
    "mellum": Family(
        *("mellum", "MellumConfig", "MellumSparseMoeBlock"),
        {**PLAIN, "norm_topk_prob": True},
        SOFTMAX,
    ),
    "olmoe": Family(
        *("olmoe", "OlmoeConfig", "OlmoeSparseMoeBlock"),
        {**PLAIN, "intermediate_size": F},
        UNNORMALIZED,
    ),
    "flex-olmo": Family(
        *("flex_olmo", "FlexOlmoConfig", "FlexOlmoSparseMoeBlock"),
        {**PLAIN, "intermediate_size": F},
        UNNORMALIZED,
    ),
    "jamba": Family(
        *("jamba", "JambaConfig", "JambaSparseMoeBlock"),
        {**PLAIN, "intermediate_size": F},
        UNNORMALIZED,
        router="router.weight",
    ),
    "hunyuan-v1": Family(
        *("hunyuan_v1_moe", "HunYuanMoEV1Config", "HunYuanMoEV1Moe"),
        {"num_experts": E, "moe_topk": K, "intermediate_size": F, **SIZES},
        SOFTMAX,
        block_arguments=(0,),
        router="gate.wg.weight",
        shared="shared_mlp.",
    ),
    "dbrx": Family(
        *("dbrx", "DbrxConfig", "DbrxFFN"),
        {
            "d_model": D,
            "ffn_config": {
                "hidden_size": D,
                "ffn_hidden_size": F,
                "moe_num_experts": E,
                "moe_top_k": K,
            },
        },
        SOFTMAX,
        router="router.layer.weight",
        experts=flat,
    ),
    "gemma4": Family(
        *("gemma4", "Gemma4TextConfig", ""),
        {
            "num_experts": E,
            "top_k_experts": K,
            "moe_intermediate_size": F,
            "enable_moe_block": True,
            **SIZES,
        },
        SOFTMAX,
        router="router.proj.weight",
        more={"per_expert_scale": "router.per_expert_scale"},
        activation="gelu_tanh",
        without=("router.scale",),
        wrapper=Gemma4,
    ),
    "deepseek-v2": Family(
        *("deepseek_v2", "DeepseekV2Config", "DeepseekV2Moe"),
        {
            **ROUTED,
            "n_shared_experts": 2,
            **GROUPED,
            **SCALED,
            "topk_method": "group_limited_greedy",
        },
        {**UNNORMALIZED, **SCALED, **GROUPED, "group_score": "max", "group_mask_value": 0.0},
        shared=SHARED,
    ),
    "deepseek-v2-lite": Family(
        *("deepseek_v2", "DeepseekV2Config", "DeepseekV2Moe"),
        {**ROUTED, "n_shared_experts": 2, "topk_method": "greedy"},
        UNNORMALIZED,
        shared=SHARED,
    ),
    # softmax over the largest logits
    "gpt-oss": Family(
        *("gpt_oss", "GptOssConfig", "GptOssMLP"),
        {"intermediate_size": F, "swiglu_limit": 1.0, **LOCAL},
        SOFTMAX_AFTER,
        router="router.weight",
        router_bias="router.bias",
        experts=interleaved,
        activation=clamped(1.0),
    ),
    "privacy-filter": Family(
        *("openai_privacy_filter", "OpenAIPrivacyFilterConfig", "OpenAIPrivacyFilterMLP"),
        {"intermediate_size": F, "swiglu_limit": 1.0, **LOCAL},
        SOFTMAX_AFTER,
        router="router.weight",
        router_bias="router.bias",
        experts=halves,
        activation=clamped(1.0),
    ),
    "granite-moe": Family(
        *("granitemoe", "GraniteMoeConfig", "GraniteMoeMoE"),
        {"intermediate_size": F, **LOCAL},
        SOFTMAX_AFTER,
        router="router.weight",
    ),
    "granite-shared": Family(
        *("granitemoeshared", "GraniteMoeSharedConfig", ""),
        {"intermediate_size": F, "shared_intermediate_size": 10, **LOCAL},
        SOFTMAX_AFTER,
        router="block_sparse_moe.router.weight",
        experts=granite_experts,
        shared="shared_mlp.",
        shared_form=granite_shared,
        wrapper=GraniteShared,
    ),
    "jetmoe": Family(
        *("jetmoe", "JetMoeConfig", "JetMoeMoE"),
        {
            "intermediate_size": F,
            "num_local_experts": E,
            "num_experts_per_tok": K,
            "hidden_size": D,
        },
        SOFTMAX_AFTER,
        router="router.layer.weight",
        experts=linears,
        more={"output_bias": "bias"},
    ),
    "cohere2-softmax": Family(
        *("cohere2_moe", "Cohere2MoeConfig", "Cohere2MoeSparseMoeBlock"),
        {
            **PLAIN,
            "intermediate_size": F,
            "expert_selection_fn": "softmax",
            "num_shared_experts": 2,
            "shared_expert_combination_strategy": "average",
        },
        SOFTMAX_AFTER,
        shared=SHARED,
        options={"combine": 0.5},
    ),
    # softmax, with a bias or groups of the selection
    "ernie-4.5": Family(
        *("ernie4_5_moe", "Ernie4_5_MoeConfig", "Ernie4_5_MoeSparseMoeBlock"),
        {
            **SIZES,
            "moe_num_experts": E,
            "moe_k": K,
            "moe_intermediate_size": F,
            "moe_num_shared_experts": 2,
        },
        {**SOFTMAX, "norm_min": 1e-12},
        correction="gate.moe_statics.e_score_correction_bias",
        shared=SHARED,
        without=("gate.moe_statics.e_score_correction_bias",),
    ),
    "longcat-flash": Family(
        *("longcat_flash", "LongcatFlashConfig", "LongcatFlashMoE"),
        {
            "hidden_size": D,
            "expert_ffn_hidden_size": F,
            "n_routed_experts": E,
            "zero_expert_num": 3,
            "moe_topk": 4,
            "routed_scaling_factor": 6.0,
        },
        {"top_k": 4, "norm_topk_prob": False, "routed_scaling_factor": 6.0},
        router="router.classifier.weight",
        correction="router.e_score_correction_bias",
        experts=with_identity,
        options={"n_null_experts": 3},
    ),
    "mistral4": Family(
        *("mistral4", "Mistral4Config", "Mistral4MoE"),
        {**ROUTED, "n_shared_experts": 1, **GROUPED, **SCALED, "norm_topk_prob": True},
        {**SOFTMAX, "norm_eps": 1e-20, **SCALED, **GROUPED, "group_mask_value": 0.0},
        shared=SHARED,
    ),
    # other routers
    "phi-3.5-moe": Family(
        *("phimoe", "PhimoeConfig", "PhimoeSparseMoeBlock"),
        {**LOCAL, "intermediate_size": F, "num_experts_per_tok": 2, "router_jitter_noise": 0.3},
        {"route": fc.sparsemixer, "jitter_eps": 0.3},
        router="router.weight",
    ),
    "switch": Family(
        *("switch_transformers", "SwitchTransformersConfig", "SwitchTransformersSparseMLP"),
        {"d_model": D, "d_ff": F, "num_experts": E, "expert_capacity": 1},
        {"route": fc.switch_capacity, "capacity": 1},
        router="router.classifier.weight",
        experts=modules,
        activation="relu",
        prepare=float64_router,
    ),
}
