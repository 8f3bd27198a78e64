"""Rows of models with experts whose routers compute a softmax, and of Llama 4 and Switch. row.py
describes the fields; sigmoid.py has the models whose routers score experts by a sigmoid.

The routers are those of the model code in transformers 5, with which tests/conformance compares
them. Tests: tests/models/test_models_moe.py, tests/models/test_mixtures.py.
"""

from __future__ import annotations

from .names import gated, numbered, plain, stacked
from .row import MoEFamily, Names
from .special import (
    cohere_assembly,
    cohere_route,
    dbrx_route,
    gemma4_route,
    phimoe_route,
    switch_route,
)

TOP_K = {"top_k": "num_experts_per_tok"}
NORM = {"norm_topk_prob": "norm_topk_prob"}
SCALE = {"routed_scaling_factor": "routed_scaling_factor"}
_AFTER = {"score_fn": "softmax_topk"}

_SWITCH = ("layer.1.mlp.", "layer.2.mlp.")  # of the encoder and of the decoder

EXPERTS = (gated("mlp.experts.{}."), stacked("mlp.experts."))
MIXTRAL = (numbered("block_sparse_moe.experts.{}."), stacked("mlp.experts."))
_GPT_OSS: dict[str, float | str] = {
    "alpha": "swiglu_alpha",
    "limit": "swiglu_limit",
    "up_offset": 1.0,
}

