"""MIXTURES: the part of DEFAULTS for models with experts; defaults.py says what it holds.

Tests: tests/models/test_config_json.py.
"""

from __future__ import annotations

from typing import Any

MIXTURES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("mixtral jamba", {"hidden_act": "silu", "num_experts_per_tok": 2}),
    (
        "minimax",
        {
            "hidden_act": "silu",
            "num_experts_per_tok": 2,
            "mlp_alpha_factor": 1,
            "mlp_beta_factor": 1,
        },
    ),
    ("qwen2_moe", {"hidden_act": "silu", "num_experts_per_tok": 4, "norm_topk_prob": False}),
    ("qwen3_moe olmoe", {"hidden_act": "silu", "num_experts_per_tok": 8, "norm_topk_prob": False}),
    ("qwen3_next", {"hidden_act": "silu", "num_experts_per_tok": 10, "norm_topk_prob": True}),
    ("qwen3_5_moe_text minimax_m2", {"hidden_act": "silu", "num_experts_per_tok": 8}),
    ("qwen3_vl_moe_text", {"hidden_act": "silu", "num_experts_per_tok": 4}),
    ("flex_olmo", {"hidden_act": "silu", "num_experts_per_tok": 5, "norm_topk_prob": False}),
    (
        "qwen3_omni_moe_text",
        {"hidden_act": "silu", "num_experts_per_tok": 8, "norm_topk_prob": True},
    ),
    (
        "deepseek_v2",
        {
            "hidden_act": "silu",
            "topk_method": "greedy",
            "mlp_bias": False,
            "num_experts_per_tok": None,
            "routed_scaling_factor": 1.0,
            "n_group": None,
            "topk_group": None,
            "n_shared_experts": 2,
        },
    ),
    (
        "mistral4",
        {
            "hidden_act": "silu",
            "num_experts_per_tok": 4,
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.0,
            "n_group": 1,
            "topk_group": 1,
            "n_shared_experts": 1,
        },
    ),
    ("phimoe", {"hidden_act": "silu", "router_jitter_noise": 0.01}),
    (
        "gpt_oss openai_privacy_filter",
        {"swiglu_alpha": 1.702, "swiglu_limit": 7.0, "num_experts_per_tok": 4},
    ),
    (
        "granitemoe granitemoehybrid",
        {"hidden_act": "silu", "num_experts_per_tok": 2, "residual_multiplier": 1.0},
    ),
    (
        "granitemoeshared",
        {
            "hidden_act": "silu",
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 0,
            "residual_multiplier": 1.0,
        },
    ),
    ("jetmoe", {"activation_function": "silu", "num_experts_per_tok": 2}),
    (
        "cohere2_moe",
        {
            "hidden_act": "silu",
            "expert_selection_fn": "softmax",
            "norm_topk_prob": True,
            "shared_expert_combination_strategy": "average",
            "num_experts_per_tok": 2,
            "num_shared_experts": 0,
        },
    ),
    ("hunyuan_v1_moe", {"hidden_act": "silu", "moe_topk": 1}),
    (
        "dbrx",
        {
            "ffn_config.ffn_act_fn.name": "silu",
            "ffn_config.moe_normalize_expert_weights": 1.0,
            "ffn_config.moe_top_k": 1,
        },
    ),
    (
        "ernie4_5_moe",
        {
            "hidden_act": "silu",
            "use_bias": False,
            "moe_k": 6,
            "moe_norm_min": 1e-12,
            "moe_num_shared_experts": 2,
        },
    ),
    (
        "longcat_flash",
        {
            "hidden_act": "silu",
            "moe_topk": 12,
            "routed_scaling_factor": 6.0,
            "zero_expert_num": 256,
        },
    ),
    ("aria_text", {"hidden_act": "silu", "mlp_bias": False, "moe_topk": 2}),
    (
        "gemma4_text",
        {"hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-06, "top_k_experts": None},
    ),
    ("llama4_text", {"hidden_act": "silu", "num_experts_per_tok": 1}),
    ("switch_transformers", {"dense_act_fn": "relu", "expert_capacity": 64}),
    (
        "deepseek_v3",
        {
            "hidden_act": "silu",
            "num_experts_per_tok": 8,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
            "n_group": 8,
            "topk_group": 4,
            "n_shared_experts": 1,
        },
    ),
    (
        "kimi_k2",
        {
            "hidden_act": None,
            "num_experts_per_tok": None,
            "norm_topk_prob": None,
            "routed_scaling_factor": None,
            "n_group": None,
            "topk_group": None,
            "n_shared_experts": None,
            "scoring_func": None,
            "topk_method": None,
        },
    ),
    (
        "glm4_moe solar_open",
        {
            "hidden_act": "silu",
            "num_experts_per_tok": 8,
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.0,
            "n_group": 1,
            "topk_group": 1,
            "n_shared_experts": 1,
        },
    ),
    (
        "dots1",
        {
            "hidden_act": "silu",
            "num_experts_per_tok": None,
            "norm_topk_prob": False,
            "routed_scaling_factor": 1.0,
            "n_group": 1,
            "topk_group": 1,
            "n_shared_experts": None,
        },
    ),
    (
        "deepseek_v32",
        {
            "hidden_act": "silu",
            "mlp_bias": False,
            "num_experts_per_tok": 8,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
            "n_group": 8,
            "topk_group": 4,
            "n_shared_experts": 1,
        },
    ),
    (
        "glm4_moe_lite",
        {
            "hidden_act": "silu",
            "num_experts_per_tok": 4,
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.8,
            "n_group": 1,
            "topk_group": 1,
            "n_shared_experts": 1,
        },
    ),
    (
        "glm_moe_dsa",
        {
            "hidden_act": "silu",
            "mlp_bias": False,
            "num_experts_per_tok": 8,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
            "n_group": 1,
            "topk_group": 1,
            "n_shared_experts": 1,
        },
    ),
    (
        "mimo_v2_flash",
        {
            "hidden_act": "silu",
            "num_experts_per_tok": 8,
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.0,
            "n_group": 1,
            "topk_group": 1,
        },
    ),
    (
        "inkling_text",
        {
            "hidden_act": "silu",
            "num_experts_per_tok": 6,
            "n_shared_experts": 2,
            "route_scale": 8.0,
        },
    ),
    (
        "axk2",
        {
            "hidden_act": "silu",
            "num_experts_per_tok": 8,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
            "n_group": None,
            "topk_group": None,
            "n_shared_experts": 1,
        },
    ),
    (
        "hy_v4",
        {
            "hidden_act": "silu",
            "swiglu_limit": 10.0,
            "num_experts_per_tok": 8,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.827,
            "n_group": 1,
            "topk_group": 1,
            "n_shared_experts": 1,
        },
    ),
    (
        "exaone_moe",
        {
            "hidden_act": "silu",
            "num_experts_per_tok": 8,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
            "n_group": 1,
            "topk_group": 1,
            "num_shared_experts": 1,
        },
    ),
    (
        "bailing_hybrid",
        {
            "hidden_act": "silu",
            "num_experts_per_token": 8,
            "moe_renormalize": True,
            "routed_scaling_factor": 2.5,
            "num_expert_group": 8,
            "topk_group": 4,
            "num_shared_experts": 1,
        },
    ),
    (
        "kimi_linear",
        {
            "hidden_act": "silu",
            "num_experts_per_token": 8,
            "moe_renormalize": True,
            "routed_scaling_factor": 2.446,
            "num_expert_group": 1,
            "topk_group": 1,
            "num_shared_experts": 1,
        },
    ),
    (
        "afmoe",
        {
            "hidden_act": "silu",
            "num_experts_per_tok": 6,
            "route_scale": 1.0,
            "num_shared_experts": 2,
        },
    ),
    (
        "hy_v3",
        {
            "hidden_act": "silu",
            "mlp_bias": False,
            "num_experts_per_tok": 8,
            "router_scaling_factor": 2.826,
            "num_shared_experts": 1,
        },
    ),
    (
        "minimax_m3_vl_text",
        {
            "hidden_act": "silu",
            "swiglu_alpha": 1.702,
            "swiglu_limit": 7.0,
            "num_experts_per_tok": 4,
            "routed_scaling_factor": 2.0,
        },
    ),
    ("lfm2_moe", {"num_experts_per_tok": 4, "norm_topk_prob": True, "routed_scaling_factor": 1.0}),
    (
        "nemotron_h",
        {
            "mlp_hidden_act": "relu2",
            "mlp_bias": False,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.0,
            "n_group": 1,
            "topk_group": 1,
        },
    ),
    (
        "laguna",
        {
            "hidden_act": "silu",
            "moe_router_logit_softcapping": 0.0,
            "num_experts_per_tok": 8,
            "moe_routed_scaling_factor": 1.0,
        },
    ),
    ("flint", {"hidden_act": "silu", "num_experts_per_tok": 6, "norm_topk_prob": True}),
    ("kolibri1", {"hidden_act": "silu", "num_experts_per_tok": 6, "norm_topk_prob": False}),
    (
        "step3p5",
        {
            "hidden_act": "silu",
            "swiglu_limits": None,
            "swiglu_limits_shared": None,
            "mlp_bias": False,
            "num_experts_per_tok": 8,
            "moe_router_scaling_factor": 1.0,
        },
    ),
    (
        "deepseek_v4",
        {
            "hidden_act": "silu",
            "swiglu_limit": 10.0,
            "mlp_bias": False,
            "num_experts_per_tok": 6,
            "routed_scaling_factor": 1.5,
            "n_shared_experts": 1,
            "scoring_func": "sqrtsoftplus",
        },
    ),
)
