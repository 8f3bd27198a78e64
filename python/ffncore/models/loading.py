"""fc.load and models.layers: feed-forward layers from safetensors files, without a framework.

    layer = fc.load("path/to/model", layer=3)      a folder with config.json and *.safetensors
    layer = fc.load("model.safetensors", layer=3)  one file, with config.json in the same folder

A dense layer becomes an fc.FFN, a mixture of experts an fc.MoE. FAMILIES (families.py) and
MOE_FAMILIES (mixture_families.py) say how families name and store their layers. A model_type that
is in neither is refused, because a model may use the same names and add a clamp, a norm or a
multiplier; family= loads it in spite of that.

A layer depends only on its own tensors and on config.json: other layers and other files may be
damaged or missing. Weights keep the dtype of the checkpoint, float32, float64, float16 or bfloat16
(which needs ml_dtypes), unless dtype= says otherwise. Tests: tests/models/test_models.py,
tests/models/test_models_moe.py.
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
from .files.checkpoint import Checkpoint, opened
from .files.config import Config
from .files.defaults import FIXED
from .files.json_text import brief
from .files.packing import packing
from .layer_tensors import LayerTensors
from .mixture_families import MOE_FAMILIES, MoEFamily


@dataclass(frozen=True)
class _Found:
    """A layer of the checkpoint, whose tensors have not been checked."""

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
    """Read one feed-forward layer of a checkpoint.

    path        a folder with config.json and .safetensors files, or one .safetensors file
    layer       the number of the layer
    dtype       "float32", "float64", "bfloat16" or "float16", to which the weights are converted;
                None: they stay as they are stored
    activation  a name or an Activation, in place of the one in config.json; needed if there is no
                config.json
    family      a name of ffncore.models.FAMILIES or MOE_FAMILIES, for a model_type that is in
                neither, but has layers of that form
    prefix      of the tensors' names, with its dot; needed if the file has several models

    Returns an fc.FFN for a dense layer, an fc.MoE for a mixture of experts. A key that config.json
    leaves out has the default of the model's class in transformers.

    Raises FileNotFoundError for files that do not exist, and ValueError for files, tensors and keys
    of config.json that are damaged, quantised or do not fit each other; the error names them. Only
    the files and tensors of this layer are read and checked.

    See also: ffncore.models.layers, which lists the layers.

    >>> layer = fc.load("path/to/model", layer=3)
    >>> y = layer(np.zeros((1, layer.d_model), layer.dtype))
    """
    if isinstance(layer, bool) or not hasattr(layer, "__index__"):
        raise TypeError(f"layer is of type {type(layer).__name__}; expected an integer")
    if dtype is not None:
        as_dtype("dtype", dtype)
    with opened(path) as checkpoint:
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
    """List the feed-forward layers of a checkpoint, from the headers of its files.

    path    as for fc.load
    family  as for fc.load

    Returns a list of LayerInfo, sorted by prefix and number. Layers that fc.load would refuse are
    listed, too: their problem is the error, and their packing the name of the quantisation.

    Raises ValueError and FileNotFoundError as fc.load does for faults of the whole checkpoint, such
    as an index that cannot be read or a model_type that is not known.

    >>> infos = ffncore.models.layers("path/to/model")
    """
    with opened(path) as checkpoint:
        return [_info(found, checkpoint.config) for found in _layers(checkpoint, family)]


# ---- finding layers ------------------------------------------------------------------------------


def _chosen(checkpoint: Checkpoint, layer: int, family: str | None, prefix: str | None) -> _Found:
    chosen = _layers(checkpoint, family, layer, prefix)
    if not chosen:
        all_layers = _layers(checkpoint, family)
        prefixes = sorted({found.prefix for found in all_layers})
        if prefix is not None and prefixes and prefix not in prefixes:
            raise ValueError(
                f"prefix is {prefix!r}; expected one of {', '.join(map(ascii, prefixes))}, the "
                f"prefixes in {checkpoint.names_file}"
            )
        numbers = sorted({f.layer for f in all_layers if prefix in (None, f.prefix)})
        raise ValueError(
            f"layer {layer} is not in {checkpoint.names_file}; expected one of {ranges(numbers)}"
            if numbers
            else _none(checkpoint, family)
        )
    if len(chosen) > 1:
        each = ", ".join(ascii(found.prefix) for found in chosen)
        raise ValueError(
            f"{checkpoint.names_file} has layer {layer} {len(chosen)} times; expected prefix= with "
            f"one of {each}"
        )
    return chosen[0]


def why_none(path: str | os.PathLike[str], family: str | None) -> str:
    """The sentence that says why models.layers returns no layer."""
    with opened(path) as checkpoint:
        return _none(checkpoint, family)


def _none(checkpoint: Checkpoint, family: str | None) -> str:
    config, file = checkpoint.config, checkpoint.names_file
    if family is None and not config.names_model():
        mixtures = [row.name for row in MOE_FAMILIES if any(_of_row(checkpoint, row, None, None))]
        if mixtures:
            lacks = "has no model_type" if config.there else "does not exist"
            return (
                f"{file} has tensors named as in the mixtures of {', '.join(mixtures)}, but "
                f"{config.path} {lacks}; expected family= with one of these names"
            )
    tried = ", ".join(row.name for row in _candidates(config, family))
    return (
        f"{file} has no feed-forward layer that ffncore knows; expected tensors named as in {tried}"
    )


def _layers(
    checkpoint: Checkpoint, family: str | None, layer: int | None = None, prefix: str | None = None
) -> list[_Found]:
    """The layers of the first row that has any, of all numbers and prefixes or the given ones."""
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
    """The rows to try: those of the model_type, or of family=."""
    rows: tuple[Family | MoEFamily, ...] = (*FAMILIES, *MOE_FAMILIES)
    names = ", ".join(_names_of_rows())
    if family is not None:
        chosen = tuple(row for row in rows if row.name == family)
        if not chosen:
            raise ValueError(f"family is {family!r}; expected one of {names}")
        return chosen
    if not config.names_model():
        return FAMILIES  # without config.json nothing says how a mixture routes
    chosen = tuple(row for row in rows if config.model_type in row.model_types)
    if not chosen:
        raise ValueError(
            f"{config.path} has model_type {brief(config.model_type)}, which ffncore.models does "
            f"not know; expected family= (one of {names}) if its layers are computed that way, or "
            f"your own arrays in fc.FFNWeights (fused ones by FFNWeights.from_gate_up)"
        )
    return chosen


# ---- checking layers -----------------------------------------------------------------------------


def _take(tensors: LayerTensors, row: Family, config: Config) -> dict[str, str]:
    """Check the tensors of a dense layer, and return their names by the fields of FFNWeights."""
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
    """The name of the layer's quantisation and the error about it, or None."""
    sound = found.tensors.sound(found.row.blocks)
    dtypes = {name: entry.dtype for name, entry in sound.items()}
    told = packing(dtypes, config.quantisation())
    if told is None:
        return None
    who, name = told
    sentence = f"is quantised by {who}, which is not supported; expected weights in {SUPPORTED}"
    return who, str(found.tensors.wrong(name, sentence))


