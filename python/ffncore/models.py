"""Real checkpoints: read a feed-forward layer from safetensors files, without a framework.

    layer = fc.load("path/to/model", layer=3)      a folder with config.json and *.safetensors
    layer = fc.load("model.safetensors", layer=3)  one file, config.json beside it

How a family names and stores its layers is a row of FAMILIES; a further family is a further row.
A model_type that no row lists is refused rather than guessed: some models share the names and add
a clamp, a norm or a multiplier. `family=` overrules that for those who know.

Weights come in the checkpoint's dtype: float32, float64, float16 or bfloat16. They are converted
where dtype= asks for it, never in silence. Needs the extra `models` (safetensors, ml_dtypes).
Tests: tests/test_models.py.
"""

from __future__ import annotations

import importlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import ffncore as fc

from ._arrays import SUPPORTED, as_dtype, converted
from .activations import ALIASES, as_activation
from .layers import FFN


@dataclass(frozen=True)
class Family:
    """One way to name and store a layer. Biases are optional; [in, out] weights are transposed."""

    name: str
    model_types: tuple[str, ...]  # of config.json
    layer: str  # what stands before the names, behind any prefix; {} is the number
    up: str
    down: str
    gate: str | None = None
    in_out: bool = False
    activation_keys: tuple[str, ...] = ("hidden_act",)  # of config.json, the first that is set
    default_activation: str | None = None  # where config.json leaves it out


FAMILIES = (
    Family(
        "bert",
        ("bert", "roberta", "xlm-roberta", "camembert", "electra", "mpnet", "esm", "deberta")
        + ("deberta-v2", "layoutlm", "megatron-bert", "ernie", "vit", "deit"),
        "encoder.layer.{}.",
        up="intermediate.dense",
        down="output.dense",
        default_activation="gelu",
    ),
    Family(
        "gpt2",  # its Conv1D stores [in, out]
        ("gpt2", "imagegpt", "decision_transformer"),
        "h.{}.",
        up="mlp.c_fc",
        down="mlp.c_proj",
        in_out=True,
        activation_keys=("activation_function",),
        default_activation="gelu_new",
    ),
    Family(
        "llama",
        ("llama", "mistral", "ministral", "qwen2", "qwen3", "olmo", "olmo2", "olmo3", "smollm3")
        + ("granite", "cohere", "cohere2", "stablelm", "exaone4"),
        "layers.{}.",
        gate="mlp.gate_proj",
        up="mlp.up_proj",
        down="mlp.down_proj",
        default_activation="silu",
    ),
    Family(
        "gemma",  # the same names; hidden_act of old Gemma files is wrong, and unused by its code
        ("gemma", "gemma2", "gemma3", "gemma3_text"),
        "layers.{}.",
        gate="mlp.gate_proj",
        up="mlp.up_proj",
        down="mlp.down_proj",
        activation_keys=("hidden_activation",),
        default_activation="gelu_pytorch_tanh",
    ),
)

# safetensors' names; the numpy side of the library knows BF16 once ml_dtypes is imported.
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class LayerInfo:
    """A feed-forward layer of a checkpoint, told from the files' headers alone."""

    family: Family
    prefix: str  # "" or what stands before family.layer, with its dot
    layer: int
    d_model: int
    d_ff: int
    activation: str | None  # None: no config.json tells; a name that ffncore lacks: as it is there
    dtype: str
    parameters: int  # biases included

    @property
    def gated(self) -> bool:
        return self.family.gate is not None

    @property
    def ratio(self) -> float:
        return self.d_ff / self.d_model

    @property
    def matched_ratio(self) -> float:
        """d_ff / d_model of the plain layer with as many matrix entries: a gate is a third one."""
        return self.ratio * (1.5 if self.gated else 1.0)


