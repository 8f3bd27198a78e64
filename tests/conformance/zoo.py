"""Small random models of the transformers library, from one row of data for each model type.

A Model says which keys of config.json make the model small and complete, and where its feed-forward
blocks are. zoo_dense.py, zoo_mixtures.py and zoo_towers.py have the rows. `saved` builds a model,
fills it with random numbers, and writes it in both layouts of transformers 5:

    released  save_pretrained(save_original_format=True), with the tensors of published checkpoints
    own       save_pretrained(save_original_format=False), with the names of the modules

The gradients of a model's parameters are written the same way, as if they were weights. fc.load
then splits, stacks and transposes them like the weights, so that no test has to know the names.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from blocks import D, E, F, K, fill, generator, torch
from safetensors.torch import load_file, save_file
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

LAYOUTS = {"released": True, "own": False}
Mend = Callable[[dict[str, Any]], dict[str, Any]]


def run(module: Any, x: Any) -> Any:
    """The output of a block, which may return the logits of its router as well."""
    y = module(x)
    return y[0] if isinstance(y, tuple) else y


@dataclass(frozen=True)
class Block:
    """The blocks of one stack of layers.

    path     of the module in the model; {} stands for the number of the layer
    layers   the layers that have such a block
    mixture  whether fc.load returns an fc.MoE, not an fc.FFN
    load     arguments of fc.load besides path and layer
    call     computes y from the module and x; what fc.load's layer has to agree with
    d        the last dimension of x
    """

    path: str
    layers: tuple[int, ...] = (0, 1)
    mixture: bool = False
    load: dict[str, Any] = field(default_factory=dict)
    call: Callable[[Any, Any], Any] = run
    d: int = D


@dataclass(frozen=True)
class Model:
    """A model type, or a variant of one.

    blocks     the blocks that are compared
    config     keys of config.json, besides those of SIZES that the configuration class has. A
               dictionary with a model_type is a part's own configuration
    head       the class of the library that is built
    made_as    the model_type to build, if the library has no class for this one
    retell     changes the dictionary that is written to config.json
    mend       changes the tensors of the released layout to those that were published
    rename     changes the tensors of both layouts
    prepare    changes the model after it was filled with random numbers
    dtype      float32 for the few models that mix types in float64
    without    arrays of the layer whose gradients are not compared
    variant    a word for the second and further rows of a model type
    sizes      SIZES, or others in their place
    """

    model_type: str
    blocks: tuple[Block, ...]
    config: dict[str, Any] = field(default_factory=dict)
    head: str = "AutoModelForCausalLM"
    made_as: str = ""
    retell: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    mend: Mend | None = None
    rename: Mend | None = None
    prepare: Callable[[Any], object] | None = None
    dtype: Any = torch.float64
    without: tuple[str, ...] = ()
    variant: str = ""
    sizes: dict[str, Any] = field(default_factory=lambda: SIZES)

    @property
    def name(self) -> str:
        return f"{self.model_type}-{self.variant}" if self.variant else self.model_type


# Sizes by the keys that configuration classes have for them; each class takes those that it knows.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "dim", "n_embd", "embedding_size"), D),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "num_decoder_layers", "n_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "layers", "depth"), 2),
    **dict.fromkeys(("encoder_num_hidden_layers", "decoder_num_hidden_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "num_heads", "n_heads"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "attention_heads"), 2),
    **dict.fromkeys(("encoder_num_attention_heads", "decoder_num_attention_heads"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "kv_channels"), 8),
    **dict.fromkeys(("intermediate_size", "d_ff", "ffn_dim", "hidden_dim", "ffn_hidden_size"), 20),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 20),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), 32),
    **dict.fromkeys(("max_position_embeddings", "max_seq_len", "n_positions"), 16),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
    **dict.fromkeys(("image_size", "patch_size"), 4),
    **dict.fromkeys(("hidden_size_per_layer_input", "laurel_rank"), 4),
    # what stands between a tower and the language model, and before the towers
    **dict.fromkeys(("out_hidden_size", "vision_output_dim", "output_channels"), D),
    **dict.fromkeys(("projector_hidden_size", "alignment_intermediate_size"), D),
    **dict.fromkeys(("projector_input_dim", "projector_output_dim", "projection_dim"), D),
    **dict.fromkeys(("num_embeddings", "image_token_embed_dim", "conv_channels"), D),
    "position_embedding_size": 16,
    # mixtures
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), E),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk"), K),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size"), F),
    **dict.fromkeys(("shared_expert_intermediate_size", "shared_intermediate_size"), 10),
    # attention over latent vectors, linear attention and state spaces
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "v_head_dim", "qk_nope_head_dim"), 4),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "index_head_dim"), 8),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "index_n_heads"), 2),
}


def known(model_type: str, sizes: dict[str, Any]) -> dict[str, Any]:
    """The entries of sizes that a configuration class has."""
    made = CONFIG_MAPPING[model_type]
    own = {f.name for f in fields(made)}
    other = {word for word, meaning in made.attribute_map.items() if meaning not in own & {*sizes}}
    return {key: value for key, value in sizes.items() if key in own | other}


def complete(model_type: str, keys: dict[str, Any], sizes: dict[str, Any]) -> dict[str, Any]:
    """The keys of a configuration, with the sizes that were left out, also in its parts."""
    parts = {
        key: {"model_type": part["model_type"], **complete(part["model_type"], part, sizes)}
        for key, part in keys.items()
        if isinstance(part, dict) and "model_type" in part
    }
    return {**known(model_type, sizes), **keys, **parts}


def parts(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The dictionary and those in it, at any depth, that have a model_type."""
    inner = [part for part in config.values() if isinstance(part, dict)]
    return [config, *(found for part in inner for found in parts(part) if "model_type" in found)]


