"""Model types with mixtures of experts: one row each, see zoo.py."""

from __future__ import annotations

import re
from typing import Any

from blocks import D, E, F, K, torch
from zoo import Block, Model, run

MLP = "model.layers.{}.mlp"
MIX = (Block(MLP, mixture=True),)
# The first layer is dense, as in the checkpoints of most families.
AFTER_DENSE = (Block(MLP, (0,)), Block(MLP, (1,), mixture=True))
FIRST_DENSE = {"mlp_layer_types": ["dense", "sparse"]}
GROUPED = {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5}


def granite(layer: Any, x: Any) -> Any:
    """The two parts that the decoder layer adds."""
    return run(layer.block_sparse_moe, x) + layer.shared_mlp(x)


SPARSE = Block("model.layers.{}.block_sparse_moe", mixture=True)
GRANITE = Block("model.layers.{}", mixture=True, call=granite)
FEED = "model.layers.{}.feed_forward"


def dense_in_mlp(tensors: dict[str, Any]) -> dict[str, Any]:
    """The library also writes the dense layers of kimi_linear as block_sparse_moe."""
    return {re.sub(r"block_sparse_moe\.(\w+_proj)", r"mlp.\1", n): t for n, t in tensors.items()}


def gate_proj(tensors: dict[str, Any]) -> dict[str, Any]:
    """The library also writes the gates of the feed-forward layers with the name of attention's."""
    return {re.sub(r"(mlp\..*)linear_gate", r"\1gate_proj", n): t for n, t in tensors.items()}


def scored(written: dict[str, Any]) -> dict[str, Any]:
    """Its own code reads two more keys."""
    return {**written, "scoring_func": "sigmoid", "topk_method": "noaux_tc"}


def route_in_float64(model: Any) -> None:
    for module in model.modules():
        if hasattr(module, "router"):
            module.router.dtype = torch.float64


def positive(model: Any) -> None:
    """Experts of groups that are not chosen have 0. If they were chosen, torch would not define
    which."""
    for name, tensor in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            tensor.abs_()


def gemma4(layer: Any, x: Any) -> Any:
    """The router, which normalizes what it reads, and the experts."""
    rows = x.reshape(-1, x.shape[-1])
    _, weights, experts = layer.router(rows)
    return layer.experts(rows, experts, weights).reshape(x.shape)


SWITCH = (("encoder", 1), ("decoder", 2))

