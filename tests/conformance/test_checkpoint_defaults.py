"""config.json without the keys that have a default: layers compute what those of the library do.

The table of defaults is compared with the configuration classes, its keys with those that the code
of each block reads. For every model_type, a small model is loaded without these keys.
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
from blocks import HEADS, D, F, fill, generator, near, torch
from transformers import AutoModel, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import ffncore as fc
from ffncore.models.files.defaults import DEFAULTS, FIXED, NESTED, SYNONYMS

# Enough for the eight groups of DeepSeek-V3, with two experts each.
EXPERTS = 16
ROWS = (*fc.models.FAMILIES, *fc.models.MOE_FAMILIES)
TYPES = [model_type for row in ROWS for model_type in row.model_types]
WITHOUT_CLASS = {"kimi_k2"}
TEXT = {"gemma3": "gemma3_text", "llama4": "llama4_text", "kimi_k2": "deepseek_v3"}


def row_of(model_type: str) -> Any:
    return next(row for row in ROWS if model_type in row.model_types)


def configuration(model_type: str, **arguments: Any) -> Any:
    config = CONFIG_MAPPING[model_type](**arguments)
    return config.get_text_config() if model_type in NESTED else config


def test_every_model_type_is_in_the_table() -> None:
    assert sorted(DEFAULTS) == sorted(TYPES)
    assert {t for t in TYPES if t not in CONFIG_MAPPING} == WITHOUT_CLASS


@pytest.mark.parametrize("model_type", TYPES)
def test_defaults_are_those_of_the_class(model_type: str) -> None:
    table = DEFAULTS[model_type]
    if model_type in WITHOUT_CLASS:
        assert set(table.values()) == {None}
        return
    config = configuration(model_type)
    for key, value in table.items():
        found = getattr(config, key)
        assert (type(found), found) == (type(value), value), key
    # A class may accept other names for a key; none of those that ffncore reads has one.
    assert not set(table) & {*config.attribute_map, *config.attribute_map.values()}
    # Keys that are read by code released with a model, but not by the library.
    for key in set(getattr(row_of(model_type), "only", ())) - set(table):
        assert not hasattr(config, key)


def test_other_words_for_a_value() -> None:
    for (model_type, key), words in SYNONYMS.items():
        for word, meaning in words.items():
            assert getattr(configuration(model_type, **{key: word}), key) == meaning


# ---- small models --------------------------------------------------------------------------------

SIZES = {
    "hidden_size": D,
    "num_hidden_layers": 2,
    "vocab_size": 32,
    "intermediate_size": F,
    **HEADS,
}
# Numbers of special tokens have to be smaller than the vocabulary above.
SIZES |= dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0)
GPT2 = {"n_embd": D, "n_layer": 2, "n_head": 2, "n_positions": 8}
IMAGE = {"image_size": 8, "patch_size": 4}
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "v_head_dim": 4}
LATENT |= {"qk_nope_head_dim": 4}
HEAD = {"head_dim": 8}
EXPERT = {"moe_intermediate_size": F}
LOCAL = {"num_local_experts": EXPERTS}
ROUTED = {"n_routed_experts": EXPERTS, "first_k_dense_replace": 0, **EXPERT}
MORE: dict[str, dict[str, Any]] = {
    "gpt2": GPT2,
    "imagegpt": GPT2,
    "decision_transformer": {**GPT2, "hidden_size": D},
    "vit": IMAGE,
    "deit": IMAGE,
    "electra": {"embedding_size": D},
    "esm": {"mask_token_id": 1},
    "gemma": HEAD,
    "gemma2": HEAD,
    "gemma3_text": HEAD,
    "qwen3": HEAD,
    "ministral": HEAD,
    "mixtral": LOCAL,
    "qwen2_moe": {"num_experts": EXPERTS, "shared_expert_intermediate_size": 10, **EXPERT},
    "qwen3_moe": {"num_experts": EXPERTS, **EXPERT, **HEAD},
    "olmoe": {"num_experts": EXPERTS},
    "deepseek_v2": {**ROUTED, **LATENT, "num_experts_per_tok": 3},
    "deepseek_v3": {**ROUTED, **LATENT},
    "glm4_moe": {**ROUTED, **HEAD},
    "gpt_oss": {**LOCAL, **HEAD},
    "granitemoe": LOCAL,
    "granitemoeshared": {**LOCAL, "shared_intermediate_size": 14},
    "granitemoehybrid": {
        **LOCAL,
        "shared_intermediate_size": 14,
        "layer_types": ["full_attention"] * 2,
        "mamba_n_heads": 4,
    },
    "llama4_text": {**LOCAL, **HEAD, "interleave_moe_layer_step": 1},
}
# Other keys than sizes, with which a model is made: they stay in config.json.
TOLD = {"deepseek_v2": {"num_experts_per_tok"}, "granitemoeshared": {"shared_intermediate_size"}}


class Bert(torch.nn.Module):
    """Its second matrix is in one module with a norm and a sum."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.first, self.second = layer.intermediate, layer.output.dense

    def forward(self, x: Any) -> Any:
        return self.second(self.first(x))


