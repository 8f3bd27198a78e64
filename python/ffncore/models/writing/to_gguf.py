"""Writes the feed-forward layers of a checkpoint as a GGUF file.

    blk.N.ffn_gate, ffn_up, ffn_down                     a dense layer
    blk.N.ffn_gate_exps, ffn_up_exps, ffn_down_exps      experts, [E, out, in]
    blk.N.ffn_gate_shexp, ffn_up_shexp, ffn_down_shexp   a shared expert
    blk.N.ffn_gate_inp, ffn_gate_inp_shexp               the router, and the shared expert's gate
    blk.N.exp_probs_b                                    the bias of the selection

with .weight and .bias. Only the language model is written, and nothing beside its layers. Vectors
and routers are float32, as other readers expect. Tests: tests/models/writing/test_to_gguf.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...arrays.dtypes import FLOAT32, rounded
from ...arrays.shapes import Array
from ...encodings.format import BlockFormat
from ...encodings.table import FORMATS
from .. import blocks
from ..blocks import Block
from ..files.checkpoint import Checkpoint
from ..layer_tensors import LayerTensors
from .gguf_file import ALIGNMENT, TENSOR_TYPES, Tensor, write_gguf
from .matrices import Layer
from .rounding import MATRICES, Rounding

# What llama.cpp calls model types whose names differ from its own by more than underscores.
ARCHITECTURES = {
    **dict.fromkeys(("mistral", "ministral", "mixtral"), "llama"),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3"), "deepseek2"),
    "cohere": "command-r",
    "ernie4_5": "ernie4_5",
    "ernie4_5_moe": "ernie4_5-moe",
    "gpt_bigcode": "starcoder",
    "gpt_oss": "gpt-oss",
    "hunyuan_v1_dense": "hunyuan-dense",
    "hunyuan_v1_moe": "hunyuan-moe",
    "minimax_m2": "minimax-m2",
    "ministral3": "mistral3",
    "modernbert": "modern-bert",
    "nomic_bert": "nomic-bert",
    "phi": "phi2",
    "seed_oss": "seed_oss",
}
# The architectures whose ffn_up has the rows of gate, and then those of up.
FUSED = ("phi3", "glm4", "modern-bert")
# Its numbers for what a router makes of logits.
GATING = {"softmax": 1, "sigmoid": 2}


def architecture(model_type: str | None, family: str) -> str:
    name = model_type or family
    return ARCHITECTURES.get(name, name.removesuffix("_text").replace("_", ""))


class GgufPlan:
    """The entries and tensors of a file.

    Raises ValueError for layers that have what its tensors cannot hold.
    """

    def __init__(
        self, checkpoint: Checkpoint, layers: Sequence[Layer], activation: str, rounding: Rounding
    ) -> None:
        self.checkpoint, self.rounding = checkpoint, rounding
        self.tensors: list[Tensor] = []
        for format in rounding.formats.values():
            if format not in TENSOR_TYPES:
                known = ", ".join(name for name in TENSOR_TYPES if name in FORMATS)
                raise ValueError(f"format is {format!r}; expected one of GGUF: {known}")
        first = layers[0]
        model_type = first.config.model_type
        name = model_type if isinstance(model_type, str) else None
        start = architecture(name, first.found.row.name)
        self._fused = start in FUSED
        for layer in layers:
            self._add(layer)
        self.entries: dict[str, Any] = {
            "general.architecture": start,
            "general.alignment": ALIGNMENT,
            "general.quantization_version": 2,
            "ffncore.model_type": name or "",
            "ffncore.family": first.found.row.name,
            "ffncore.activation": activation,
        }
        self.entries |= {f"{start}.{key}": value for key, value in _sizes(layers).items()}

    def write(self, path: Path, order: Iterator[Tensor]) -> None:
        write_gguf(path, self.entries, self.tensors, order)

    def _add(self, layer: Layer) -> None:
        tensors, plan = layer.found.tensors, layer.plan
        start = f"blk.{layer.found.layer}."
        own = _blocks(layer)
        held = {name for block in own.values() for name in block.matrix_names}
        others = [n for _, b in layer.blocks for n in b.matrix_names if n not in held]
        if plan is None:
            others += own[""].others
        else:
            others += [*plan.extra.values(), *plan.router_extra.values()]
        if others:
            raise tensors.wrong(
                others[0], "has no name in a GGUF file; expected a file or folder of safetensors"
            )
        for end, block in own.items():
            self._add_block(tensors, block, start, end)
        if plan is None:
            return
        for name, stored, axes in (
            ("ffn_gate_inp.weight", plan.router, 2),
            ("ffn_gate_inp.bias", plan.router_bias, 1),
            ("ffn_gate_inp_shexp.weight", plan.shared_gate, 1),
            ("exp_probs_b.bias", plan.correction, 1),
        ):
            if stored is not None:
                shape = tensors.shape(stored)
                kept = shape if axes == 2 else (int(np.prod(shape)),)
                self._add_float32(start + name, kept, tensors, stored)

    def _add_float32(
        self, name: str, shape: tuple[int, ...], tensors: LayerTensors, stored: str
    ) -> None:
        def data() -> Iterator[bytes]:
            yield rounded(tensors.read(stored, None), FLOAT32).tobytes()

        self.tensors.append(Tensor(name, shape, "float32", 4 * int(np.prod(shape)), data))

    def _add_block(self, tensors: LayerTensors, block: Block, start: str, end: str) -> None:
        """The matrices and biases of a block, which are read expert by expert."""
        experts = 1 if block.experts is None else block.experts
        first = self._arrays(tensors, block, 0)
        for field, array in first.items():
            matrix = field in MATRICES
            name = f"{start}ffn_{field.removeprefix('b_')}{end}.{'weight' if matrix else 'bias'}"
            lead = () if block.experts is None else (experts,)
            shape = (*lead, *array.shape)
            place = self._place(tensors, block, field)
            fields: tuple[str, ...] = (field,)
            if field == "up" and block.gated and "gate" not in first:
                fields = ("gate", "up")
            format = self.rounding.format_of(fields, place) if matrix else "float32"
            if format in FORMATS:
                self.rounding.check(place, array.shape[-1], format)
            type = format or str(array.dtype.name)
            count = experts * _nbytes(type, array)
            data = self._data(tensors, block, field, type, place, fields)
            self.tensors.append(Tensor(name, shape, type, count, data))

    def _data(
        self,
        tensors: LayerTensors,
        block: Block,
        field: str,
        type: str,
        place: str,
        fields: tuple[str, ...],
    ) -> Callable[[], Iterator[bytes]]:
        def data() -> Iterator[bytes]:
            for e in range(block.experts or 1):
                array = self._arrays(tensors, block, e)[field]
                if type in FORMATS:
                    yield self.rounding.tensor(place, array, type, fields).to_bytes()
                elif type == "float32":
                    yield rounded(array, FLOAT32).tobytes()
                else:
                    yield array.tobytes()

        return data

    def _arrays(self, tensors: LayerTensors, block: Block, e: int) -> dict[str, Array]:
        """The arrays of a layer or of one of its experts, [out, in] and [out]."""
        if block.experts is not None:
            return {n: a[0] for n, a in blocks.weights(tensors, block, None, [e]).arrays().items()}
        arrays = blocks.weights(tensors, block, None).arrays()
        if self._fused:
            for b in ("", "b_"):
                if f"{b}gate" in arrays:
                    arrays[f"{b}up"] = np.concatenate([arrays.pop(f"{b}gate"), arrays[f"{b}up"]])
        return arrays

    def _place(self, tensors: LayerTensors, block: Block, field: str) -> str:
        """The file and name of the tensor that has a field, for errors."""
        stored = {**block.matrices, **{f"b_{role}": n for role, n in block.biases.items()}}
        prefix = "b_" if field.startswith("b_") else ""
        names = stored.get(field) or stored[f"{prefix}gate_up"]
        return self.checkpoint.place(tensors.start + names[0])


def _blocks(layer: Layer) -> dict[str, Block]:
    """The blocks of a layer by the ends of their names."""
    if layer.plan is None:
        return {"": layer.blocks[0][1]}
    found = {"_exps": layer.plan.experts, "_shexp": layer.plan.shared}
    return {end: block for end, block in found.items() if block is not None}


def _nbytes(type: str, array: Array) -> int:
    format = FORMATS.get(type)
    if isinstance(format, BlockFormat):
        return format.row_bytes(array.shape[-1]) * len(array)
    return array.size * (4 if type == "float32" else array.itemsize)


def _sizes(layers: Sequence[Layer]) -> dict[str, Any]:
    """The sizes and options that readers look for."""
    sizes: dict[str, Any] = {"block_count": max(layer.found.layer for layer in layers) + 1}
    for layer in layers:
        told, plan = layer.found.tensors.sizes, layer.plan
        sizes["embedding_length"] = told["d"]
        if plan is None:
            sizes["feed_forward_length"] = told["f"]
            continue
        sizes |= {"expert_count": told["E"], "expert_feed_forward_length": told["f"]}
        if "s" in told:
            sizes["expert_shared_feed_forward_length"] = told["s"]
            sizes["expert_shared_count"] = max(1, told["s"] // told["f"])
        for key, option in (
            ("expert_used_count", "top_k"),
            ("expert_weights_norm", "norm_topk_prob"),
            ("expert_weights_scale", "routed_scaling_factor"),
            ("expert_group_count", "n_group"),
            ("expert_group_used_count", "topk_group"),
        ):
            if option in plan.options:
                sizes[key] = plan.options[option]
        score = plan.options.get("score_fn", "softmax")
        if score in GATING:
            sizes["expert_gating_func"] = GATING[score]
    sizes.setdefault("feed_forward_length", sizes.get("expert_feed_forward_length", 0))
    return sizes
