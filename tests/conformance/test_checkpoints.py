"""fc.load of models that the transformers library saved: layers compute what their blocks do.

save_pretrained writes the names and layouts of each family's published checkpoints, and config.json
as the family has it. Small models of two layers; the first one is dense where the family has that.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from blocks import HEADS, D, E, F, K, compare, fill, generator, near, no_near_ties, torch
from families_sigmoid import FAMILIES as SIGMOID
from families_softmax import FAMILIES as SOFTMAX

import ffncore as fc

pytest.importorskip("safetensors")
from transformers import AutoConfig, AutoModelForCausalLM

FAMILIES = {**SOFTMAX, **SIGMOID}
DENSE_FF = 20
MODEL = {"hidden_size": D, "num_hidden_layers": 2, "vocab_size": 32, **HEADS}
# No number of the vocabulary above may be out of it.
TOKENS = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0)
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "v_head_dim": 4}
LATENT |= {"qk_nope_head_dim": 4}
LOCAL = {"num_local_experts": E, "num_experts_per_tok": K, "intermediate_size": F}
QWEN = {"num_experts": E, "num_experts_per_tok": K, "moe_intermediate_size": F}
ROUTED = {"n_routed_experts": E, "num_experts_per_tok": K, "moe_intermediate_size": F}
FIRST_DENSE = {"first_k_dense_replace": 1, "intermediate_size": DENSE_FF}
GROUPED = {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5}

# model_type, the family that has its names, keys of config.json, whether it has a dense layer
MODELS: dict[str, tuple[str, str, dict[str, Any], bool]] = {
    "mixtral": ("mixtral", "mixtral", LOCAL, False),
    "qwen2-moe": (
        "qwen2_moe",
        "qwen2-moe",
        {
            **QWEN,
            "mlp_only_layers": [0],
            "intermediate_size": DENSE_FF,
            "shared_expert_intermediate_size": 10,
        },
        True,
    ),
    "qwen3-moe": (
        "qwen3_moe",
        "qwen3-moe",
        {
            **QWEN,
            "mlp_only_layers": [0],
            "intermediate_size": DENSE_FF,
            "norm_topk_prob": True,
            "head_dim": 8,
        },
        True,
    ),
    "qwen3-moe-unnormalized": (
        "qwen3_moe",
        "qwen3-moe",
        {**QWEN, "norm_topk_prob": False, "head_dim": 8},
        False,
    ),
    "olmoe": ("olmoe", "olmoe", {**QWEN, "intermediate_size": F}, False),
    "deepseek-v2": (
        "deepseek_v2",
        "deepseek-v2",
        {
            **ROUTED,
            **FIRST_DENSE,
            **GROUPED,
            **LATENT,
            "n_shared_experts": 2,
            "topk_method": "group_limited_greedy",
        },
        True,
    ),
    "deepseek-v2-lite": (
        "deepseek_v2",
        "deepseek-v2",
        {**ROUTED, **FIRST_DENSE, **LATENT, "n_shared_experts": 2, "topk_method": "greedy"},
        True,
    ),
    "deepseek-v3": (
        "deepseek_v3",
        "deepseek-v3",
        {**ROUTED, **FIRST_DENSE, **GROUPED, **LATENT, "n_shared_experts": 1},
        True,
    ),
    "glm-4.5": (
        "glm4_moe",
        "glm-4.5",
        {**ROUTED, **FIRST_DENSE, "n_shared_experts": 1, "head_dim": 8},
        True,
    ),
    "gpt-oss": ("gpt_oss", "gpt-oss", {**LOCAL, "swiglu_limit": 1.0, "head_dim": 8}, False),
    "granite-moe": ("granitemoe", "granite-moe", LOCAL, False),
    "granite-shared": (
        "granitemoeshared",
        "granite-shared",
        {**LOCAL, "shared_intermediate_size": 14},
        False,
    ),
    "llama4": (
        "llama4_text",
        "llama4",
        {
            **LOCAL,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": DENSE_FF,
            "interleave_moe_layer_step": 2,
            "head_dim": 8,
        },
        True,
    ),
}


class Both(torch.nn.Module):
    """Granite adds its shared block in the decoder layer."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.block_sparse_moe, self.shared_mlp = layer.block_sparse_moe, layer.shared_mlp

    def forward(self, x: Any) -> Any:
        return self.block_sparse_moe(x) + self.shared_mlp(x)


def block_of(model: Any, number: int, name: str) -> Any:
    layer = model.model.layers[number]
    if name == "granite-shared":
        return Both(layer)
    for attribute in ("mlp", "block_sparse_moe", "feed_forward"):
        if hasattr(layer, attribute):
            return getattr(layer, attribute)
    raise AssertionError(f"{name} has no feed-forward block that we know")


def saved_model(name: str, folder: Any, rng: np.random.Generator, dtype: Any) -> Any:
    model_type, _, arguments, _ = MODELS[name]
    config = AutoConfig.for_model(model_type, **{**MODEL, **TOKENS, **arguments})
    config._experts_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config)
    for number in range(2):
        fill(block_of(model, number, name), rng, dtype)
    model.to(dtype).save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
def test_float64(name, tmp_path):
    rng = generator(name)
    model = saved_model(name, tmp_path, rng, torch.float64)
    _, row, _, dense = MODELS[name]
    layer = fc.load(tmp_path, layer=1)
    assert isinstance(layer, fc.MoE)
    x = rng.standard_normal((2, 5, D))
    no_near_ties(layer, x)
    compare(block_of(model, 1, name), layer, FAMILIES[row].arrays, x, rng)
    first = fc.load(tmp_path, layer=0)
    assert isinstance(first, fc.FFN if dense else fc.MoE)
    expected = block_of(model, 0, name)(torch.from_numpy(x))
    expected = expected[0] if isinstance(expected, tuple) else expected
    near(first(x), expected.detach().numpy().reshape(x.shape), "the first layer")


@pytest.mark.parametrize("name", ["mixtral", "deepseek-v3", "gpt-oss", "llama4"])
def test_bfloat16(name, tmp_path):
    """In bfloat16, as most checkpoints are stored; the library computes with rounded numbers."""
    pytest.importorskip("ml_dtypes")
    rng = generator(name)
    model = saved_model(name, tmp_path, rng, torch.bfloat16)
    stored = fc.load(tmp_path, layer=1)
    assert stored.dtype.name == "bfloat16"
    layer = fc.load(tmp_path, layer=1, dtype="float64")
    block = block_of(model, 1, name).double()
    x = rng.standard_normal((2, 5, D))
    no_near_ties(layer, x)
    compare(block, layer, FAMILIES[MODELS[name][1]].arrays, x, rng)
    # The same weights, not converted, with float32 x.
    single = x.astype(np.float32)
    y = stored(single).astype(np.float64)
    scale = np.abs(y).max()
    assert np.abs(y - layer(single.astype(np.float64))).max() <= 1e-5 * scale


def test_every_family_is_here():
    ours = {t for row in fc.models.MOE_FAMILIES for t in row.model_types}
    # Kimi-K2 has the class of DeepSeek-V3; the others differ from a row above only in attention.
    missing = {"kimi_k2", "granitemoehybrid", "llama4"}
    assert ours - missing == {row[0] for row in MODELS.values()}
