"""Real checkpoints: read a feed-forward layer from safetensors files, without a framework.

    layer = fc.load("path/to/model", layer=3)      a folder with config.json and *.safetensors
    layer = fc.load("model.safetensors", layer=3)  one file, config.json beside it

A dense layer becomes an fc.FFN, a mixture of experts an fc.MoE. How a family names and stores its
layers is a row of FAMILIES (families.py) or MOE_FAMILIES (models_moe.py); a further family is a
further row. A model_type that no row lists is refused rather than guessed: some models share the
names and add a clamp, a norm or a multiplier. `family=` overrules that for those who know.

Weights come in the checkpoint's dtype: float32, float64, float16 or bfloat16. They are converted
where dtype= asks for it, never in silence. Needs the extra `models` (safetensors, ml_dtypes).
Tests: tests/test_models.py, tests/test_models_moe.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

import ffncore as fc

from ._arrays import as_dtype
from .activations import ALIASES, as_activation
from .checkpoint import Checkpoint
from .families import FAMILIES, Family
from .families import LayerInfo as LayerInfo
from .layers import FFN
from .models_moe import MOE_FAMILIES, MoEFamily, describe_moe, read_moe
from .moe_layer import MoE


def load(
    path: str | os.PathLike[str],
    layer: int = 0,
    *,
    dtype: str | None = None,
    activation: str | fc.Activation | None = None,
    family: str | None = None,
    prefix: str | None = None,
) -> FFN | MoE:
    """Reads layer number `layer` of the model at `path` (a folder, or a .safetensors file).

    dtype       "float32", "float64", "bfloat16" or "float16": convert; None: as stored
    activation  overrules config.json, and is needed where there is none
    family      a name of ffncore.models.FAMILIES or MOE_FAMILIES, for a model_type that is listed
                in neither
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
                f"named as in one of the families {', '.join(_names_of_rows())}"
            )
        if len(chosen) > 1:
            prefixes = ", ".join(repr(info.prefix) for info in chosen)
            raise ValueError(
                f"layer {layer} is there {len(chosen)} times; expected prefix=, one of {prefixes}"
            )
        info = chosen[0]
        if activation is None:
            activation = info.activation
            if isinstance(info.family, MoEFamily) and activation is not None:
                activation = info.family.activation(checkpoint.config, activation)
        if activation is None:
            raise ValueError(
                f"{path} has no config.json that names the activation; expected activation="
            )
        activation = as_activation(activation)  # raises before anything large is read
        start = info.prefix + info.family.layer.format(layer)
        if isinstance(info.family, MoEFamily):
            return read_moe(checkpoint, info, start, dtype, activation)
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
    for row in _candidates(checkpoint.config, family):
        found: list[LayerInfo] = []
        if isinstance(row, MoEFamily):
            for prefix, number in _places(checkpoint, row.layer, row.router):
                found.append(describe_moe(checkpoint, row, prefix, number))
        dense = row.dense if isinstance(row, MoEFamily) else row
        for prefix, number in _places(checkpoint, dense.layer, dense.down + ".weight"):
            info = _describe(checkpoint, dense, prefix, number)
            if info is not None:
                found.append(info)
        if found:
            return sorted(found, key=lambda info: (info.prefix, info.layer))
    return []


def _places(checkpoint: Checkpoint, layer: str, name: str) -> Iterator[tuple[str, int]]:
    """(prefix, number) of every layer that has a tensor of this name."""
    before, after = layer.split("{}")
    pattern = re.compile(rf"(.*\.|){re.escape(before)}(\d+){re.escape(after + name)}")
    for tensor in checkpoint:
        match = pattern.fullmatch(tensor)
        if match:
            yield match[1], int(match[2])


def _names_of_rows() -> list[str]:
    return [row.name for row in (*FAMILIES, *MOE_FAMILIES)]


def _candidates(config: dict[str, Any], family: str | None) -> tuple[Family | MoEFamily, ...]:
    """The rows whose names may be looked for; a model_type that no row lists is refused."""
    rows: tuple[Family | MoEFamily, ...] = (*FAMILIES, *MOE_FAMILIES)
    names = ", ".join(_names_of_rows())
    if family is not None:
        chosen = tuple(row for row in rows if row.name == family)
        if not chosen:
            raise ValueError(f"family is {family!r}; expected one of {names}")
        return chosen
    model_type = config.get("model_type")
    if model_type is None:
        return FAMILIES  # how experts are chosen is told by no tensor
    chosen = tuple(row for row in rows if model_type in row.model_types)
    if not chosen:
        raise ValueError(
            f"config.json says model_type {model_type!r}, which ffncore.models does not know; "
            f"expected family= (one of {names}) if its layers are computed that way"
        )
    return chosen


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
        gated=row.gate is not None,
    )


def _names(row: Family, start: str) -> Iterator[tuple[str, str]]:
    """(field of FFNWeights, tensor name)"""
    for field, stem in (("gate", row.gate), ("up", row.up), ("down", row.down)):
        if stem is not None:
            yield field, f"{start}{stem}.weight"
            yield f"b_{field}", f"{start}{stem}.bias"


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> "0-2, 5" """
    parts: list[list[int]] = []
    for n in numbers:
        if parts and n == parts[-1][-1] + 1:
            parts[-1].append(n)
        else:
            parts.append([n])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)
