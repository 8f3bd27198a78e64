"""SCHEMES: how quantised matrices stand in safetensors files, one row for each way.

    X.qweight, X.qzeros, X.scales, X.g_idx         in place of X.weight (AWQ and GPTQ)
    X.weight_packed, X.weight_scale, ...           compressed-tensors
    X.weight, X.weight_scale_inv                   FP8 of DeepSeek
    X_blocks, X_scales                             in place of X (MXFP4 of gpt-oss)
    X.weight, X.weight.absmax, ...                 NF4 of bitsandbytes
    N.q4_k                                         in place of N (`python -m ffncore quantize`)

A row has the ends of these names; which row a matrix has is decided by the names of its layer and
by dtypes and shapes, because config.json often says less, or something else. A matrix that is
stored plainly, which config.json may list as ignored, is read plainly.
Tests: tests/models/test_schemes.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..arrays.shapes import Array
from ..encodings.table import FORMATS
from ..encodings.tensor import QuantizedTensor
from ..quantisation import converters
from .files.json_text import brief
from .files.safetensors import Entry

Entries = Mapping[str, Entry]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Scheme:
    """One way in which a matrix [out, in], or a stack of them, is stored.

    name     for people
    method   quant_method in config.json
    parts    the ends of the names of its tensors; those with "?" need not be there
    whole    the end of the name that they stand in place of
    format   the format that it is read as, or a function of the entries and the shape
    fits     whether entries are of this scheme, by their dtypes and shapes
    shape    the shape of the weights, from the entries and a function that reads a part
    read     the tensor, from its parts, the shape, quantization_config and a name for errors
    turned   whether weights are [out, in] whatever the model stores; else they are as stored
    """

    name: str
    method: str
    parts: tuple[str, ...]
    whole: str
    format: str | Callable[[Entries, Shape], str]
    fits: Callable[[Entries], bool]
    shape: Callable[[Entries, Callable[[str], Array]], Shape]
    read: Callable[[Mapping[str, Array], Shape, Mapping[str, Any], str], QuantizedTensor]
    turned: bool = False

    def format_of(self, entries: Entries, shape: Shape) -> str:
        return self.format if isinstance(self.format, str) else self.format(entries, shape)

    @property
    def needed(self) -> tuple[str, ...]:
        return tuple(part for part in self.parts if not part.endswith("?"))

    @property
    def ends(self) -> tuple[str, ...]:
        return tuple(part.rstrip("?") for part in self.parts)


@dataclass(frozen=True)
class Stored:
    """A quantised matrix of a layer: the schemes that its names allow, and its tensors by part."""

    schemes: tuple[Scheme, ...]
    names: Mapping[str, str]


# ---- AWQ and GPTQ


def _awq(parts: Mapping[str, Array], _: Shape, told: Mapping[str, Any], name: str) -> Any:
    version = told.get("version", "gemm")
    if isinstance(version, str) and version.lower() != "gemm":
        raise ValueError(f"{name} is in AWQ's layout {brief(version)}; expected 'gemm'")
    _four_bits("AWQ", told, name)
    return converters.from_awq(parts[".qweight"], parts[".scales"], parts[".qzeros"], name=name)


def _gptq(parts: Mapping[str, Array], _: Shape, told: Mapping[str, Any], name: str) -> Any:
    _four_bits("GPTQ", told, name)
    version = 2 if told.get("checkpoint_format") == "gptq_v2" else 1
    given = parts[".qweight"], parts[".scales"], parts[".qzeros"], parts.get(".g_idx")
    return converters.from_gptq(*given, version=version, name=name)


def _four_bits(who: str, told: Mapping[str, Any], name: str) -> None:
    bits = told.get("bits", told.get("w_bit", 4))
    if bits != 4:
        raise ValueError(f"{name} is quantised by {who} to {brief(bits)} bits; expected 4")


def _columns(entries: Entries, times: int) -> bool:
    """Whether qweight has `times` as many columns as qzeros: 1 in AWQ, 8 in GPTQ."""
    weight, zeros = entries[".qweight"], entries[".qzeros"]
    pair = len(weight.shape) == len(zeros.shape) == 2 and weight.dtype == zeros.dtype == "int32"
    return pair and weight.shape[1] == times * zeros.shape[1]


def _awq_shape(entries: Entries, _: Any) -> Shape:
    k, words = entries[".qweight"].shape
    return 8 * words, k


def _gptq_shape(entries: Entries, _: Any) -> Shape:
    words, out = entries[".qweight"].shape
    return out, 8 * words


# ---- compressed-tensors


def _packed_shape(_: Entries, read: Callable[[str], Array]) -> Shape:
    return tuple(int(n) for n in read(".weight_shape").reshape(-1))


def _packed_format(entries: Entries, shape: Shape) -> str:
    words = entries[".weight_packed"].shape[-1]
    return "int4" if 32 * words < 5 * shape[-1] else "int8"  # 5 bits and more become int8


def _pack_quantized(parts: Mapping[str, Array], shape: Shape, told: Any, name: str) -> Any:
    words = parts[".weight_packed"].shape[-1]
    fitting = [b for b in range(1, 9) if -(-shape[-1] * b // 32) == words]
    bits = next((b for b in _told_bits(told) if b in fitting), fitting[0] if fitting else 4)
    return converters.from_pack_quantized(
        parts[".weight_packed"],
        parts[".weight_scale"],
        (shape[0], shape[1]),
        bits=bits,
        weight_zero_point=parts.get(".weight_zero_point"),
        g_idx=parts.get(".weight_g_idx"),
        name=name,
    )


def _told_bits(told: Mapping[str, Any]) -> list[Any]:
    """The num_bits of the groups of quantization_config."""
    groups = told.get("config_groups")
    found = groups.values() if isinstance(groups, dict) else ()
    weights = [group.get("weights") for group in found if isinstance(group, dict)]
    return [w.get("num_bits") for w in weights if isinstance(w, dict)]


def _halves(entries: Entries, _: Any) -> Shape:
    *lead, n = entries[".weight_packed"].shape
    return (*lead, 2 * n)


def _nvfp4(parts: Mapping[str, Array], _: Shape, __: Any, name: str) -> Any:
    given = parts[".weight_packed"], parts[".weight_scale"], parts[".weight_global_scale"]
    return converters.from_nvfp4(*given, name=name)


def _mxfp4_packed(parts: Mapping[str, Array], shape: Shape, _: Any, name: str) -> Any:
    packed = parts[".weight_packed"]
    if shape[-1] % 32:
        raise ValueError(f"{name} has rows of {shape[-1]} weights; expected a multiple of 32")
    blocks = packed.reshape(*packed.shape[:-1], -1, 16)
    return converters.from_mxfp4(blocks, parts[".weight_scale"], name=name)


def _int8(parts: Mapping[str, Array], shape: Shape, _: Any, name: str) -> Any:
    return QuantizedTensor.from_parts(
        "int8",
        shape,
        codes=parts[".weight"],
        scales=parts[".weight_scale"],
        zeros=parts.get(".weight_zero_point"),
        name=name,
    )


# ---- FP8, MXFP4, NF4


def _fp8(part: str, scale: str) -> Any:
    def read(parts: Mapping[str, Array], _: Shape, __: Any, name: str) -> QuantizedTensor:
        return converters.from_fp8(parts[part], parts[scale], name=name)

    return read


def _as_stored(part: str) -> Any:
    def shape(entries: Entries, _: Any) -> Shape:
        return entries[part].shape

    return shape


def _mxfp4(parts: Mapping[str, Array], _: Shape, __: Any, name: str) -> Any:
    return converters.from_mxfp4(parts["_blocks"], parts["_scales"], name=name)


def _mxfp4_shape(entries: Entries, _: Any) -> Shape:
    shape = entries["_blocks"].shape
    return (*shape[:-2], 32 * shape[-2]) if len(shape) > 2 else shape


_STATE = ".weight.quant_state.bitsandbytes__nf4"


def _state(data: Array) -> dict[str, Any]:
    """bitsandbytes' quant_state: JSON with the shape and the nested blocks."""
    try:
        told = json.loads(data.tobytes())
        shape = told["shape"]
        sound = isinstance(shape, list) and len(shape) == 2 and all(type(n) is int for n in shape)
    except (ValueError, KeyError, TypeError, RecursionError):
        sound = False
    if not sound or min(shape) < 1:
        raise ValueError("has a quant_state without a shape; expected JSON with two sizes")
    return dict(told)