class Granite(torch.nn.Module):
    """The two parts that its decoder layer adds."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.routed, self.shared = layer.block_sparse_moe, layer.shared_mlp

    def forward(self, x: Any) -> Any:
        return self.routed(x) + self.shared(x)


def block_of(model: Any) -> Any:
    """The block of layer 1."""
    for name, module in model.named_modules():
        if name.endswith(("layers.1", "layer.1", "h.1")):
            if hasattr(module, "intermediate"):
                return Bert(module)
            if hasattr(module, "shared_mlp"):
                return Granite(module)
            for attribute in ("mlp", "block_sparse_moe", "feed_forward"):
                if hasattr(module, attribute):
                    return getattr(module, attribute)
    raise AssertionError("no feed-forward block that we know")


def saved_model(model_type: str, folder: Path) -> Any:
    """The block, and its checkpoint without the keys that have a default."""
    made = TEXT.get(model_type, model_type)
    config = CONFIG_MAPPING[made](**{**SIZES, **MORE.get(made, {})})
    config._experts_implementation = "eager"
    head = AutoModelForCausalLM if hasattr(row_of(model_type), "router") else AutoModel
    model = head.from_config(config).to(torch.float64).eval()
    block = fill(block_of(model), generator(model_type))
    model.save_pretrained(folder)
    path = folder / "config.json"
    written = json.loads(path.read_text("utf-8"))
    if model_type in WITHOUT_CLASS:
        written |= {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}
        assert set(DEFAULTS[model_type]) <= set(written)
    else:
        for key in set(DEFAULTS[model_type]) - TOLD.get(model_type, set()):
            del written[key]
    written["model_type"] = model_type
    if model_type in NESTED:
        del written["model_type"]
        written = {"model_type": model_type, "text_config": written, "hidden_act": "relu"}
    path.write_text(json.dumps(written), "utf-8")
    return block


@pytest.mark.parametrize("model_type", TYPES)
def test_a_config_json_of_defaults(model_type: str, tmp_path: Path) -> None:
    block = saved_model(model_type, tmp_path)
    assert [info.problem for info in fc.models.layers(tmp_path)] == [None, None]
    layer = fc.load(tmp_path, layer=1)
    assert isinstance(layer, fc.MoE) == hasattr(row_of(model_type), "router")
    x = generator(model_type).standard_normal((2, 5, D))
    expected = block(torch.from_numpy(x))
    expected = expected[0] if isinstance(expected, tuple) else expected
    near(layer(x), expected.detach().numpy().reshape(x.shape), "y")


# Keys that a block's code reads, but that follow from the shapes of tensors or only matter in
# training.
BY_SHAPE = {"hidden_size", "intermediate_size", "moe_intermediate_size", "num_local_experts"}
BY_SHAPE |= {"num_experts", "n_routed_experts", "shared_expert_intermediate_size", "n_embd"}
BY_SHAPE |= {"shared_intermediate_size"}
IN_TRAINING = {"router_jitter_noise", "resid_pdrop"}


@pytest.mark.parametrize("model_type", sorted(set(TYPES) - WITHOUT_CLASS))
def test_the_table_has_every_key_that_the_code_reads(model_type: str, tmp_path: Path) -> None:
    block = saved_model(model_type, tmp_path)
    classes = {type(module) for module in block.modules()}
    classes = {c for c in classes if c.__module__.startswith("transformers.models")}
    assert classes
    source = "".join(map(inspect.getsource, classes))
    read = set(re.findall(r"config\.([a-z_]+)", source)) - BY_SHAPE - IN_TRAINING
    assert read <= set(DEFAULTS[model_type])
    if model_type in FIXED:
        assert "hidden_act" not in source
