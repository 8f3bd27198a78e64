"""config.json without the keys that have a default: layers compute what those of the library do.

The table of defaults is compared with the configuration classes, its keys with those that the code
of each block reads, and the constants in that code with those of the loaded layers. Every row of
the zoo is also built with the defaults of its class, and loaded from a config.json without them.
"""

from __future__ import annotations

import copy
import inspect
import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from blocks import NEAR_TIE, generator, near
from test_zoo import ZOO
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from zoo import SIZES, Block, Model, Saved, output, parts, run, saved

import ffncore as fc
from ffncore.models.files.defaults import DEFAULTS, SYNONYMS

ROWS = (*fc.models.FAMILIES, *fc.models.MOE_FAMILIES)
TYPES = [model_type for row in ROWS for model_type in row.model_types]
WITHOUT_CLASS = {"kimi_k2", "internlm2", "new"}
PLAIN = [row for row in ZOO if not row.variant and row.model_type not in WITHOUT_CLASS]


def at(value: Any, path: str) -> Any:
    """The value at a path of keys and numbers with dots between them."""
    for key in path.split("."):
        if isinstance(value, (list, tuple)):
            value = value[int(key)]
        elif isinstance(value, dict):
            value = value[key]
        else:
            value = getattr(value, key)
    return value


def test_every_model_type_is_in_the_table() -> None:
    assert sorted(DEFAULTS) == sorted(TYPES)
    assert {t for t in TYPES if t not in CONFIG_MAPPING} == WITHOUT_CLASS


@pytest.mark.parametrize("model_type", TYPES)
def test_defaults_are_those_of_the_class(model_type: str) -> None:
    table = DEFAULTS[model_type]
    if model_type in WITHOUT_CLASS:
        assert set(table.values()) == {None}
        return
    config = CONFIG_MAPPING[model_type]()
    written = json.loads(config.to_json_string(use_diff=False))
    for key, value in table.items():
        found = at(config, key)
        assert (type(found), found) == (type(value), value), key
        # A class may know a key by several names; the one that it writes is the one that is read.
        assert key.split(".")[0] in written, key
    # Keys that are read by code released with a model, but not by the library.
    row = next(row for row in ROWS if model_type in row.model_types)
    for key in set(getattr(row, "only", ())) - set(table):
        assert not hasattr(config, key)


def test_other_words_for_a_value() -> None:
    for (model_type, key), words in SYNONYMS.items():
        for word, meaning in words.items():
            config = CONFIG_MAPPING[model_type](**{key: word})
            # The code of GPT-1 replaces the word, not its configuration class.
            assert getattr(config, key) == (word if model_type == "openai-gpt" else meaning)


# ---- small models --------------------------------------------------------------------------------

# Enough for the eight groups of DeepSeek-V3 with two experts each, and for 12 experts of a token.
EXPERTS = 16
NUMBERS_OF_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
# Keys of the table that small models need in place of their defaults.
TOLD = {"num_hidden_layers", "shared_intermediate_size", "zero_expert_num"}


def remove(config: dict[str, Any], path: str) -> None:
    key, _, rest = path.partition(".")
    if rest and isinstance(config.get(key), dict):
        remove(config[key], rest)
    else:
        config.pop(key, None)


def has_default(model_type: str) -> list[str]:
    keys = [key for key, value in DEFAULTS.get(model_type, {}).items() if value is not None]
    return [key for key in keys if key not in TOLD]


def names_of(model_type: str, keys: list[str]) -> set[str]:
    """Keys, and the other names that the configuration class has for them."""
    other = CONFIG_MAPPING[model_type].attribute_map.items()
    found = {word for pair in other if set(pair) & set(keys) for word in pair}
    return {*keys, *found}


def with_defaults(row: Model) -> Model:
    """The row with the defaults of its configuration classes."""
    config = copy.deepcopy(row.config)
    config["model_type"] = row.made_as or row.model_type
    sizes = {**SIZES, **dict.fromkeys(NUMBERS_OF_EXPERTS, EXPERTS)}
    for part in parts(config):
        for key in names_of(part["model_type"], has_default(part["model_type"])):
            remove(part, key)
            sizes.pop(key, None)
    del config["model_type"]
    return replace(row, config=config, sizes=sizes)