def _nf4_shape(_: Entries, read: Callable[[str], Array]) -> Shape:
    return tuple(_state(read(_STATE))["shape"])


def _nf4(parts: Mapping[str, Array], shape: Shape, _: Any, name: str) -> Any:
    told = _state(parts[_STATE])
    if told.get("blocksize", 64) != 64:
        raise ValueError(f"{name} has NF4 blocks of {brief(told['blocksize'])}; expected 64")
    return converters.from_nf4(
        parts[".weight"],
        parts[".weight.absmax"],
        (shape[0], shape[1]),
        nested_absmax=parts.get(".weight.nested_absmax"),
        nested_map=parts.get(".weight.nested_quant_map"),
        nested_offset=float(told.get("nested_offset", 0.0)),
        nested_block=int(told.get("nested_blocksize", 256)),
        name=name,
    )


def _dtype(part: str, dtype: str) -> Callable[[Entries], bool]:
    return lambda entries: entries[part].dtype == dtype


def _two(a: Callable[[Entries], bool], b: Callable[[Entries], bool]) -> Callable[[Entries], bool]:
    return lambda entries: a(entries) and b(entries)


_F8 = "F8_E4M3"
_IGNORED = (".input_scale?", ".input_global_scale?")  # of activations, which stay as they are
_OF_X = (".qweight", ".qzeros", ".scales", ".g_idx?")
_PACKED = _dtype(".weight_packed", "int32")
_BYTES = _dtype(".weight_packed", "uint8")

