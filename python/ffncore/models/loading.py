"""fc.load and models.layers: feed-forward layers from safetensors files, without a framework.

    layer = fc.load("path/to/model", layer=3)      a folder with config.json and *.safetensors
    layer = fc.load("model.safetensors", layer=3)  one file, with config.json in the same folder

A dense layer becomes an fc.FFN, a mixture of experts an fc.MoE. The table of families says how they
name and store their layers (families/row.py). A model_type that is not in it is refused, because a
model may use the same names and add a clamp, a norm or a multiplier; family= loads it in spite of
that.

A layer depends only on its own tensors and on config.json: other layers and other files may be
damaged or missing. Weights keep the dtype of the checkpoint, float32, float64, float16 or bfloat16
(which needs ml_dtypes), unless dtype= says otherwise. Tests: tests/models/test_models.py,
tests/models/test_models_moe.py, tests/models/test_parts.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from ..arrays.dtypes import SUPPORTED, as_dtype
from ..layers.around import Around
from ..layers.ffn import FFN
from ..layers.inner import Inner
from ..layers.moe import MoE
from ..values.activation import ALIASES, Activation, as_activation
from . import blocks, mixture_loading
from .blocks import Block
from .families import LayerInfo
from .families.around import around_of
from .families.row import Family, Names
from .files.checkpoint import opened
from .files.config import Config
from .files.defaults import FIXED
from .files.json_text import brief
from .files.packing import packing
from .finding import Found, found_layer, found_layers
from .finding import ranges as ranges
from .finding import why_none as _why_none
from .layer_tensors import LayerTensors


def load(
    path: str | os.PathLike[str],
    layer: int = 0,
    *,
    dtype: str | None = None,
    activation: str | Activation | None = None,
    family: str | None = None,
    prefix: str | None = None,
    part: str | None = None,
    experts: Sequence[int] | None = None,
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
    prefix      of the tensors' names, or a part of it such as "vision_model", or the name of the
                tower: "text", "vision", "audio", "encoder", "decoder". None: the language model;
                needed if the model has several stacks of layers and none is the main one
    part        another block of the layer, such as "mlp" for the dense branch beside the experts of
                Gemma 4, or "mlp.shared_experts"; LayerInfo.parts has the names. None: the mixture,
                or else the dense layer
    experts     numbers of experts, such as range(0, 16): only their weights are read. The layer
                routes over all experts, and adds up the chosen ones that it has. What the layer has
                once (shared expert, output bias, null experts) comes with expert 0, so that the
                outputs of layers that have all experts between them add up to the whole output.
                None: all

    Returns an fc.FFN for a dense layer, an fc.MoE for a mixture of experts. It computes what the
    block of the model computes, without the norms, the residual and the residual multiplier around
    it; layer.around tells these. A key that config.json leaves out has the default of the model's
    class in transformers.

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
        found = found_layer(checkpoint, layer, family, prefix)
        tensors, row, config = found.tensors, found.row, _config(found)
        packed = _packing(found, config)
        if packed is not None:
            raise ValueError(packed[1])
        if (refused := _refused(found)) is not None:
            raise refused
        around = around_of(config)
        mixture = found.mixture if part is None else None
        if mixture is None:
            if experts is not None:
                what = f"part {part}" if part is not None else f"layer {layer}"
                raise ValueError(f"experts is given, and {what} has no experts; expected None")
            forms = found.forms if part is None else _part(found, part)
            return _dense(found, config, forms, dtype, activation, around)
        plan = mixture_loading.plan(tensors, mixture, config)
        form = plan.experts.form
        own = _activation(activation, row, config, "experts", form, tensors, read=True)
        shared = own
        if plan.shared is not None:
            other = plan.shared.form
            shared = _activation(activation, row, config, "shared", other, tensors, read=True)
        if dtype is None:
            mixture_loading.same_dtypes(tensors, plan)
        held = None if experts is None else _held(experts, tensors.sizes["E"])
        return mixture_loading.read(
            tensors, mixture, plan, dtype, (own, shared), config, around, held
        )


def _dense(
    found: Found,
    config: Config,
    forms: Sequence[Names],
    dtype: str | None,
    activation: str | Activation | None,
    around: Around,
) -> FFN:
    tensors, row = found.tensors, found.row
    block = _take(tensors, row, config, forms)
    checked = _activation(activation, row, config, "dense", block.form, tensors, read=True)
    inner = None if row.inner is None else row.inner(config)
    multiplier = 1.0 if row.multiplier is None else config.number(row.multiplier)
    if dtype is None:
        tensors.same_dtype(block.matrix_names, tuple(block.bias_names))
        for name in block.others:
            tensors.same_precision(name, block.matrix_names[0], widened=False)
    weights = blocks.weights(tensors, block, dtype)
    if block.norm:
        inner = inner or {}
        inner["norm"] = (block.form.norm or "").split(":")[0]
        inner["eps"] = config.number(row.norm_eps_key)
        inner |= {n.rpartition(".")[2]: tensors.read(n, dtype) for n in block.norm}
    if block.scale is not None:
        multiplier *= tensors.read_number(block.scale)
    name = tensors.start.rstrip(".") if not found.parts else tensors.start + block.form.start
    return FFN(
        weights,
        checked,
        name.rstrip("."),
        inner=Inner(**inner) if inner else None,
        multiplier=multiplier,
        around=around,
    )


def layers(path: str | os.PathLike[str], family: str | None = None) -> list[LayerInfo]:
    """List the feed-forward layers of a checkpoint, from the headers of its files.

    path    as for fc.load
    family  as for fc.load

    Returns a list of LayerInfo, sorted by prefix and number. Layers that fc.load would refuse are
    listed, too: their problem is the error, and their packing the name of the quantisation. Towers
    whose model_type is not known are left out.

    Raises ValueError and FileNotFoundError as fc.load does for faults of the whole checkpoint, such
    as an index that cannot be read or a model_type that is not known.

    >>> infos = ffncore.models.layers("path/to/model")
    """
    with opened(path) as checkpoint:
        return [_info(found) for found in found_layers(checkpoint, family)]


def why_none(path: str | os.PathLike[str], family: str | None) -> str:
    """The sentence that says why models.layers returns no layer."""
    with opened(path) as checkpoint:
        return _why_none(checkpoint, family)


# ---- checking layers -----------------------------------------------------------------------------


def _config(found: Found) -> Config:
    return found.config.at(found.layer, found.row.by_layer)


def _part(found: Found, part: str) -> tuple[Names, ...]:
    parts = found.parts
    if part not in parts:
        names = ", ".join(map(repr, parts)) or "None, because the layer has one block"
        raise ValueError(f"part is {part!r}; expected {'one of ' * bool(parts)}{names}")
    return parts[part]


def _held(experts: Iterable[int], n: int) -> tuple[int, ...]:
    numbers = tuple(experts)
    for e in numbers:
        if isinstance(e, bool) or not hasattr(e, "__index__"):
            raise TypeError(f"experts has a {type(e).__name__}; expected integers")
    rises = all(a < b for a, b in pairwise(numbers))
    if not numbers or not rises or numbers[0] < 0 or numbers[-1] >= n:
        raise ValueError(
            f"experts is {brief(numbers)}; expected increasing numbers from 0 to {n - 1}"
        )
    return tuple(map(int, numbers))


def _take(tensors: LayerTensors, row: Family, config: Config, forms: Sequence[Names]) -> Block:
    """Check the tensors of a dense block."""
    biased = config.reads(row.bias_key) and config.flag(row.bias_key)
    block = blocks.plan(tensors, forms, biased=biased, optional_biases=True)
    for name in row.activation_tensors.values():
        tensors.take_number(name)
    tensors.left_over(block.form.blocks)
    return block


def _refused(found: Found) -> ValueError | None:
    """The error about a tensor of something that the layer computes and ffncore does not."""
    for name, reason in found.row.refuses.items():
        if name in found.tensors:
            return found.tensors.wrong(name, f"is not supported: {reason}")
    return None


def _packing(found: Found, config: Config) -> tuple[str, str] | None:
    """The name of the layer's quantisation and the error about it, or None."""
    sound = found.tensors.sound(_blocks(found))
    dtypes = {name: entry.dtype for name, entry in sound.items()}
    told = packing(dtypes, config.quantisation())
    if told is None:
        return None
    who, name = told
    sentence = f"is quantised by {who}, which is not supported; expected weights in {SUPPORTED}"
    return who, str(found.tensors.wrong(name, sentence))


