"""Real checkpoints: read a feed-forward layer from safetensors files, without a framework.

    layer = fc.load("path/to/model", layer=3)      a folder with config.json and *.safetensors
    layer = fc.load("model.safetensors", layer=3)  one file, config.json beside it

A dense layer becomes an fc.FFN, a mixture of experts an fc.MoE. How a family names and stores its
layers is a row of FAMILIES (families.py) or MOE_FAMILIES (mixture_families.py); a further family is
a further row. A model_type that no row lists is refused rather than guessed: some models share the
names and add a clamp, a norm or a multiplier. `family=` overrules that for those who know.

A layer depends on its own tensors and on config.json alone: other layers of the file, or other
files, may be damaged or missing. Weights come in the checkpoint's dtype: float32, float64, float16
or bfloat16 (which needs the extra `models`, that is ml_dtypes). They are converted where dtype=
asks for it, never in silence. Tests: tests/models/test_models.py, tests/models/test_models_moe.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..arrays.dtypes import SUPPORTED, as_dtype
from ..layers.ffn import FFN
from ..layers.moe import MoE
from ..values.activation import ALIASES, Activation, as_activation
from ..values.weights import FFNWeights
from . import mixture_loading
from .families import FAMILIES, Family
from .families import LayerInfo as LayerInfo
from .files.checkpoint import Checkpoint
from .files.config import Config
from .files.defaults import FIXED
from .files.json_text import brief
from .files.packing import packing
from .layer_tensors import LayerTensors
from .mixture_families import MOE_FAMILIES, MoEFamily


@dataclass(frozen=True)
class _Found:
    """A layer of which tensors are there, whatever state they are in."""

    row: Family | MoEFamily
    prefix: str
    layer: int
    tensors: LayerTensors


def load(
    path: str | os.PathLike[str],
    layer: int = 0,
    *,
    dtype: str | None = None,
    activation: str | Activation | None = None,
    family: str | None = None,
    prefix: str | None = None,
) -> FFN | MoE:
    """Reads layer number `layer` of the model at `path` (a folder, or a .safetensors file).

    dtype       "float32", "float64", "bfloat16" or "float16": convert; None: as stored
    activation  overrules config.json, and is needed where there is none
    family      a name of ffncore.models.FAMILIES or MOE_FAMILIES, for a model_type that is listed
                in neither
    prefix      of the tensors' names, where a file holds more than one model

    A key that config.json leaves out has the default of the model's class in transformers.
    FileNotFoundError for a file that is not there; ValueError for files, config.json and tensors
    that are damaged, packed or do not fit: it names the file and the tensor or key.
    """
    if isinstance(layer, bool) or not hasattr(layer, "__index__"):
        raise TypeError(f"layer is of type {type(layer).__name__}; expected a number")
    if dtype is not None:
        as_dtype("dtype", dtype)
    with Checkpoint(path) as checkpoint:
        found = _chosen(checkpoint, layer, family, prefix)
        tensors, row, config = found.tensors, found.row, checkpoint.config
        packed = _packing(found, config)
        if packed is not None:
            raise ValueError(packed[1])
        if isinstance(row, MoEFamily):
            plan = mixture_loading.plan(tensors, row, config)
            checked = _activation(activation, row, config)
            if dtype is None:
                mixture_loading.same_dtypes(tensors, row, plan)
            return mixture_loading.read(tensors, row, plan, dtype, checked, config)
        fields = _take(tensors, row, config)
        checked = _activation(activation, row, config)
        if dtype is None:
            biases = tuple(name for field, name in fields.items() if field.startswith("b_"))
            tensors.same_dtype([n for n in fields.values() if n not in biases], biases)
        arrays: dict[str, Any] = {}
        for field, name in fields.items():
            array = tensors.read(name, dtype)
            arrays[field] = array.T if row.in_out else array
        return FFN(FFNWeights(**arrays), checked, tensors.start.rstrip("."))


def layers(path: str | os.PathLike[str], family: str | None = None) -> list[LayerInfo]:
    """Every feed-forward layer of the model at `path`, from the headers alone.

    A layer that fc.load would refuse is listed, too: its `problem` is the sentence, its `packing`
    says who quantised it, and sizes that cannot be told are 0. What is wrong with the whole, like
    an index that cannot be read or a model_type that is not known, raises as fc.load does.
    """
    with Checkpoint(path) as checkpoint:
        return [_info(found, checkpoint.config) for found in _layers(checkpoint, family)]


# ---- which layers there are ----------------------------------------------------------------------


def _chosen(checkpoint: Checkpoint, layer: int, family: str | None, prefix: str | None) -> _Found:
    chosen = _layers(checkpoint, family, layer, prefix)
    if not chosen:
        all_layers = _layers(checkpoint, family)
        prefixes = sorted({found.prefix for found in all_layers})
        if prefix is not None and prefixes and prefix not in prefixes:
            raise ValueError(
                f"prefix is {prefix!r}; expected one of {', '.join(map(ascii, prefixes))}, as the "
                f"layers in {checkpoint.names_file} have"
            )
        numbers = sorted({f.layer for f in all_layers if prefix in (None, f.prefix)})
        raise ValueError(
            f"layer {layer} is not in {checkpoint.names_file}; expected one of {ranges(numbers)}"
            if numbers
            else f"{checkpoint.names_file} has no feed-forward layer that ffncore knows; expected "
            f"tensors named as in one of the families {', '.join(_names_of_rows())}"
        )
    if len(chosen) > 1:
        each = ", ".join(ascii(found.prefix) for found in chosen)
        raise ValueError(
            f"{checkpoint.names_file}: layer {layer} is there {len(chosen)} times; expected "
            f"prefix=, one of {each}"
        )
    return chosen[0]


def _layers(
    checkpoint: Checkpoint, family: str | None, layer: int | None = None, prefix: str | None = None
) -> list[_Found]:
    """All of them, or those of one number and one prefix, by the first row that fits any."""
    for row in _candidates(checkpoint.config, family):
        found = list(_of_row(checkpoint, row, layer, prefix))
        if found:
            return sorted(found, key=lambda found: (found.prefix, found.layer))
    return []


def _of_row(
    checkpoint: Checkpoint, row: Family | MoEFamily, layer: int | None, prefix: str | None
) -> Iterator[_Found]:
    rows = (row, row.dense) if isinstance(row, MoEFamily) else (row,)
    for (before, number), names in checkpoint.layers(row.layer).items():
        if (layer is not None and number != layer) or (prefix is not None and before != prefix):
            continue
        tensors = LayerTensors(checkpoint, before + row.layer.format(number), names)
        kind = next((kind for kind in rows if tensors.have(kind.starts)), None)
        if kind is not None:
            yield _Found(kind, before, number, tensors)


def _names_of_rows() -> list[str]:
    return [row.name for row in (*FAMILIES, *MOE_FAMILIES)]


def _candidates(config: Config, family: str | None) -> tuple[Family | MoEFamily, ...]:
    """The rows whose names may be looked for; a model_type that no row lists is refused."""
    rows: tuple[Family | MoEFamily, ...] = (*FAMILIES, *MOE_FAMILIES)
    names = ", ".join(_names_of_rows())
    if family is not None:
        chosen = tuple(row for row in rows if row.name == family)
        if not chosen:
            raise ValueError(f"family is {family!r}; expected one of {names}")
        return chosen
    if not config.names_model():
        return FAMILIES  # how experts are chosen is told by no tensor
    chosen = tuple(row for row in rows if config.model_type in row.model_types)
    if not chosen:
        raise ValueError(
            f"{config.path} says model_type {brief(config.model_type)}, which ffncore.models does "
            f"not know; expected family= (one of {names}) if its layers are computed that way, or "
            f"arrays of yours in fc.FFNWeights (fused ones by FFNWeights.from_gate_up)"
        )
    return chosen


# ---- what they hold ------------------------------------------------------------------------------


def _take(tensors: LayerTensors, row: Family, config: Config) -> dict[str, str]:
    """The tensors of a dense layer by field of FFNWeights, checked from headers alone."""
    biases = row.biases or (config.reads("mlp_bias") and config.flag("mlp_bias"))
    fields = {}
    for field, stem in row.stems.items():
        size, other = ("d", "f") if field == "down" else ("f", "d")
        fields[field] = f"{stem}.weight"
        tensors.take(fields[field], f"{other} {size}" if row.in_out else f"{size} {other}")
        bias = f"{stem}.bias"
        if biases or bias in tensors:
            fields[f"b_{field}"] = bias
            tensors.take(bias, size)
    tensors.left_over(row.blocks)
    return fields


def _packing(found: _Found, config: Config) -> tuple[str, str] | None:
    """Who quantised the layer, and the sentence about it."""
    sound = found.tensors.sound(found.row.blocks)
    dtypes = {name: entry.dtype for name, entry in sound.items()}
    told = packing(dtypes, config.quantisation())
    if told is None:
        return None
    who, name = told
    sentence = f"is packed by {who}, which is not read; expected weights in {SUPPORTED}"
    return who, str(found.tensors.wrong(name, sentence))


def _told_activation(row: Family | MoEFamily, config: Config) -> tuple[str, str] | None:
    """(key, name) as config.json has it, or the model's code; None where neither tells."""
    if config.knows and config.model_type in FIXED:
        return "", FIXED[config.model_type]
    for key in row.activation_keys:
        if config.reads(key):
            return key, config.text(key)
    return None


