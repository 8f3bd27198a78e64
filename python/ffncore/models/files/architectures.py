"""The metadata of a GGUF file as the keys of config.json: ARCHITECTURES, one row for each model.

    general.architecture   ->  model_type
    ARCH.expert_used_count ->  num_experts_per_tok, or what the family calls it

A row has the model_type, and values that the model's code in llama.cpp fixes and its file does not
tell. Keys that a file leaves out have the defaults of the class (defaults.py), but for groups of
experts: a file without them is computed without groups. Tests: tests/models/test_gguf.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .config import Config
from .json_text import brief


@dataclass(frozen=True)
class Architecture:
    """How a model's GGUF file is read.

    model_type  of the table of families
    experts     the model_type if there are experts; "": the same
    sigmoid     the model_type if experts are scored by a sigmoid; "": the same
    fixed       keys of config.json that its file does not tell
    told        keys of config.json, and those of the file without the architecture's name
    fused       whether ffn_up has the rows of gate, and then those of up
    """

    model_type: str
    experts: str = ""
    sigmoid: str = ""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    told: Mapping[str, str] = field(default_factory=dict)
    fused: bool = False


_TOP_K = {"num_experts_per_tok": "expert_used_count"}
_NORM = {"norm_topk_prob": "expert_weights_norm"}
_SCALE = {"routed_scaling_factor": "expert_weights_scale"}
_SHARED = {"n_shared_experts": "expert_shared_count"}
_GROUPS = {"n_group": "expert_group_count", "topk_group": "expert_group_used_count"}
_V3 = {**_TOP_K, **_NORM, **_SCALE, **_SHARED, **_GROUPS}
_UNGROUPED = {"n_group": 1, "topk_group": 1}

ARCHITECTURES: dict[str, Architecture] = {
    name: Architecture(name)
    for name in ("bert", "bloom", "falcon", "gemma", "gemma2", "gpt2", "gptj", "mpt", "nemotron")
    + ("arcee", "olmo", "olmo2", "qwen2", "qwen3", "stablelm", "starcoder2", "cohere2", "exaone4")
    + ("smollm3", "seed_oss", "minicpm3", "lfm2", "ernie4_5", "opt", "xglm")
}
ARCHITECTURES |= {
    "llama": Architecture("llama", experts="mixtral", told=_TOP_K),
    "mistral3": Architecture("ministral3"),
    "granite": Architecture("granite", fixed={"residual_multiplier": 1.0}),
    "gemma3": Architecture("gemma3_text"),
    "qwen2vl": Architecture("qwen2_vl_text"),
    "qwen3vl": Architecture("qwen3_vl_text"),
    "command-r": Architecture("cohere"),
    "gptneox": Architecture("gpt_neox"),
    "starcoder": Architecture("gpt_bigcode"),
    "nomic-bert": Architecture("nomic_bert"),
    "internlm2": Architecture("internlm2", fixed={"hidden_act": "silu"}),
    "hunyuan-dense": Architecture("hunyuan_v1_dense"),
    "phi2": Architecture("phi"),
    "phi3": Architecture("phi3", fused=True),
    "glm4": Architecture("glm4", fused=True),
    "modern-bert": Architecture("modernbert", fused=True),
    # The first BitNet had silu; that of Microsoft has relu2.
    "bitnet": Architecture("bitnet", fixed={"hidden_act": "silu"}),
    "bitnet-b1.58": Architecture("bitnet", fixed={"hidden_act": "relu2"}),
    "bitnet-25": Architecture("bitnet", fixed={"hidden_act": "relu2"}),
    "qwen2moe": Architecture("qwen2_moe", told=_TOP_K, fixed={"norm_topk_prob": False}),
    "qwen3moe": Architecture("qwen3_moe", told=_TOP_K, fixed={"norm_topk_prob": True}),
    "qwen3vlmoe": Architecture("qwen3_vl_moe_text", told=_TOP_K),
    "qwen3next": Architecture("qwen3_next", told=_TOP_K, fixed={"norm_topk_prob": True}),
    "olmoe": Architecture("olmoe", told=_TOP_K, fixed={"norm_topk_prob": False}),
    "jamba": Architecture("jamba", told=_TOP_K),
    "dbrx": Architecture("dbrx", told={"ffn_config.moe_top_k": "expert_used_count"}),
    "granitemoe": Architecture("granitemoe", told=_TOP_K, fixed={"residual_multiplier": 1.0}),
    "phimoe": Architecture("phimoe"),
    "llama4": Architecture("llama4_text", told=_TOP_K),
    "gpt-oss": Architecture("gpt_oss", told=_TOP_K),
    "deepseek2": Architecture("deepseek_v2", sigmoid="deepseek_v3", told=_V3, fixed=_UNGROUPED),
    "glm4moe": Architecture("glm4_moe", told=_V3, fixed=_UNGROUPED),
    "dots1": Architecture("dots1", told=_V3, fixed=_UNGROUPED),
    "minimax-m2": Architecture("minimax_m2", told=_TOP_K),
    "lfm2moe": Architecture("lfm2_moe", told=_TOP_K, fixed={"norm_topk_prob": True}),
    "hunyuan-moe": Architecture("hunyuan_v1_moe", told={"moe_topk": "expert_used_count"}),
    "ernie4_5-moe": Architecture(
        "ernie4_5_moe",
        told={"moe_k": "expert_used_count", "moe_num_shared_experts": "expert_shared_count"},
    ),
}

# What expert_gating_func says: 1 a softmax, 2 a sigmoid, 3 a softmax of the chosen ones.
_SIGMOID = 2


def architecture(path: Path, metadata: Mapping[str, Any]) -> Architecture:
    """The row of a file; ValueError if it names none that is known."""
    told = metadata.get("general.architecture")
    found = ARCHITECTURES.get(told) if isinstance(told, str) else None
    if found is None:
        raise ValueError(
            f"{path} has general.architecture {brief(told)}; expected one of "
            f"{', '.join(sorted(ARCHITECTURES))}"
        )
    return found


def gguf_config(path: Path, metadata: Mapping[str, Any]) -> Config:
    """The Config of a GGUF file. Raises ValueError if its architecture is not known."""
    row = architecture(path, metadata)
    start = f"{metadata['general.architecture']}."
    model_type = row.model_type
    experts = metadata.get(start + "expert_count", 0)
    if row.experts and isinstance(experts, int) and experts > 0:
        model_type = row.experts
    if row.sigmoid and metadata.get(start + "expert_gating_func") == _SIGMOID:
        model_type = row.sigmoid
    whole: dict[str, Any] = {"model_type": model_type, **row.fixed}
    if "topk_group" in row.told and _several(metadata.get(start + "expert_group_count")):
        whole["topk_method"] = {"deepseek_v2": "group_limited_greedy"}.get(model_type, "noaux_tc")
    for key, told in row.told.items():
        if start + told in metadata:
            _put(whole, key, metadata[start + told])
    return Config(path, whole)


def _several(count: object) -> bool:
    return isinstance(count, int) and count > 1


def _put(whole: dict[str, Any], key: str, value: Any) -> None:
    """Set a key, or a path of keys."""
    *outer, last = key.split(".")
    for name in outer:
        whole = whole.setdefault(name, {})
    whole[last] = value