# fmt: off
SCHEMES: tuple[Scheme, ...] = (
    Scheme("AWQ", "awq", _OF_X, ".weight", "int4",
           lambda e: _columns(e, 1), _awq_shape, _awq, turned=True),
    Scheme("GPTQ", "gptq", _OF_X, ".weight", "int4",
           lambda e: _columns(e, 8), _gptq_shape, _gptq, turned=True),
    Scheme("compressed-tensors pack-quantized", "compressed-tensors",
           (".weight_packed", ".weight_scale", ".weight_shape", ".weight_zero_point?",
            ".weight_g_idx?", *_IGNORED), ".weight", _packed_format,
           _PACKED, _packed_shape, _pack_quantized),
    Scheme("compressed-tensors nvfp4-pack-quantized", "compressed-tensors",
           (".weight_packed", ".weight_scale", ".weight_global_scale", *_IGNORED), ".weight",
           "nvfp4", _BYTES, _halves, _nvfp4),
    Scheme("compressed-tensors mxfp4-pack-quantized", "compressed-tensors",
           (".weight_packed", ".weight_scale", *_IGNORED), ".weight", "mxfp4",
           _two(_BYTES, _dtype(".weight_scale", "uint8")), _halves, _mxfp4_packed),
    Scheme("compressed-tensors int-quantized", "compressed-tensors",
           (".weight", ".weight_scale", ".weight_zero_point?", *_IGNORED), ".weight", "int8",
           _dtype(".weight", "int8"), _as_stored(".weight"), _int8),
    Scheme("compressed-tensors float-quantized", "compressed-tensors",
           (".weight", ".weight_scale", *_IGNORED), ".weight", "fp8_e4m3",
           _dtype(".weight", _F8), _as_stored(".weight"), _fp8(".weight", ".weight_scale")),
    Scheme("FP8", "fp8", (".weight", ".weight_scale_inv", *_IGNORED), ".weight", "fp8_e4m3",
           _dtype(".weight", _F8), _as_stored(".weight"), _fp8(".weight", ".weight_scale_inv")),
    Scheme("FP8 stacks", "fp8", ("", "_scale_inv"), "", "fp8_e4m3",
           _dtype("", _F8), _as_stored(""), _fp8("", "_scale_inv")),
    Scheme("MXFP4", "mxfp4", ("_blocks", "_scales"), "", "mxfp4",
           _dtype("_blocks", "uint8"), _mxfp4_shape, _mxfp4, turned=True),
    Scheme("bitsandbytes NF4", "bitsandbytes",
           (".weight", ".weight.absmax", _STATE, ".weight.quant_map?", ".weight.nested_absmax?",
            ".weight.nested_quant_map?"), ".weight", "nf4",
           _dtype(".weight", "uint8"), _nf4_shape, _nf4),
)
# fmt: on

# Ends of names that no plain layer has; the others stand beside ".weight".
_MARKS = re.compile(
    r"\.qweight$|\.weight_packed$|\.weight_scale(_inv)?$|_scale_inv$|_blocks$|\.weight\.absmax$"
)
_OURS = re.compile(rf"(.+)\.({'|'.join(FORMATS)})(?:\.(\w+))?")


def found_in(names: Iterable[str]) -> dict[str, Stored]:
    """The quantised matrices among the tensors of a layer, by the names that they stand for."""
    there = frozenset(names)
    found: dict[str, Stored] = {}
    ours: dict[tuple[str, str], dict[str, str]] = {}
    for name in there:
        match = _OURS.fullmatch(name)
        if match:
            ours.setdefault((match[1], match[2]), {})[match[3] or "blocks"] = name
        if _MARKS.search(name) is None:
            continue
        for scheme in SCHEMES:
            for end in scheme.needed:
                base = name.removesuffix(end)
                if not end or base == name:
                    continue
                known = {e: base + e for e in scheme.ends if base + e in there}
                if set(scheme.needed) <= set(known):
                    whole = base + scheme.whole
                    before = found.get(whole)
                    schemes = before.schemes if before else ()
                    if scheme not in schemes:
                        names_of = {**(before.names if before else {}), **known}
                        found[whole] = Stored((*schemes, scheme), names_of)
    for (base, format), parts in ours.items():
        found[base] = Stored((_own(format),), parts)
    return found


def _own(format: str) -> Scheme:
    """How `python -m ffncore quantize` stores a format; its shape stands in the metadata."""

    def read(parts: Mapping[str, Array], shape: Shape, _: Any, name: str) -> QuantizedTensor:
        if "blocks" in parts:
            return QuantizedTensor.from_bytes(format, parts["blocks"], shape, name=name)
        return QuantizedTensor.from_parts(format, shape, **dict(parts), name=name)

    return Scheme(OWN, "ffncore", (), "", format, lambda _: True, _as_stored("blocks"), read)


OWN = "ffncore"


def own_shape(told: Any, format: str) -> Shape:
    """The shape in an entry of the metadata, {"format": "q4_k", "shape": [out, in]}, as text."""
    try:
        value = json.loads(told)
        shape = value["shape"]
        sound = value["format"] == format and len(shape) in (2, 3)
        sound = sound and all(type(n) is int and n > 0 for n in shape)
    except (ValueError, KeyError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise ValueError(
            f"has the metadata {brief(told)}; expected JSON with the format {format!r} and a shape"
        )
    return tuple(shape)