def _blocks(found: Found) -> tuple[str, ...]:
    """Starts of names that only tensors of the layer's main block have."""
    if found.mixture is not None:
        return mixture_loading.found_blocks(found.tensors, found.mixture)
    return blocks.choose(found.tensors, found.forms).blocks


def _told_activation(
    row: Family, config: Config, form: Names | None = None
) -> tuple[str, str] | None:
    """The key and the name of the activation in config.json, or in the model's code; or None."""
    if form is not None and form.activation is not None:
        return "", form.activation
    if config.knows and config.model_type in FIXED:
        return "", FIXED[config.model_type]
    if row.told_activation is not None:
        return row.told_activation(config)
    for template in row.activation_keys:
        key = template.format(tower=config.tower)
        if config.reads(key):
            return key, config.text(key)
    return None


def _activation(
    given: str | Activation | None,
    row: Family,
    config: Config,
    kind: str = "dense",
    form: Names | None = None,
    tensors: LayerTensors | None = None,
    *,
    read: bool = False,
) -> Activation:
    """The activation that the caller passed, or that of config.json with the family's options.

    kind  of the block: "experts", "shared" or "dense"
    read  whether to read options that are tensors
    """
    if given is not None:
        return as_activation(given)
    told = _told_activation(row, config, form)
    if told is None:
        raise ValueError(
            f"{config.path} does not name the activation; expected activation="
            if config.there
            else f"{config.path}, which would name the activation, does not exist; expected "
            f"activation="
        )
    key, name = told
    options: dict[str, Any] = {
        option: config.number(value) if isinstance(value, str) else value
        for option, value in row.activation_options.items()
    }
    if row.options is not None:
        options |= row.options(config, kind)
    if read and tensors is not None:
        for option, tensor in row.activation_tensors.items():
            options[option] = tensors.read_number(tensor)
    try:
        return Activation(name, **options)
    except ValueError as error:
        raise ValueError(f"{config.path} has {key} {brief(name)}: {error}") from None


