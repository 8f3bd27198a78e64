"""Towers: the stacks of layers of one model, such as those for text and for images.

WORDS finds the tower of a tensor by its name, PARTS the part of config.json with its keys. TOWERS
has the model_types that a configuration class of transformers gives its parts if config.json does
not name them. Tests: tests/models/test_towers.py.
"""

from __future__ import annotations

# Components of names that show a tower; of two in a name, the tower that comes first here counts.
# "text" and "" are the language model.
WORDS: dict[str, frozenset[str]] = {
    "mtp": frozenset(("mtp", "nextn", "mtp_layers")),
    "talker": frozenset(("talker", "code_predictor", "code2wav", "token2wav", "depth_decoder")),
    "connector": frozenset(("perceiver_resampler", "resampler", "qformer")),
    "vision": frozenset(
        ("vision", "vision_model", "vision_tower", "visual", "vision_encoder", "visual_encoder")
        + ("image_encoder", "vit", "vpm", "vision_backbone", "image_model", "vision_embedder")
        + ("image_tower", "video_tower")
    ),
    "audio": frozenset(
        ("audio", "audio_tower", "audio_model", "audio_encoder", "speech_encoder", "apm")
    ),
    "text": frozenset(
        ("text_model", "language_model", "llm", "thinker", "text_encoder", "lm", "language")
    ),
    "encoder": frozenset(("encoder",)),
    "decoder": frozenset(("decoder",)),
}

# Layers of these towers stand beside the model: they predict further tokens or sounds, or connect
# two other towers.
SIDE = frozenset(("mtp", "talker", "connector"))

PARTS: dict[str, tuple[str, ...]] = {
    "text": ("text_config", "llm_config", "language_config"),
    "vision": ("vision_config", "vit_config", "image_config"),
    "audio": ("audio_config", "speech_config"),
    "encoder": ("encoder_config",),
    "decoder": ("decoder_config",),
}


def tower_of(prefix: str) -> str:
    """The tower that a prefix of names tells: "vision" for "model.visual."; "" if it tells none."""
    words = set(prefix.split("."))
    return next((tower for tower, known in WORDS.items() if words & known), "")


def _towers(text: str = "", vision: str = "", audio: str = "") -> dict[str, str]:
    told = {"text": text, "vision": vision, "audio": audio}
    return {tower: model_type for tower, model_type in told.items() if model_type}


_CLIP, _SIGLIP = "clip_vision_model", "siglip_vision_model"

TOWERS: dict[str, dict[str, str]] = {
    "aria": _towers("aria_text", "idefics3_vision"),
    "audioflamingo3": _towers("qwen2", audio="audioflamingo3_encoder"),
    "aya_vision": _towers("cohere2", _SIGLIP),
    "clip": _towers("clip_text_model", _CLIP),
    "cohere2_vision": _towers("cohere2", _SIGLIP),
    "deepseek_vl": _towers("llama", _SIGLIP),
    "dia": {"encoder": "dia_encoder", "decoder": "dia_decoder"},
    "exaone4_5": _towers("exaone4", "exaone4_5_vision"),
    "gemma3": _towers("gemma3_text", _SIGLIP),
    "gemma3n": _towers("gemma3n_text", "gemma3n_vision", "gemma3n_audio"),
    "glm4v": _towers("glm4v_text", "glm4v_vision"),
    "glm_ocr": _towers("glm_ocr_text", "glm_ocr_vision"),
    "gemma4": _towers("gemma4_text", "gemma4_vision", "gemma4_audio"),
    "glmasr": _towers("llama", audio="glmasr_encoder"),
    "got_ocr2": _towers("qwen2", "got_ocr2_vision"),
    "granite_speech": _towers("granite", audio="granite_speech_encoder"),
    "hyperclovax_vision_v2": _towers("hyperclovax", "qwen2_5_vl_vision"),
    "idefics2": _towers("mistral", "idefics2_vision"),
    "idefics3": _towers("llama", "idefics3_vision"),
    "inkling_mm_model": _towers("inkling_text", "inkling_vision", "inkling_audio"),
    "internvl": _towers("qwen2", "internvl_vision"),
    "internvl_chat": _towers("internlm2"),
    "janus": _towers("llama", "janus_vision_model"),
    "kimi_k25": _towers("deepseek_v3", "kimi_k25_vision"),
    "kosmos-2": _towers("kosmos_2_text_model", "kosmos_2_vision_model"),
    "lfm2_vl": _towers("lfm2", "siglip2_vision_model"),
    "lighton_ocr": _towers("qwen3", "pixtral"),
    "llama4": _towers("llama4_text", "llama4_vision_model"),
    "llava": _towers("llama", _CLIP),
    "llava_next": _towers("llama", _CLIP),
    "llava_next_video": _towers("llama", _CLIP),
    "llava_onevision": _towers("qwen2", _SIGLIP),
    "minimax_m3_vl": _towers("minimax_m3_vl_text", "minimax_m3_vl_vision"),
    "mistral3": _towers("mistral", "pixtral"),
    "modernvbert": _towers("modernbert", _SIGLIP),
    "muse_spark": _towers("muse_spark_text", "muse_spark_vision", "muse_spark_audio"),
    "ovis2": _towers("qwen2", "ovis2_vision"),
    "paligemma": _towers("gemma", _SIGLIP),
    "perception_lm": _towers("llama"),
    "qwen2_5_vl": _towers("qwen2_5_vl_text", "qwen2_5_vl_vision"),
    "qwen2_audio": _towers("qwen2", audio="qwen2_audio_encoder"),
    "qwen2_vl": _towers("qwen2_vl_text", "qwen2_vl_vision"),
    "qwen3_5": _towers("qwen3_5_text", "qwen3_5_vision"),
    "qwen3_5_moe": _towers("qwen3_5_moe_text", "qwen3_5_moe_vision"),
    "qwen3_asr": _towers("qwen3", audio="qwen3_asr_encoder"),
    "qwen3_omni_moe": _towers(
        "qwen3_omni_moe_text", "qwen3_omni_moe_vision_encoder", "qwen3_omni_moe_audio_encoder"
    ),
    "qwen3_vl": _towers("qwen3_vl_text", "qwen3_vl_vision"),
    "qwen3_vl_moe": _towers("qwen3_vl_moe_text", "qwen3_vl_moe_vision"),
    "shieldgemma2": _towers("gemma3_text", _SIGLIP),
    "siglip": _towers("siglip_text_model", _SIGLIP),
    "siglip2": _towers("siglip2_text_model", "siglip2_vision_model"),
    "smolvlm": _towers("llama", "smolvlm_vision"),
    "step3p7": _towers("step3p5", "step3p5_vision"),
    "vibevoice": _towers("qwen2"),
    "video_llava": _towers("llama", _CLIP),
    "vipllava": _towers("llama", _CLIP),
    "voxtral": _towers("llama", audio="voxtral_encoder"),
    "voxtral_realtime": _towers("voxtral_realtime_text", audio="voxtral_realtime_encoder"),
}

# Their config.json may have the keys of the text model beside those of the other parts.
FLAT = frozenset(("qwen2_vl", "qwen2_5_vl"))
