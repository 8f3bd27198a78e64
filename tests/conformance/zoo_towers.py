"""Model types of several stacks of layers, as a language model and a vision tower: see zoo.py.

fc.load takes the language model; prefix= names another tower. Towers have another d than the
language model, so that no layer can take the place of another one unnoticed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from blocks import F
from zoo import Block, Model
from zoo_mixtures import FIRST_DENSE

Tensors = dict[str, Any]

V = 24  # the d of towers
TEXT = "model.language_model.layers.{}.mlp"
LANGUAGE = (Block(TEXT),)
MIX = (Block(TEXT, mixture=True),)
AFTER_DENSE = (Block(TEXT, (0,)), Block(TEXT, (1,), mixture=True))
IMAGES = "AutoModelForImageTextToText"


def part(model_type: str, **keys: Any) -> dict[str, Any]:
    """The configuration of a language model or a tower."""
    return {"model_type": model_type, **keys}


def tower(model_type: str, **keys: Any) -> dict[str, Any]:
    return part(model_type, hidden_size=V, **keys)


def seen(path: str, prefix: str, **more: Any) -> Block:
    """The blocks of a tower."""
    return Block(path, load={"prefix": prefix}, d=V, **more)


CLIP_TEXT = Block("text_model.encoder.layers.{}.mlp", load={"prefix": "text_model"})
CLIP_VISION = seen("vision_model.encoder.layers.{}.mlp", "vision_model")
ENCODED = "model.vision_tower.encoder.layers.{}.mlp"
QWEN_VISION = seen("model.visual.blocks.{}.mlp", "visual")


def two_towers(name: str) -> dict[str, Any]:
    return {
        "text_config": part(f"{name}_text_model"),
        "vision_config": tower(f"{name}_vision_model"),
    }


def images(text: str, vision: str, **keys: Any) -> dict[str, Any]:
    return {"text_config": part(text, **keys), "vision_config": tower(vision)}


def moved(*pairs: tuple[str, str]) -> Callable[[Tensors], Tensors]:
    """Rename tensors: each pattern that matches is replaced."""

    def change(tensors: Tensors) -> Tensors:
        found = {}
        for name, tensor in tensors.items():
            for old, new in pairs:
                name = re.sub(old, new, name)
            found[name] = tensor
        return found

    return change


as_language_model = moved((r"^model\.", "model.language_model."))


def as_text_config(written: dict[str, Any]) -> dict[str, Any]:
    text = {**written, "model_type": written["model_type"] + "_text"}
    return {"model_type": written["model_type"], "text_config": text}


def experts_in_out(tensors: Tensors) -> Tensors:
    """The library does not transpose them back."""
    return {n: t.swapaxes(1, 2) if ".experts." in n else t for n, t in tensors.items()}


TEXT_PREFIX, VISION_PREFIX = (moved((r"^", f"{side}_model.")) for side in ("text", "vision"))

TOWERS = [
    Model("clip", (CLIP_TEXT, CLIP_VISION), two_towers("clip"), "CLIPModel"),
    Model("siglip", (CLIP_TEXT, CLIP_VISION), two_towers("siglip"), "SiglipModel"),
    Model("siglip2", (CLIP_TEXT, CLIP_VISION), two_towers("siglip2"), "Siglip2Model"),
    Model(
        "clip_text_model", (Block("encoder.layers.{}.mlp"),), {}, "CLIPTextModel", mend=TEXT_PREFIX
    ),
    Model(
        "clip_vision_model",
        (Block("encoder.layers.{}.mlp"),),
        {},
        "CLIPVisionModel",
        mend=VISION_PREFIX,
    ),
    Model(
        "siglip_text_model",
        (Block("encoder.layers.{}.mlp"),),
        {},
        "SiglipTextModel",
        mend=TEXT_PREFIX,
    ),
    Model(
        "siglip_vision_model",
        (Block("encoder.layers.{}.mlp"),),
        {},
        "SiglipVisionModel",
        mend=VISION_PREFIX,
    ),
    Model(
        "siglip2_text_model",
        (Block("encoder.layers.{}.mlp"),),
        {},
        "Siglip2TextModel",
        mend=TEXT_PREFIX,
    ),
    Model(
        "siglip2_vision_model",
        (Block("encoder.layers.{}.mlp"),),
        {},
        "Siglip2VisionModel",
        mend=VISION_PREFIX,
    ),
    Model(
        "dia",
        tuple(
            Block(f"model.{side}.layers.{{}}.mlp", load={"prefix": side}, d=d)
            for side, d in (("encoder", 16), ("decoder", V))
        ),
        {
            "encoder_config": part("dia_encoder"),
            "decoder_config": tower(
                "dia_decoder",
                cross_hidden_size=16,
                cross_num_attention_heads=2,
                cross_head_dim=8,
                cross_num_key_value_heads=2,
            ),
        },
        "DiaForConditionalGeneration",
    ),
    Model(
        "kosmos-2",
        (
            Block("text_model.model.layers.{}.ffn"),
            seen("vision_model.model.encoder.layers.{}.mlp", "vision_model"),
        ),
        {
            "text_config": part("kosmos_2_text_model", embed_dim=16, layer_norm_eps=0.1),
            "vision_config": tower("kosmos_2_vision_model"),
        },
        "Kosmos2ForConditionalGeneration",
    ),
    Model(
        "moonshine",
        tuple(
            Block(f"model.{side}.layers.{{}}.mlp", load={"prefix": side})
            for side in ("encoder", "decoder")
        ),
        {},
        "MoonshineForConditionalGeneration",
    ),
    Model(
        "voxtral_realtime",
        (Block(TEXT), seen("model.audio_tower.layers.{}.mlp", "audio_tower")),
        {
            "text_config": part("voxtral_realtime_text"),
            "audio_config": tower("voxtral_realtime_encoder"),
        },
        "VoxtralRealtimeForConditionalGeneration",
    ),
    Model(
        "llava",
        (Block(TEXT), seen(ENCODED, "vision_tower")),
        images("llama", "clip_vision_model"),
        IMAGES,
    ),
    Model(
        "mistral3",
        (
            Block(TEXT),
            seen("model.vision_tower.transformer.layers.{}.feed_forward", "vision_tower"),
        ),
        images("mistral", "pixtral"),
        IMAGES,
    ),
    Model(
        "gemma3",
        (Block(TEXT), seen(ENCODED, "vision_tower")),
        images("gemma3_text", "siglip_vision_model"),
        IMAGES,
    ),
    # Its vision tower, a convolutional network, needs further packages.
    Model(
        "gemma3n",
        (Block("model.layers.{}.mlp"),),
        {"activation_sparsity_pattern": [0.95, 0.0], "num_kv_shared_layers": 0},
        made_as="gemma3n_text",
        rename=as_language_model,
        retell=as_text_config,
    ),
    Model(
        "gemma4",
        (Block(TEXT), seen("model.vision_tower.encoder.layers.{}.mlp", "vision_tower")),
        images("gemma4_text", "gemma4_vision"),
        IMAGES,
    ),
    Model(
        "qwen3_vl", (Block(TEXT), QWEN_VISION), images("qwen3_vl_text", "qwen3_vl_vision"), IMAGES
    ),
    Model("qwen3_5", (Block(TEXT), QWEN_VISION), images("qwen3_5_text", "qwen3_5_vision"), IMAGES),
    Model(
        "qwen3_5_moe", (*MIX, QWEN_VISION), images("qwen3_5_moe_text", "qwen3_5_moe_vision"), IMAGES
    ),
    Model(
        "qwen3_vl_moe",
        (*AFTER_DENSE, QWEN_VISION),
        images("qwen3_vl_moe_text", "qwen3_vl_moe_vision", mlp_only_layers=[0]),
        IMAGES,
        mend=experts_in_out,
    ),
    Model(
        "llama4",
        (
            Block("language_model.model.layers.{}.feed_forward", (0,)),
            Block("language_model.model.layers.{}.feed_forward", (1,), mixture=True),
            seen("vision_model.model.layers.{}.mlp", "vision_model"),
        ),
        images(
            "llama4_text",
            "llama4_vision_model",
            num_experts_per_tok=1,
            intermediate_size=F,
            intermediate_size_mlp=20,
            interleave_moe_layer_step=2,
        ),
        IMAGES,
    ),
    Model(
        "aria",
        (*MIX, seen("model.vision_tower.encoder.layers.{}.mlp", "vision_tower")),
        images("aria_text", "idefics3_vision", intermediate_size=F),
        IMAGES,
    ),
    Model(
        "kimi_k25",
        (*AFTER_DENSE, seen("model.vision_tower.layers.{}.mlp", "vision_tower")),
        images("deepseek_v3", "kimi_k25_vision", first_k_dense_replace=1, n_group=4, topk_group=2),
        IMAGES,
        mend=moved((r"^language_model\.model\.blocks", "language_model.model.layers")),
    ),
    Model(
        "minimax_m3_vl",
        (*AFTER_DENSE, seen("model.vision_tower.layers.{}.mlp", "vision_tower")),
        images(
            "minimax_m3_vl_text",
            "minimax_m3_vl_vision",
            intermediate_size=F,
            dense_intermediate_size=20,
            swiglu_limit=1.0,
            **FIRST_DENSE,
        ),
        IMAGES,
    ),
    Model(
        "step3p7",
        (*AFTER_DENSE, seen("model.vision_model.layers.{}.mlp", "vision_model")),
        images(
            "step3p5",
            "step3p5_vision",
            share_expert_dim=10,
            swiglu_limits=[0.3, 0.4],
            swiglu_limits_shared=[0.2, 0.25],
            moe_router_scaling_factor=2.5,
            **FIRST_DENSE,
        ),
        IMAGES,
    ),
    Model(
        "inkling_mm_model",
        AFTER_DENSE,
        images(
            "inkling_text", "inkling_vision", n_shared_experts=2, route_scale=2.5, **FIRST_DENSE
        ),
        IMAGES,
        without=("per_expert_scale",),  # the library has one number for all experts
    ),
]
