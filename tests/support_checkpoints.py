"""Small checkpoints for tests: safetensors files, valid or not, that are written byte by byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

NAMES = {"float32": "F32", "float64": "F64", "float16": "F16", "bfloat16": "BF16"}
NAMES |= {"uint8": "U8", "int8": "I8", "int32": "I32", "int64": "I64"}


def described(tensors: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Header and data of a file. A tensor may be a pair (dtype of the format, array of bytes)."""
    header: dict[str, Any] = {}
    data = b""
    for name, tensor in tensors.items():
        dtype, array = tensor if isinstance(tensor, tuple) else ("", tensor)
        raw = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": dtype or NAMES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    return header, data


def packed(header: Any, data: bytes) -> bytes:
    """header: an object, or its text."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def file_bytes(tensors: dict[str, Any]) -> bytes:
    return packed(*described(tensors))


def aligned_bytes(tensors: dict[str, Any]) -> bytes:
    """A file whose header is padded with spaces, so that its tensors are aligned."""
    header, data = described(tensors)
    text = json.dumps(header).encode()
    return packed(text + b" " * (-len(text) % 8), data)


def write(folder: Path, tensors: dict[str, Any], config: Any = None) -> Path:
    (folder / "model.safetensors").write_bytes(file_bytes(tensors))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


def shards(tensors: dict[str, Any], count: int = 2) -> dict[str, bytes]:
    """The files of a checkpoint in several parts, by name; tensors are distributed in turn."""
    files, weight_map = {}, {}
    for i in range(count):
        file = f"model-{i + 1:05}-of-{count:05}.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[i::count]}
        files[file] = file_bytes(part)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    return files


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def llama(layers: int = 2, d: int = 4, f: int = 6, dtype: Any = np.float32) -> dict[str, Any]:
    rng = np.random.default_rng(7)
    shapes = {"gate_proj": (f, d), "up_proj": (f, d), "down_proj": (d, f)}
    return {
        f"model.layers.{i}.mlp.{name}.weight": rng.standard_normal(shape).astype(dtype)
        for i in range(layers)
        for name, shape in shapes.items()
    }


def deepseek_v3(layers: int = 2, d: int = 4, f: int = 3, e: int = 8) -> dict[str, Any]:
    """One tensor per matrix and expert, a shared expert and a bias of the selection."""
    rng = np.random.default_rng(11)
    tensors = {}
    for i in range(layers):
        start = f"model.layers.{i}.mlp."
        shapes: dict[str, tuple[int, ...]] = {
            "gate.weight": (e, d),
            "gate.e_score_correction_bias": (e,),
        }
        for block in (*(f"experts.{n}." for n in range(e)), "shared_experts."):
            shapes[block + "gate_proj.weight"] = (f, d)
            shapes[block + "up_proj.weight"] = (f, d)
            shapes[block + "down_proj.weight"] = (d, f)
        for name, shape in shapes.items():
            tensors[start + name] = rng.standard_normal(shape).astype(np.float32)
    return tensors


LLAMA = {"model_type": "llama", "hidden_act": "silu"}
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "hidden_act": "silu",
    "num_experts_per_tok": 3,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "n_group": 2,
    "topk_group": 1,
    "n_shared_experts": 1,
}