@pytest.mark.parametrize("row", PLAIN, ids=lambda row: row.name)
def test_a_config_json_of_defaults(row: Model, tmp_path: Any) -> None:
    model = saved(with_defaults(row), tmp_path)
    path = model.path("released") / "config.json"
    written = json.loads(path.read_text("utf-8"))
    for part in parts(written):
        for key in has_default(part["model_type"]):
            remove(part, key)
    path.write_text(json.dumps(written), "utf-8")
    for block, number in blocks(row):
        layer = fc.load(path.parent, layer=number, **block.load)
        x = generator(row.name).standard_normal((2, 5, block.d)).astype(layer.dtype)
        if block.mixture:
            x = x[apart(layer, x)][None]
        _, y = output(model, block, number, x)
        near(layer(x), y.detach().numpy().reshape(x.shape), f"{block.path} of layer {number}")


def blocks(row: Model) -> list[tuple[Block, int]]:
    return [(block, number) for block in row.blocks for number in block.layers]


def apart(layer: Any, x: Any) -> Any:
    """Which rows of x have no logits that are nearly equal."""
    return np.diff(np.sort(layer.router.logits(x)), axis=-1).min(axis=-1) > NEAR_TIE


# ---- the code of the library ---------------------------------------------------------------------

# Keys that a block's code reads, but that follow from the shapes of tensors,
BY_SHAPE = {*SIZES, "kv_sharing_modes", "use_double_wide_mlp", "mlp_dim", "mlp_ratio"}
BY_SHAPE |= {"moe_latent_size", "moe_num_shared_experts", "out_hidden_size", "share_expert_dim"}
BY_SHAPE |= {"dense_intermediate_size", "moe_shared_expert_intermediate_size", "embed_dim"}
BY_SHAPE |= {"block_auto_adjust_ff_dim", "block_ffn_dim_multiplier", "block_multiple_of"}
# from the names of tensors, as biases and the kinds of layers do,
BY_NAME = {"router_bias", "use_expert_bias", "use_clipped_linears", "layers_block_type"}
BY_NAME |= {"mlp_layer_types"}
# that choose how exactly or on how many devices the library computes,
PRECISION = {"dtype", "router_dtype", "enable_moe_fp32_combine", "slow_but_exact", "pretraining_tp"}
PRECISION |= {"chunk_size_feed_forward"}
# or that belong to what stands around the block.
AROUND = {"layer_norm_eps", "attn_config", "router_ignore_padding_tokens"}
UNREAD = BY_SHAPE | BY_NAME | PRECISION | AROUND
TRAINING = re.compile("drop|jitter")


def code_of(row: Model, model: Any) -> str:
    """The code of the classes in all blocks."""
    found: set[type] = set()
    for block, number in blocks(row):
        module = model.get_submodule(block.path.format(number))
        inner = [module]
        if not hasattr(module, "config") and block.call is not run:  # a whole layer
            inner = [part for name, part in module.named_children() if "att" not in name]
        found |= {type(part) for first in inner for part in first.modules()}
    found = {c for c in found if c.__module__.startswith("transformers.models")}
    return "".join(map(inspect.getsource, sorted(found, key=lambda c: c.__name__)))


@pytest.fixture(scope="module", params=PLAIN, ids=lambda row: row.name)
def built(request: Any, tmp_path_factory: Any) -> tuple[Saved, str]:
    model = saved(request.param, tmp_path_factory.mktemp("code"))
    return model, code_of(request.param, model.model)


def test_the_table_has_every_key_that_the_code_reads(built: tuple[Saved, str]) -> None:
    row, code = built[0].row, built[1]
    known: set[str] = set()
    for part in parts({"model_type": row.made_as or row.model_type, **row.config}):
        keys = [word for key in DEFAULTS.get(part["model_type"], {}) for word in key.split(".")]
        known |= names_of(part["model_type"], keys)
    read = set(re.findall(r"config\.([a-z]\w+)", code)) - UNREAD - known
    assert {key for key in read if not TRAINING.search(key)} == set()


def test_the_routers_have_the_constants_of_the_code(built: tuple[Saved, str]) -> None:
    """An eps is too small to change the output of a small model."""
    model, code = built
    told = {float(n) for n in re.findall(r"sum\(dim=-1, keepdim=True\) \+ (1e-\d+)", code)}
    told |= {getattr(model.model.config, "moe_norm_min", 0.0)} - {0.0}
    for block, number in blocks(model.row):
        if block.mixture:
            layer = fc.load(model.path("own"), layer=number, **block.load)
            assert isinstance(layer, fc.MoE)
            ours = {layer.router.options.get(name) for name in ("norm_eps", "norm_min")}
            assert ours - {None, 0.0} == told
