"""DEFAULTS: the keys of config.json that feed-forward layers depend on, and their defaults.

DEFAULTS[model_type] has every key that the model's code in transformers 5 reads for such a layer,
or for what stands around it, with the default of the configuration class. None means that
config.json has to have the key, because the class has no default or transformers has no class
(kimi_k2). Sizes and numbers of experts are not here: they follow from the shapes of tensors.
Keys with dots are paths, as config.py says. tests/conformance compares the table with the classes.
Tests: tests/models/test_config_json.py.
"""

from __future__ import annotations

from typing import Any

from .mixture_defaults import MIXTURES
from .towers import TOWERS

# Model types with equal defaults share a line.
_DENSE: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        "bert roberta xlm-roberta camembert electra mpnet deberta deberta-v2 layoutlm "
        "megatron-bert ernie xlm-roberta-xl roformer rembert roberta-prelayernorm "
        "splinter data2vec-text gte vit deit dinov2 dinov2_with_registers "
        "glmasr_encoder minimax_m3_vl_vision internvl_vision llama4_vision_model "
        "pixtral janus_vision_model got_ocr2_vision",
        {"hidden_act": "gelu"},
    ),
    ("esm bloom mpt lfm2", {}),
    ("nystromformer phi", {"hidden_act": "gelu_new"}),
    ("gpt2 gptj codegen gpt_neo", {"activation_function": "gelu_new"}),
    ("imagegpt", {"activation_function": "quick_gelu"}),
    ("decision_transformer m2m_100 speech_to_text", {"activation_function": "relu"}),
    ("openai-gpt", {"afn": "gelu"}),
    ("llama smollm3 seed_oss helium cwm ovis2_vision", {"hidden_act": "silu", "mlp_bias": False}),
    (
        "mistral ministral qwen2 qwen3 olmo olmo2 olmo3 cohere cohere2 exaone4 "
        "ministral3 hunyuan_v1_dense qwen2_vl_text qwen2_5_vl_text qwen3_vl_text "
        "qwen3_5_text voxtral_realtime_text voxtral_realtime_encoder diffllama "
        "olmo_hybrid phi3 glm glm4 dia_encoder dia_decoder glm4v_text glm_ocr_text "
        "nomic_bert qwen2_5_vl_vision glm_ocr_vision glm4v_vision exaone4_5_vision",
        {"hidden_act": "silu"},
    ),
    ("granite hyperclovax", {"hidden_act": "silu", "mlp_bias": False, "residual_multiplier": 1.0}),
    ("stablelm", {"hidden_act": "silu", "use_parallel_residual": False}),
    (
        "minicpm3",
        {"hidden_act": "silu", "mlp_bias": False, "num_hidden_layers": 62, "scale_depth": 1.4},
    ),
    (
        "gemma siglip_vision_model siglip_text_model siglip2_vision_model "
        "siglip2_text_model idefics3_vision idefics2_vision smolvlm_vision "
        "qwen3_vl_vision qwen3_vl_moe_vision qwen3_5_vision qwen3_5_moe_vision "
        "kimi_k25_vision qwen3_omni_moe_vision_encoder",
        {"hidden_act": "gelu_pytorch_tanh"},
    ),
    (
        "gemma2 gemma3_text vaultgemma recurrent_gemma gemma4_vision",
        {"hidden_activation": "gelu_pytorch_tanh"},
    ),
    (
        "gemma3n_text",
        {
            "hidden_activation": "gelu_pytorch_tanh",
            "activation_sparsity_pattern": [0.95] * 10 + [0.0] * 25,
            "num_hidden_layers": 35,
        },
    ),
    ("ernie4_5", {"hidden_act": "silu", "use_bias": False}),
    ("t5", {"dense_act_fn": "relu", "feed_forward_proj": "relu"}),
    ("mt5 umt5", {"dense_act_fn": "gelu_new", "feed_forward_proj": "gated-gelu"}),
    (
        "albert",
        {
            "hidden_act": "gelu_new",
            "num_hidden_layers": 12,
            "num_hidden_groups": 1,
            "inner_group_num": 1,
        },
    ),
    ("distilbert", {"activation": "gelu"}),
    ("opt", {"activation_function": "relu", "enable_bias": True, "do_layer_norm_before": True}),
    (
        "bart mbart whisper pegasus marian blenderbot blenderbot-small plbart xglm "
        "qwen2_audio_encoder voxtral_encoder audioflamingo3_encoder qwen3_omni_moe_audio_encoder",
        {"activation_function": "gelu"},
    ),
    ("nanochat persimmon", {"hidden_act": "relu2"}),
    ("falcon", {"activation": "gelu", "bias": False, "parallel_attn": True}),
    ("gpt_neox", {"hidden_act": "gelu", "use_parallel_residual": True}),
    ("gpt_bigcode", {"activation_function": "gelu_pytorch_tanh"}),
    ("starcoder2", {"hidden_act": "gelu_pytorch_tanh", "use_bias": True}),
    ("nemotron arcee", {"hidden_act": "relu2", "mlp_bias": False}),
    ("jais2", {"hidden_act": "relu2", "mlp_bias": True}),
    ("apertus", {"hidden_act": "xielu"}),
    ("bitnet", {"hidden_act": "relu2", "rms_norm_eps": 1e-05}),
    ("kosmos_2_text_model", {"activation_function": "gelu", "layer_norm_eps": 1e-05}),
    ("modernbert modernbert-decoder", {"hidden_activation": "gelu", "mlp_bias": False}),
    ("moonshine", {"encoder_hidden_act": "gelu", "decoder_hidden_act": "silu"}),
    ("new internlm2", {"hidden_act": None}),
    (
        "falcon_h1",
        {
            "hidden_act": "silu",
            "mlp_multipliers.0": 1.0,
            "mlp_bias": False,
            "mlp_multipliers.1": 1.0,
        },
    ),
    (
        "clip_vision_model clip_text_model kosmos_2_vision_model step3p5_vision qwen2_vl_vision",
        {"hidden_act": "quick_gelu"},
    ),
)

DEFAULTS: dict[str, dict[str, Any]] = {
    model_type: keys
    for model_types, keys in (*_DENSE, *MIXTURES)
    for model_type in model_types.split()
}

# Models of several towers: each tower has its own part of config.json.
NESTED = frozenset(TOWERS)

# Values that a configuration class or a model's code takes for another: "gelu" stands for gelu_tanh
# in old files of Gemma, and in GPT-1.
SYNONYMS = {
    ("gemma", "hidden_act"): {"gelu": "gelu_pytorch_tanh"},
    ("openai-gpt", "afn"): {"gelu": "gelu_new"},
}

# Activations that are fixed in the model's code, which reads no key for them.
FIXED = {
    "esm": "gelu",
    "gpt_oss": "silu",
    "openai_privacy_filter": "silu",
    "bloom": "gelu_tanh",
    "mpt": "gelu",
    "lfm2": "silu",
    "lfm2_moe": "silu",
}