SOFTMAX: tuple[MoEFamily, ...] = (
    MoEFamily(
        "mixtral",
        ("mixtral", "minimax"),
        "layers.{}.",
        (gated("mlp."),),
        told=TOP_K,
        router=("block_sparse_moe.gate.weight", "mlp.gate.weight"),
        experts=MIXTRAL,
    ),
    MoEFamily(
        "qwen2_moe",
        ("qwen2_moe", "qwen3_moe", "olmoe", "qwen3_next", "qwen3_5_moe_text", "qwen3_vl_moe_text")
        + ("flex_olmo", "qwen3_omni_moe_text"),
        "layers.{}.",
        (gated("mlp."),),
        told=TOP_K | NORM,
        # Qwen3-VL stores stacks as [E, in, out], and transformers 5 as [E, out, in].
        experts=(gated("mlp.experts.{}."), stacked("mlp.experts.", in_out=None)),
        shared=(gated("mlp.shared_expert."),),
        shared_gate=("mlp.shared_expert_gate.weight",),
        shared_if={"qwen2_moe": True, "qwen3_next": True, "qwen3_5_moe_text": True},
    ),
    MoEFamily(
        "deepseek_v2",
        ("deepseek_v2",),
        "layers.{}.",
        (gated("mlp."),),
        routing={"norm_topk_prob": False},  # its code does not use the key of config.json
        told=TOP_K | SCALE,
        groups={"group_score": "max", "group_mask_value": 0.0},
        group_method="group_limited_greedy",
        only={"scoring_func": "softmax"},
        experts=EXPERTS,
        shared=(gated("mlp.shared_experts."),),
        shared_if={"deepseek_v2": "n_shared_experts"},
        keys=("topk_method",),
    ),
    MoEFamily(
        "mistral4",
        ("mistral4",),
        "layers.{}.",
        (gated("mlp."),),
        told=TOP_K | NORM | SCALE,
        norm_eps=1e-20,
        groups={"group_score": "top2_sum", "group_mask_value": 0.0},
        experts=EXPERTS[::-1],
        shared=(gated("mlp.shared_experts."),),
        shared_if={"mistral4": "n_shared_experts"},
    ),
    MoEFamily(
        "phimoe",
        ("phimoe",),
        "layers.{}.",
        (gated("mlp."),),
        router=("block_sparse_moe.gate.weight", "mlp.router.weight"),
        experts=MIXTRAL,
        route=phimoe_route,
        keys=("router_jitter_noise",),
    ),
    MoEFamily(
        "gpt_oss",
        ("gpt_oss",),
        "layers.{}.",
        (gated("mlp."),),
        activation_options=_GPT_OSS,
        routing=_AFTER,
        told=TOP_K,
        router=("mlp.router.weight",),
        router_bias=("mlp.router.bias",),
        experts=(stacked("mlp.experts.", in_out=True, biases=True, layout="interleaved"),),
    ),
    MoEFamily(
        "openai_privacy_filter",  # its code divides weights by k and multiplies the sum by it
        ("openai_privacy_filter",),
        "layers.{}.",
        (gated("mlp."),),
        activation_options=_GPT_OSS,
        routing=_AFTER,
        told=TOP_K,
        router=("mlp.router.weight",),
        router_bias=("mlp.router.bias",),
        experts=(stacked("mlp.experts.", in_out=True, biases=True),),
    ),
    MoEFamily(
        "granitemoe",
        ("granitemoe", "granitemoeshared", "granitemoehybrid"),
        "layers.{}.",
        # A hybrid model without experts has only the shared one.
        (
            Names("shared_mlp.", gate_up="input_linear", down="output_linear"),
            gated("mlp."),
        ),
        routing=_AFTER,
        told=TOP_K,
        router=("block_sparse_moe.router.layer.weight", "block_sparse_moe.router.weight"),
        experts=(
            Names("block_sparse_moe.", gate_up="input_linear", down="output_linear"),
            stacked("block_sparse_moe.experts."),
        ),
        shared=(Names("shared_mlp.", gate_up="input_linear", down="output_linear"),),
        shared_if={
            "granitemoe": False,
            "granitemoeshared": "shared_intermediate_size",
            "granitemoehybrid": True,
        },
    ),
    MoEFamily(
        "jetmoe",
        ("jetmoe",),
        "layers.{}.",
        (gated("mlp."),),
        activation_keys=("activation_function",),
        routing=_AFTER,
        told=TOP_K,
        router=("mlp.router.layer.weight",),
        experts=(Names("mlp.", gate_up="input_linear", down="output_linear"),),
        extra={"output_bias": "mlp.bias:d"},
    ),
    MoEFamily(
        "cohere2_moe",
        ("cohere2_moe",),
        "layers.{}.",
        (gated("mlp."),),
        told=TOP_K,
        experts=EXPERTS,
        shared=(gated("mlp.shared_experts."),),
        shared_if={"cohere2_moe": "num_shared_experts"},
        route=cohere_route,
        assembly=cohere_assembly,
        keys=("expert_selection_fn", "norm_topk_prob", "shared_expert_combination_strategy"),
    ),
    MoEFamily(
        "hunyuan_v1_moe",
        ("hunyuan_v1_moe",),
        "layers.{}.",
        (gated("mlp."),),
        by_layer=("moe_topk",),
        told={"top_k": "moe_topk"},
        router=("mlp.gate.wg.weight",),
        experts=EXPERTS,
        shared=(gated("mlp.shared_mlp."),),
        shared_if={"hunyuan_v1_moe": True},
    ),
    MoEFamily(
        "jamba",
        ("jamba",),
        "layers.{}.",
        (gated("feed_forward."),),
        routing={"norm_topk_prob": False},
        told=TOP_K,
        router=("feed_forward.router.weight",),
        experts=(gated("feed_forward.experts.{}."), stacked("feed_forward.experts.")),
    ),
    MoEFamily(
        "dbrx",
        ("dbrx",),
        "blocks.{}.",
        (),
        activation_keys=("ffn_config.ffn_act_fn.name",),
        told={"top_k": "ffn_config.moe_top_k"},
        router=("ffn.router.layer.weight",),
        experts=(Names("ffn.experts.mlp.", gate="w1", up="v1", down="w2", weight="", flat=True),),
        route=dbrx_route,
        keys=("ffn_config.moe_normalize_expert_weights",),
    ),
    MoEFamily(
        "ernie4_5_moe",
        ("ernie4_5_moe",),
        "layers.{}.",
        (gated("mlp."),),
        bias_key="use_bias",
        told={"top_k": "moe_k", "norm_min": "moe_norm_min"},
        correction_bias=(
            "mlp.moe_statics.e_score_correction_bias",
            "mlp.gate.moe_statics.e_score_correction_bias",
        ),
        experts=EXPERTS,
        shared=(gated("mlp.shared_experts."),),
        shared_if={"ernie4_5_moe": "moe_num_shared_experts"},
    ),
    MoEFamily(
        "longcat_flash",
        ("longcat_flash",),
        "layers.{}.",
        (),
        parts={f"mlps.{i}": (gated(f"mlps.{i}."),) for i in range(2)},
        routing={"norm_topk_prob": False},
        told={"top_k": "moe_topk"} | SCALE,
        router=("mlp.router.classifier.weight",),
        correction_bias=("mlp.router.e_score_correction_bias",),
        experts=(gated("mlp.experts.{}."), stacked("mlp.experts.", null_rows=True)),
        null_experts="zero_expert_num",
    ),
    MoEFamily(
        "aria",
        ("aria_text",),
        "layers.{}.",
        (gated("mlp."),),
        routing=_AFTER,
        told={"top_k": "moe_topk"},
        router=("mlp.router.weight",),
        # The code of the experts does not read the key of the activation.
        experts=(
            Names("mlp.experts.", gate_up="fc1", down="fc2", in_out=True, activation="silu"),
            Names(
                "mlp.experts.", gate_up="fc1", down="fc2", weight="", in_out=True, activation="silu"
            ),
            stacked("mlp.experts.", in_out=True, activation="silu"),
        ),
        shared=(gated("mlp.shared_experts."),),
        shared_if={"aria_text": True},
    ),
    MoEFamily(
        "gemma4",
        ("gemma4_text",),
        "layers.{}.",
        (gated("mlp."),),
        parts={"mlp": (gated("mlp."),)},
        activation_keys=("hidden_activation",),
        told={"top_k": "top_k_experts"},
        router=("router.proj.weight",),
        router_extra={
            "input_scale": "router.scale:d",
            "per_expert_scale": "router.per_expert_scale:E",
        },
        experts=(stacked("experts."),),
        root_scale=True,
        route=gemma4_route,
        keys=("rms_norm_eps",),
    ),
    MoEFamily(
        "llama4",
        ("llama4_text",),
        "layers.{}.",
        (gated("feed_forward."),),
        routing={"score_fn": "sigmoid", "select_on": "logits", "norm_topk_prob": False},
        told=TOP_K,
        router=("feed_forward.router.weight",),
        experts=(stacked("feed_forward.experts.", in_out=True),),
        shared=(gated("feed_forward.shared_expert."),),
        shared_if={"llama4_text": True},
        on_input=True,
    ),
    MoEFamily(
        "switch_transformers",
        ("switch_transformers",),
        "block.{}.",
        tuple(plain(start, "wi", "wo") for start in _SWITCH),
        activation_keys=("dense_act_fn",),
        router=tuple(f"{start}router.classifier.weight" for start in _SWITCH),
        experts=tuple(plain(f"{start}experts.expert_{{}}.", "wi", "wo") for start in _SWITCH),
        route=switch_route,
        keys=("expert_capacity",),
    ),
)