def _told_activation(row: Family | MoEFamily, config: Config) -> tuple[str, str] | None:
    """The key and the name of the activation in config.json, or in the model's code; or None."""
    if config.knows and config.model_type in FIXED:
        return "", FIXED[config.model_type]
    for key in row.activation_keys:
        if config.reads(key):
            return key, config.text(key)
    return None


def _activation(
    given: str | Activation | None, row: Family | MoEFamily, config: Config
) -> Activation:
    """The activation that the caller passed, or that of config.json with the family's options."""
    if given is not None:
        return as_activation(given)
    told = _told_activation(row, config)
    if told is None:
        raise ValueError(
            f"{config.path} does not name the activation; expected activation="
            if config.there
            else f"{config.path}, which would name the activation, does not exist; expected "
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
    """Whether a tensor is not the router's, whose dtype may differ from that of the matrices."""
    return not isinstance(row, MoEFamily) or not name.startswith(row.router.rsplit(".", 1)[0] + ".")


def ranges(numbers: list[int]) -> str:
    """Return numbers as text: "0-2, 5" for [0, 1, 2, 5]."""
    parts: list[list[int]] = []
    for n in numbers:
        if parts and n == parts[-1][-1] + 1:
            parts[-1].append(n)
        else:
            parts.append([n])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)