def _info(found: Found) -> LayerInfo:
    tensors, row, config = found.tensors, found.row, _config(found)
    mixture = found.mixture
    packed = _packing(found, config)
    problems = [] if packed is None else [packed[1]]
    told = None
    block: Block | None = None
    form = blocks.choose(tensors, found.forms if mixture is None else mixture.experts)
    around = Around()
    try:
        told = _told_activation(row, config, form)
        around = around_of(config)
    except ValueError as error:
        problems.append(str(error))
    try:
        if packed is None:
            if (refused := _refused(found)) is not None:
                raise refused
            if mixture is not None:
                block = mixture_loading.plan(tensors, mixture, config).experts
            else:
                block = _take(tensors, row, config, found.forms)
    except (ValueError, FileNotFoundError) as error:
        problems.insert(0, str(error))
    sizes = tensors.sizes
    matrices = set() if block is None else set(block.matrix_names)
    first = next((n for n in tensors.taken if n in matrices), None)
    first = first or next((n for n in tensors.taken if mixture is None), None)
    return LayerInfo(
        family=row,
        prefix=found.prefix,
        layer=found.layer,
        d_model=sizes.get("d", 0),
        d_ff=sizes.get("f", 0),
        activation=None if told is None else ALIASES.get(told[1], told[1]),
        dtype="" if first is None else tensors.taken[first],
        parameters=0 if problems else tensors.count(tensors.taken),
        gated=form.gated,
        n_experts=None if mixture is None else sizes.get("E", 0),
        nbytes=sum(e.end - e.begin for e in tensors.sound(_blocks(found)).values()),
        packing=None if packed is None else packed[0],
        problem=problems[0] if problems else None,
        model_type=config.model_type if isinstance(config.model_type, str) else None,
        tower=found.tower,
        around=around,
        parts=tuple(found.parts),
        shared_ff=sizes.get("s", 0),
    )