def _activation(
    given: str | Activation | None, row: Family | MoEFamily, config: Config
) -> Activation:
    """What the caller gave, or the one of config.json with the options of the family."""
    if given is not None:
        return as_activation(given)
    told = _told_activation(row, config)
    if told is None:
        raise ValueError(
            f"{config.path} does not say what the activation is; expected activation="
            if config.there
            else f"there is no config.json that names the activation at {config.path}; expected "
            f"activation="
        )
    key, name = told
    options: dict[str, Any] = {}
    if isinstance(row, MoEFamily):
        options = {
            option: config.number(value) if isinstance(value, str) else value
            for option, value in row.activation_options.items()
        }
    try:
        return Activation(name, **options)
    except ValueError as error:
        raise ValueError(f"{config.path} has {key} {brief(name)}: {error}") from None


def _info(found: _Found, config: Config) -> LayerInfo:
    tensors, row = found.tensors, found.row
    packed = _packing(found, config)
    problems = [] if packed is None else [packed[1]]
    told = None
    try:
        told = _told_activation(row, config)
    except ValueError as error:
        problems.append(str(error))
    try:
        if packed is None:
            if isinstance(row, MoEFamily):
                mixture_loading.plan(tensors, row, config)
            else:
                _take(tensors, row, config)
    except (ValueError, FileNotFoundError) as error:
        problems.insert(0, str(error))
    sizes = tensors.sizes
    return LayerInfo(
        family=row,
        prefix=found.prefix,
        layer=found.layer,
        d_model=sizes.get("d", 0),
        d_ff=sizes.get("f", 0),
        activation=None if told is None else ALIASES.get(told[1], told[1]),
        dtype=next((tensors.taken[n] for n in tensors.taken if _is_matrix(n, row)), ""),
        parameters=0 if problems else tensors.count(tensors.taken),
        gated=isinstance(row, MoEFamily) or row.gate is not None,
        n_experts=sizes.get("E", 0) if isinstance(row, MoEFamily) else None,
        nbytes=sum(e.end - e.begin for e in tensors.sound(row.blocks).values()),
        packing=None if packed is None else packed[0],
        problem=problems[0] if problems else None,
        model_type=config.model_type if isinstance(config.model_type, str) else None,
    )


def _is_matrix(name: str, row: Family | MoEFamily) -> bool:
    """Of an expert or of the block, and not the router's, which may be of another dtype."""
    return not isinstance(row, MoEFamily) or not name.startswith(row.router.rsplit(".", 1)[0] + ".")


def ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> "0-2, 5" """
    parts: list[list[int]] = []
    for n in numbers:
        if parts and n == parts[-1][-1] + 1:
            parts[-1].append(n)
        else:
            parts.append([n])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)
