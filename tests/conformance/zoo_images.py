"""Language models beside a tower for images or sounds, each of which other models have, too.

See zoo.py. The released names differ from model to model, and so do the names of the towers.
"""

from __future__ import annotations

from typing import Any

from zoo import Block, Model
from zoo_dense import fc1_fc2
from zoo_towers import ENCODED, IMAGES, QWEN_VISION, TEXT, V, part, seen, tower

TOWER = seen(ENCODED, "vision_tower")
VISION_MODEL = seen("model.vision_model.encoder.layers.{}.mlp", "vision_model")
TEXT_MODEL = "model.text_model.layers.{}.mlp"


def beside(
    model_type: str,
    text: str,
    vision: str,
    block: Block,
    path: str = TEXT,
    head: str = IMAGES,
    **keys: Any,
) -> Model:
    """A language model of one model_type with blocks at path, and a tower of another one."""
    parts = {"text_config": part(text), "vision_config": tower(vision)}
    return Model(model_type, (Block(path), block), {**parts, **keys}, head)


def heard(model_type: str, text: str, audio: str, head: str = "AutoModelForMultimodalLM") -> Model:
    """A language model and an encoder of sounds, whose layers are those of Whisper."""
    block = seen("model.audio_tower.layers.{}", "audio_tower", call=fc1_fc2)
    parts = {"text_config": part(text), "audio_config": part(audio, d_model=V)}
    return Model(model_type, (Block(TEXT), block), parts, head)


# Configuration and class of Qwen3-Omni without the parts that speak.
OMNI = (
    {
        "enable_audio_output": False,
        "thinker_config": part(
            "qwen3_omni_moe_thinker",
            text_config=part("qwen3_omni_moe_text"),
            vision_config=tower("qwen3_omni_moe_vision_encoder"),
            audio_config=part("qwen3_omni_moe_audio_encoder", d_model=V, output_dim=16),
        ),
    },
    "Qwen3OmniMoeForConditionalGeneration",
)

CLIP, SIGLIP = "clip_vision_model", "siglip_vision_model"

IMAGE_MODELS = [
    *(beside(t, "llama", CLIP, TOWER) for t in ("llava_next", "llava_next_video", "vipllava")),
    beside(
        *("video_llava", "llama", CLIP),
        seen("model.image_tower.encoder.layers.{}.mlp", "image_tower"),
    ),
    beside("llava_onevision", "qwen2", SIGLIP, TOWER),
    beside("aya_vision", "cohere2", SIGLIP, TOWER),
    beside("cohere2_vision", "cohere2", SIGLIP, TOWER),
    beside("paligemma", "gemma", SIGLIP, TOWER),
    beside("shieldgemma2", "gemma3_text", SIGLIP, TOWER),
    beside("deepseek_vl", "llama", SIGLIP, VISION_MODEL),
    beside(
        *("modernvbert", "modernbert", SIGLIP, VISION_MODEL, TEXT_MODEL, "ModernVBertForMaskedLM")
    ),
    beside(
        *("lfm2_vl", "lfm2", "siglip2_vision_model", TOWER),
        "model.language_model.layers.{}.feed_forward",
    ),
    beside(
        *("lighton_ocr", "qwen3", "pixtral"),
        seen("model.vision_encoder.transformer.layers.{}.feed_forward", "vision_encoder"),
    ),
    beside(
        *("internvl", "qwen2", "internvl_vision"),
        seen("model.vision_tower.encoder.layer.{}.mlp", "vision_tower"),
    ),
    beside(
        *("ovis2", "qwen2", "ovis2_vision"),
        seen("model.vision_tower.transformer.encoder.layers.{}.ffn", "vision_tower"),
    ),
    beside(
        *("got_ocr2", "qwen2", "got_ocr2_vision"),
        seen("model.vision_tower.layers.{}.mlp", "vision_tower"),
    ),
    beside("idefics2", "mistral", "idefics2_vision", VISION_MODEL, TEXT_MODEL),
    beside("idefics3", "llama", "idefics3_vision", VISION_MODEL, TEXT_MODEL),
    beside("smolvlm", "llama", "smolvlm_vision", VISION_MODEL, TEXT_MODEL),
    beside("qwen2_5_vl", "qwen2_5_vl_text", "qwen2_5_vl_vision", QWEN_VISION),
    Model(
        "qwen2_vl",
        (Block(TEXT), QWEN_VISION),
        {
            "text_config": part("qwen2_vl_text"),
            "vision_config": part(
                "qwen2_vl_vision", embed_dim=V
            ),  # hidden_size is that of the text
        },
        IMAGES,
    ),
    beside("exaone4_5", "exaone4", "exaone4_5_vision", QWEN_VISION),
    beside("glm4v", "glm4v_text", "glm4v_vision", QWEN_VISION),
    beside("glm_ocr", "glm_ocr_text", "glm_ocr_vision", QWEN_VISION),
    beside(
        *("hyperclovax_vision_v2", "hyperclovax", "qwen2_5_vl_vision"),
        seen("model.vision_model.blocks.{}.mlp", "vision_model"),
    ),
    beside(
        *("janus", "llama", "janus_vision_model", VISION_MODEL),
        vq_config=part("janus_vqgan", base_channels=32, channel_multiplier=[1, 1]),
    ),
    heard("qwen2_audio", "qwen2", "qwen2_audio_encoder"),
    heard("voxtral", "llama", "voxtral_encoder"),
    heard(
        "audioflamingo3",
        "qwen2",
        "audioflamingo3_encoder",
        "AudioFlamingo3ForConditionalGeneration",
    ),
    Model(
        "glmasr",
        (Block(TEXT), seen("model.audio_tower.layers.{}.mlp", "audio_tower")),
        {"text_config": part("llama"), "audio_config": tower("glmasr_encoder")},
        "AutoModelForMultimodalLM",
    ),
    Model(
        "qwen3_omni_moe",
        (
            Block("thinker.model.language_model.layers.{}.mlp", mixture=True),
            seen("thinker.model.visual.blocks.{}.mlp", "visual"),
            seen("thinker.model.audio_tower.layers.{}", "audio_tower", call=fc1_fc2),
        ),
        *OMNI,
    ),
]