class Checkpoint:
    """The tensors of one model, by name: one file, or many with their index."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        folder = self.path if self.path.is_dir() else self.path.parent
        files, index = _find_files(self.path)
        self.config = _read_config(folder / "config.json")
        safetensors = _import("safetensors")
        self._stack = ExitStack()
        self._where: dict[str, Any] = {}
        try:
            for file in files:
                handle = self._stack.enter_context(
                    safetensors.safe_open(str(file), framework="numpy")
                )
                listed = index.get(file.name)
                for name in handle.keys() if listed is None else listed:
                    self._where[name] = handle
        except safetensors.SafetensorError as error:
            self.close()
            raise ValueError(f"{file} is not a safetensors file: {error}") from None

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._where[name].get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        stored = str(self._where[name].get_slice(name).get_dtype())
        return _DTYPES.get(stored, stored)

    def read(self, name: str, dtype: str | None) -> np.ndarray[Any, Any]:
        stored = self.dtype(name)
        if stored not in _DTYPES.values():
            raise TypeError(f"{name} has dtype {stored}; expected {SUPPORTED}")
        if stored == "bfloat16":
            _import("ml_dtypes")
        tensor: np.ndarray[Any, Any] = self._where[name].get_tensor(name)
        return tensor if dtype is None else converted(tensor, as_dtype("dtype", dtype))


def load(
    path: str | os.PathLike[str],
    layer: int = 0,
    *,
    dtype: str | None = None,
    activation: str | fc.Activation | None = None,
    family: str | None = None,
    prefix: str | None = None,
) -> FFN:
    """Reads layer number `layer` of the model at `path` (a folder, or a .safetensors file).

    dtype       "float32", "float64", "bfloat16" or "float16": convert; None: as stored
    activation  overrules config.json, and is needed where there is none
    family      a name of ffncore.models.FAMILIES, for a model_type that is not listed there
    prefix      of the tensors' names, where a file holds more than one model
    """
    if dtype is not None:
        as_dtype("dtype", dtype)
    with Checkpoint(path) as checkpoint:
        found = _layers(checkpoint, family)
        if prefix is not None:
            found = [info for info in found if info.prefix == prefix]
        chosen = [info for info in found if info.layer == layer]
        if not chosen:
            numbers = sorted({info.layer for info in found})
            raise ValueError(
                f"layer {layer} is not in {path}; expected one of {_ranges(numbers)}"
                if numbers
                else f"{path} has no feed-forward layer that ffncore knows; expected tensors "
                f"named as in one of the families {', '.join(row.name for row in FAMILIES)}"
            )
        if len(chosen) > 1:
            prefixes = ", ".join(repr(info.prefix) for info in chosen)
            raise ValueError(
                f"layer {layer} is there {len(chosen)} times; expected prefix=, one of {prefixes}"
            )
        info = chosen[0]
        if activation is None:
            activation = info.activation
        if activation is None:
            raise ValueError(
                f"{path} has no config.json that names the activation; expected activation="
            )
        activation = as_activation(activation)  # raises before anything large is read
        start = info.prefix + info.family.layer.format(layer)
        arrays: dict[str, Any] = {}
        for field, name in _names(info.family, start):
            if name in checkpoint:
                array = checkpoint.read(name, dtype)
                arrays[field] = array.T if info.family.in_out else array
        return FFN(fc.FFNWeights(**arrays), activation, start.rstrip("."))


def layers(path: str | os.PathLike[str], family: str | None = None) -> list[LayerInfo]:
    """Every feed-forward layer of the model at `path`, from the headers alone."""
    with Checkpoint(path) as checkpoint:
        return _layers(checkpoint, family)


def _layers(checkpoint: Checkpoint, family: str | None) -> list[LayerInfo]:
    found = []
    for row in _candidates(checkpoint.config, family):
        before, after = row.layer.split("{}")
        pattern = re.compile(
            rf"(.*\.|){re.escape(before)}(\d+){re.escape(after)}{re.escape(row.down)}\.weight"
        )
        for name in checkpoint:
            match = pattern.fullmatch(name)
            if match:
                info = _describe(checkpoint, row, match[1], int(match[2]))
                if info is not None:
                    found.append(info)
        if found:
            break
    return sorted(found, key=lambda info: (info.prefix, info.layer))


def _candidates(config: dict[str, Any], family: str | None) -> tuple[Family, ...]:
    """The rows whose names may be looked for; a model_type that no row lists is refused."""
    names = [row.name for row in FAMILIES]
    if family is not None:
        if family not in names:
            raise ValueError(f"family is {family!r}; expected one of {', '.join(names)}")
        return tuple(row for row in FAMILIES if row.name == family)
    model_type = config.get("model_type")
    if model_type is None:
        return FAMILIES
    rows = tuple(row for row in FAMILIES if model_type in row.model_types)
    if not rows:
        raise ValueError(
            f"config.json says model_type {model_type!r}, which ffncore.models does not know; "
            f"expected family= (one of {', '.join(names)}) if its layers are computed that way"
        )
    return rows


def _describe(checkpoint: Checkpoint, row: Family, prefix: str, layer: int) -> LayerInfo | None:
    names = dict(_names(row, prefix + row.layer.format(layer)))
    if names["up"] not in checkpoint or ("gate" in names and names["gate"] not in checkpoint):
        return None
    shape = checkpoint.shape(names["up"])
    if len(shape) != 2:
        return None
    d_ff, d_model = shape[::-1] if row.in_out else shape
    present = [name for name in names.values() if name in checkpoint]
    config = checkpoint.config
    told = [str(config[key]) for key in row.activation_keys if config.get(key)]
    if config and not told and row.default_activation is not None:
        told = [row.default_activation]
    return LayerInfo(
        family=row,
        prefix=prefix,
        layer=layer,
        d_model=d_model,
        d_ff=d_ff,
        activation=ALIASES.get(told[0], told[0]) if told else None,
        dtype=checkpoint.dtype(names["up"]),
        parameters=sum(int(np.prod(checkpoint.shape(name))) for name in present),
    )


def _names(row: Family, start: str) -> Iterator[tuple[str, str]]:
    """(field of FFNWeights, tensor name)"""
    for field, stem in (("gate", row.gate), ("up", row.up), ("down", row.down)):
        if stem is not None:
            yield field, f"{start}{stem}.weight"
            yield f"b_{field}", f"{start}{stem}.bias"


def _find_files(path: Path) -> tuple[list[Path], dict[str, list[str]]]:
    """The files to open, and which tensors the index says each holds (no index: all)."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected a folder or a .safetensors file")
    if path.is_file() and not path.name.endswith(".index.json"):
        return [path], {}
    index = path if path.is_file() else path / "model.safetensors.index.json"
    if path.is_dir() and not index.is_file():
        single = path / "model.safetensors"
        files = [single] if single.is_file() else sorted(path.glob("*.safetensors"))
        if len(files) != 1:
            raise ValueError(
                f"{path} holds {len(files)} .safetensors files and no "
                f"model.safetensors.index.json; expected one model"
            )
        return files, {}
    listed: dict[str, list[str]] = {}
    for tensor, file in json.loads(index.read_text("utf-8"))["weight_map"].items():
        if Path(file).name != file:  # an index must not lead out of its folder
            raise ValueError(f"{index} names {file!r}; expected a file of the same folder")
        listed.setdefault(file, []).append(tensor)
    missing = [file for file in listed if not (index.parent / file).is_file()]
    if missing:
        raise FileNotFoundError(f"{index} names {missing[0]}, which is not there")
    return [index.parent / file for file in sorted(listed)], listed


def _read_config(path: Path) -> dict[str, Any]:
    """config.json; of a model of several parts, the text part over the whole."""
    if not path.is_file():
        return {}
    config: dict[str, Any] = json.loads(path.read_text("utf-8"))
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, dict) else config


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ImportError(
            f'reading this checkpoint needs {name}; pip install "ffncore[models]" brings it'
        ) from None


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> "0-2, 5" """
    parts: list[list[int]] = []
    for n in numbers:
        if parts and n == parts[-1][-1] + 1:
            parts[-1].append(n)
        else:
            parts.append([n])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)
