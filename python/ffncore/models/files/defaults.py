"""DEFAULTS: the keys of config.json that feed-forward layers depend on, and their defaults.

DEFAULTS[model_type] has every key that the model's code in transformers 5 reads for such a layer,
with the default of the configuration class. None means that config.json has to have the key,
because the class has no default or transformers has no class (kimi_k2). Sizes and numbers of
experts are not here: they follow from the shapes of tensors. tests/conformance compares the table
with the classes. Tests: tests/models/test_config_json.py.
"""

from __future__ import annotations

from typing import Any

_GELU = {"hidden_act": "gelu"}
_SILU = {"hidden_act": "silu"}
_BIASED = {**_SILU, "mlp_bias": False}
_TANH = {"hidden_activation": "gelu_pytorch_tanh"}
_TOP_2 = {**_SILU, "num_experts_per_tok": 2}
_TOP_8 = {**_SILU, "num_experts_per_tok": 8, "norm_topk_prob": False}
_LLAMA4 = {**_SILU, "num_experts_per_tok": 1}

DEFAULTS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("bert", "roberta", "xlm-roberta", "camembert", "electra", "mpnet", "deberta")
        + ("deberta-v2", "layoutlm", "megatron-bert", "ernie", "vit", "deit"),
        _GELU,
    ),
    "esm": {},
    "gpt2": {"activation_function": "gelu_new"},
    "imagegpt": {"activation_function": "quick_gelu"},
    "decision_transformer": {"activation_function": "relu"},
    **dict.fromkeys(
        ("mistral", "ministral", "qwen2", "qwen3", "olmo", "olmo2", "olmo3", "cohere", "cohere2")
        + ("stablelm", "exaone4"),
        _SILU,
    ),
    **dict.fromkeys(("llama", "smollm3", "granite"), _BIASED),
    "gemma": {"hidden_act": "gelu_pytorch_tanh"},
    **dict.fromkeys(("gemma2", "gemma3", "gemma3_text"), _TANH),
    "mixtral": _TOP_2,
    "qwen2_moe": {**_SILU, "num_experts_per_tok": 4, "norm_topk_prob": False},
    "qwen3_moe": _TOP_8,
    "olmoe": _TOP_8,
    "deepseek_v2": {
        **_BIASED,
        "num_experts_per_tok": None,
        "routed_scaling_factor": 1.0,
        "topk_method": "greedy",
        "n_group": None,
        "topk_group": None,
        "n_shared_experts": 2,
    },
    "deepseek_v3": {
        **_SILU,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "n_group": 8,
        "topk_group": 4,
        "n_shared_experts": 1,
    },
    "kimi_k2": dict.fromkeys(
        ("hidden_act", "num_experts_per_tok", "norm_topk_prob", "routed_scaling_factor")
        + ("n_group", "topk_group", "n_shared_experts", "scoring_func", "topk_method")
    ),
    "glm4_moe": {
        **_SILU,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "n_group": 1,
        "topk_group": 1,
        "n_shared_experts": 1,
    },
    "gpt_oss": {"num_experts_per_tok": 4, "swiglu_alpha": 1.702, "swiglu_limit": 7.0},
    "granitemoe": _TOP_2,
    "granitemoeshared": {**_TOP_2, "shared_intermediate_size": 0},
    "granitemoehybrid": _TOP_2,
    "llama4": _LLAMA4,
    "llama4_text": _LLAMA4,
}

# Models of several parts: only the keys in text_config belong to the text model.
NESTED = frozenset({"gemma3", "llama4"})

# Values that a configuration class replaces: old Gemma files have gelu where they mean gelu_tanh.
SYNONYMS = {("gemma", "hidden_act"): {"gelu": "gelu_pytorch_tanh"}}

# Activations that are fixed in the model's code, which reads no key for them.
FIXED = {"esm": "gelu", "gpt_oss": "silu"}