MIXTURES = [
    # softmax
    Model("mixtral", MIX, {"intermediate_size": F}),
    Model("minimax", MIX, {"intermediate_size": F, "layer_types": ["full_attention"] * 2}),
    Model(
        "phimoe",
        MIX,
        {"intermediate_size": F, "num_experts_per_tok": 2, "router_jitter_noise": 0.3},
    ),
    Model("qwen2_moe", AFTER_DENSE, {"mlp_only_layers": [0]}),
    Model("qwen3_moe", AFTER_DENSE, {"mlp_only_layers": [0], "norm_topk_prob": True}),
    Model("qwen3_moe", MIX, {"norm_topk_prob": False}, variant="unnormalized"),
    Model("qwen3_moe", AFTER_DENSE, {"decoder_sparse_step": 2}, variant="sparse-step"),
    Model("qwen3_next", AFTER_DENSE, {"mlp_only_layers": [0]}),
    Model("olmoe", MIX, {"intermediate_size": F}),
    Model("flex_olmo", MIX, {"intermediate_size": F}),
    Model("hunyuan_v1_moe", MIX, {"intermediate_size": F}),
    Model("hunyuan_v1_moe", MIX, {"intermediate_size": F, "moe_topk": [2, 3]}, variant="list"),
    Model(
        "jamba",
        (Block(FEED, (0,)), Block(FEED, (1,), mixture=True)),
        {
            "intermediate_size": F,
            "attn_layer_offset": 0,
            "attn_layer_period": 1,
            "num_experts_per_tok": 2,
        },
    ),
    Model("granitemoe", (SPARSE,), {"intermediate_size": F}),
    Model("granitemoeshared", (GRANITE,), {"intermediate_size": F}),
    Model(
        "granitemoehybrid",
        (GRANITE,),
        {"intermediate_size": F, "layer_types": ["full_attention"] * 2, "mamba_n_heads": 4},
    ),
    Model(
        "granitemoehybrid",
        (Block("model.layers.{}.shared_mlp"),),
        {"num_local_experts": 0, "layer_types": ["full_attention"] * 2, "mamba_n_heads": 4},
        variant="dense",
    ),
    Model("jetmoe", MIX, {"intermediate_size": F}),
    Model("gpt_oss", MIX, {"intermediate_size": F, "swiglu_limit": 1.0}),
    Model(
        "openai_privacy_filter",
        MIX,
        {"intermediate_size": F, "swiglu_limit": 1.0},
        head="AutoModelForTokenClassification",
    ),
    Model(
        "dbrx",
        (Block("transformer.blocks.{}.ffn", mixture=True),),
        {
            "ffn_config": {
                "ffn_hidden_size": F,
                "hidden_size": D,
                "moe_num_experts": E,
                "moe_top_k": K,
            },
            "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0},
        },
    ),
    Model("cohere2_moe", AFTER_DENSE, {"first_k_dense_replace": 1, "num_shared_experts": 2}),
    Model(
        "cohere2_moe",
        MIX,
        {
            "expert_selection_fn": "sigmoid",
            "num_shared_experts": 1,
            "shared_expert_combination_strategy": "sum",
        },
        variant="sigmoid",
    ),
    Model("ernie4_5_moe", AFTER_DENSE, {"moe_norm_min": 0.7}),
    Model(
        "longcat_flash",
        (
            *MIX,
            *(Block(f"model.layers.{{}}.mlps.{i}", load={"part": f"mlps.{i}"}) for i in range(2)),
        ),
        {"zero_expert_num": 3, "moe_topk": 4, "qk_head_dim": 8},
    ),
    Model("mistral4", MIX, GROUPED, head="Mistral4ForCausalLM"),
    Model(
        "deepseek_v2",
        AFTER_DENSE,
        {
            "first_k_dense_replace": 1,
            **GROUPED,
            "n_shared_experts": 2,
            "topk_method": "group_limited_greedy",
        },
    ),
    Model(
        "deepseek_v2",
        AFTER_DENSE,
        {"first_k_dense_replace": 1, "n_shared_experts": 2, "topk_method": "greedy"},
        variant="lite",
    ),
    # sigmoid
    Model(
        "llama4_text",
        (Block(FEED, (0,)), Block(FEED, (1,), mixture=True)),
        {
            "intermediate_size": F,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 20,
            "interleave_moe_layer_step": 2,
        },
    ),
    *(
        Model(
            t, AFTER_DENSE, {"first_k_dense_replace": 1, **GROUPED, "norm_topk_prob": True, **more}
        )
        for t, more in (
            ("deepseek_v3", {}),
            ("dots1", {"n_shared_experts": 2}),
            ("exaone_moe", {}),
            ("glm4_moe", {}),
        )
    ),
    *(
        Model(t, AFTER_DENSE, {**FIRST_DENSE, **GROUPED})
        for t in ("deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "bailing_hybrid")
    ),
    Model("axk2", AFTER_DENSE, {**FIRST_DENSE, **GROUPED}, prepare=positive),
    Model("kimi_linear", AFTER_DENSE, {**FIRST_DENSE, **GROUPED}, mend=dense_in_mlp),
    Model(
        "kimi_k2",
        AFTER_DENSE,
        {"first_k_dense_replace": 1, **GROUPED},
        made_as="deepseek_v3",
        retell=scored,
    ),
    Model("mimo_v2_flash", AFTER_DENSE, {**FIRST_DENSE, **GROUPED}),
    Model("solar_open", MIX, GROUPED),
    Model("afmoe", AFTER_DENSE, {"route_scale": 2.5, "num_dense_layers": 1}),
    Model("hy_v3", AFTER_DENSE, FIRST_DENSE),
    Model("hy_v4", AFTER_DENSE, {**FIRST_DENSE, **GROUPED, "swiglu_limit": 1.0}, mend=gate_proj),
    Model("minimax_m2", MIX, {"intermediate_size": F}),
    Model(
        "lfm2_moe",
        (Block(FEED, (0,)), Block(FEED, (1,), mixture=True)),
        {"num_dense_layers": 1, "layer_types": ["full_attention"] * 2},
    ),
    Model(
        "laguna",
        AFTER_DENSE,
        {**FIRST_DENSE, "moe_router_logit_softcapping": 1.5, "moe_routed_scaling_factor": 2.5},
    ),
    Model("flint", AFTER_DENSE, {"mlp_only_layers": [0]}),
    Model("kolibri1", MIX, {}),
    Model(
        "nemotron_h",
        (Block("model.layers.{}.mixer", (1,), mixture=True), Block("model.layers.{}.mixer", (2,))),
        {
            "layers_block_type": ["attention", "moe", "mlp"],
            **GROUPED,
            "moe_shared_expert_intermediate_size": 10,
        },
    ),
    Model(
        "nemotron_h",
        (Block("model.layers.{}.mixer", (1,), mixture=True),),
        {
            "layers_block_type": ["attention", "moe"],
            "moe_latent_size": 6,
            "moe_shared_expert_intermediate_size": 10,
        },
        variant="latent",
    ),
    Model("deepseek_v4", MIX, {"swiglu_limit": 1.0, "mlp_layer_types": ["moe", "moe"]}),
    # one expert, of limited capacity
    Model(
        "switch_transformers",
        (
            *(
                Block(f"{side}.block.{{}}.layer.{n}.mlp", (0,), load={"prefix": side})
                for side, n in SWITCH
            ),
            *(
                Block(f"{side}.block.{{}}.layer.{n}.mlp", (1,), True, {"prefix": side})
                for side, n in SWITCH
            ),
        ),
        {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1, "expert_capacity": 1},
        head="SwitchTransformersForConditionalGeneration",
        prepare=route_in_float64,
    ),
    Model(
        "gemma4_text",
        (
            Block("model.layers.{}", mixture=True, call=gemma4),
            Block("model.layers.{}.mlp", load={"part": "mlp"}),
        ),
        {"enable_moe_block": True, "top_k_experts": K, "rms_norm_eps": 0.1},
        variant="experts",
    ),
]