def configuration(row: Model) -> Any:
    model_type = row.made_as or row.model_type
    keys = complete(model_type, {"model_type": model_type, **row.config}, row.sizes)
    keys.pop("model_type")
    config = CONFIG_MAPPING[model_type](**keys)
    loop_over_experts(config)
    return config


def loop_over_experts(config: Any) -> None:
    """Choose the library's simplest code for experts, also in the parts of a configuration."""
    config._experts_implementation = "eager"
    for name in config.sub_configs:
        if getattr(config, name, None) is not None:
            loop_over_experts(getattr(config, name))


def build(row: Model) -> Any:
    made = getattr(transformers, row.head)
    make = made.from_config if row.head.startswith("Auto") else made._from_config
    model = make(configuration(row))
    with warnings.catch_warnings():
        # Some models keep complex numbers for the positions, which no block reads.
        warnings.filterwarnings("ignore", "Casting complex values to real")
        fill(model, generator(row.name), row.dtype)
    if row.prepare is not None:
        row.prepare(model)
    return model


@dataclass(frozen=True)
class Saved:
    row: Model
    model: Any
    folder: Path

    def path(self, layout: str) -> Path:
        return self.folder / layout

    def write_gradients(self) -> Path:
        """Write the gradients of the parameters in the released layout, as if they were weights."""
        for parameter in self.model.parameters():
            grad = parameter.grad
            parameter.weights = parameter.data
            parameter.data = torch.zeros_like(parameter) if grad is None else grad
        try:
            return write(self.row, self.model, self.folder / "gradients", "released")
        finally:
            for parameter in self.model.parameters():
                parameter.data = parameter.weights
                parameter.grad = None


def saved(row: Model, folder: Path) -> Saved:
    model = build(row)
    for layout in LAYOUTS:
        write(row, model, folder / layout, layout)
    return Saved(row, model, folder)


def write(row: Model, model: Any, folder: Path, layout: str) -> Path:
    model.save_pretrained(folder, save_original_format=LAYOUTS[layout])
    for change in (row.rename, row.mend if layout == "released" else None):
        if change is not None:
            path = folder / "model.safetensors"
            tensors = {n: t.contiguous() for n, t in change(load_file(path)).items()}
            save_file(tensors, path)
    path = folder / "config.json"
    written = json.loads(path.read_text("utf-8"))
    if row.made_as:
        written["model_type"] = row.model_type
    if row.retell is not None:
        written = row.retell(written)
    path.write_text(json.dumps(written), "utf-8")
    return folder


def output(saved: Saved, block: Block, layer: int, x: np.ndarray) -> tuple[Any, Any]:
    """x and y as tensors, from which gradients can be computed."""
    given = torch.from_numpy(x.copy()).requires_grad_(True)
    return given, block.call(saved.model.get_submodule(block.path.format(layer)), given)
