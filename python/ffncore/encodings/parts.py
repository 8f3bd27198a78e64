"""The formats of several arrays: codes beside scales, zeros and others; here int8 and int4.

    int8   w = s (c - z)     c from -128 to 127    z is 0 if it is missing
    int4   w = s (c - z)     c from 0 to 15        z is 8 if it is missing; it may be a fraction

codes are [..., out, in]. scales, and zeros like them, are kept as [..., R, C]: R is out or 1, and C
is the number of groups in a row, or 1. With g_idx [..., in], the group of each input, the inputs of
a group may stand anywhere in the row. Codes of 4 bits are kept two in a byte, the even ones low.
floats.py has the other formats of this kind. Tests: tests/encodings/test_quantised_parts.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..arrays.dtypes import FLOAT32, FLOAT64, check_dtype
from ..arrays.shapes import Array, MaybeArray, as_array, check_shape
from .fitting import Misfit, half, magnitude
from .format import Format, FormatInfo, Parts, Shape
from .grid import Grid, Levels, Planes, integers

# The weights that share a scale of int4, as AWQ and GPTQ choose it.
INT4_GROUP = 128


def check_codes(name: str, value: object, shape: Shape, dtype: Any, most: int = 255) -> Array:
    codes = as_array(name, value)
    if codes.dtype != dtype:
        raise TypeError(f"{name} has dtype {codes.dtype}; expected {np.dtype(dtype)}")
    check_shape(name, codes, shape, "for the weights")
    if most < 255 and codes.size and int(codes.max()) > most:
        raise ValueError(f"{name} has {int(codes.max())}; expected codes from 0 to {most}")
    return codes


def check_numbers(name: str, value: object) -> Array:
    """float32 or 16-bit numbers, all finite."""
    numbers = as_array(name, value)
    if check_dtype(name, numbers) is FLOAT64:
        raise TypeError(f"{name} has dtype float64; expected float32 or 16 bits")
    wide = numbers.astype(FLOAT32)
    if not np.isfinite(wide).all():
        first = np.argwhere(~np.isfinite(wide))[0]
        at = f" at {tuple(int(i) for i in first)}" if len(first) else ""
        raise ValueError(f"{name} has {wide[tuple(first)]}{at}; expected finite numbers")
    return numbers


def as_scales(name: str, numbers: Array, shape: Shape) -> Array:
    """Numbers as [..., R, C]: from one for all, one for each expert, or one for each output."""
    *lead, out, _ = shape
    if numbers.size == 1:
        return np.asarray(np.broadcast_to(numbers.reshape(()), (*lead, 1, 1)))
    for known, added in (((*lead,), 2), ((*lead, out), 1)):
        if numbers.shape == known:
            return np.asarray(numbers.reshape(*known, *(1,) * added))
    if numbers.ndim != len(shape) or numbers.shape[:-2] != tuple(lead):
        raise ValueError(
            f"{name} has shape {numbers.shape}; expected one number, one for each output, or "
            f"[..., out, groups] for weights of shape {shape}"
        )
    return np.asarray(numbers)


def by_row(numbers: Array, out: int, repeat: int = 1) -> Array:
    """Numbers [..., R, C] for each row of the weights, float32 [rows or 1, C]."""
    wide = numbers.astype(FLOAT32)
    if repeat > 1:
        wide = np.repeat(wide, repeat, axis=-2)[..., :out, :]
    elif wide.shape[-2] != out and wide.ndim > 2:
        wide = np.repeat(wide, out, axis=-2)
    return wide.reshape(-1, wide.shape[-1])


def pack_nibbles(codes: Array) -> Array:
    """From codes [..., k] to bytes [..., (k + 1) // 2], even codes in the low bits."""
    packed: Array = codes[..., ::2].copy()
    packed[..., : codes.shape[-1] // 2] |= codes[..., 1::2] << np.uint8(4)
    return packed


def unpack_nibbles(packed: Array, k: int) -> Array:
    if packed.dtype != np.uint8 or packed.shape[-1] != (k + 1) // 2:
        raise ValueError(
            f"codes of 4 bits have shape {packed.shape} and dtype {packed.dtype}; expected "
            f"{(k + 1) // 2} bytes of uint8 in a row"
        )
    codes = np.empty((*packed.shape[:-1], k), np.uint8)
    codes[..., ::2] = packed & np.uint8(15)
    codes[..., 1::2] = packed[..., : k // 2] >> np.uint8(4)
    return codes


class Integers(Format):
    """int8 and int4: integer codes with scales and zeros for groups of a row."""

    takes = {"codes": True, "scales": True, "zeros": False, "g_idx": False}  # noqa: RUF012

    def __init__(self, name: str, info: FormatInfo, levels: Levels, zero: int) -> None:
        self.name, self.info, self.levels = name, info, levels
        self.zero = zero  # if zeros are missing
        self.nibbles = len(levels.values) == 16
        self.scales = ("group", "channel") if self.nibbles else ("group", "tensor")

    def check(self, shape: Shape, given: Mapping[str, Any], name: str) -> Parts:
        most, dtype = (15, np.uint8) if self.nibbles else (255, np.int8)
        codes = check_codes(f"{name}.codes", given["codes"], shape, dtype, most)
        label = f"{name}.scales"
        scales = as_scales(label, check_numbers(label, given["scales"]), shape)
        parts = {"codes": pack_nibbles(codes) if self.nibbles else codes, "scales": scales}
        groups = scales.shape[-1]
        if scales.shape[-2] not in (1, shape[-2]):
            raise ValueError(
                f"{label} has shape {scales.shape}; expected {shape[-2]} rows for weights of shape "
                f"{shape}"
            )
        if "g_idx" in given:
            parts["g_idx"] = _check_g_idx(f"{name}.g_idx", given["g_idx"], shape, groups)
        elif not groups or shape[-1] % groups:
            raise ValueError(
                f"{label} has {groups} groups in a row; expected a divisor of {shape[-1]}, the "
                f"weights of a row"
            )
        if "zeros" in given:
            parts["zeros"] = self._check_zeros(f"{name}.zeros", given["zeros"], shape, scales)
        return parts

    def _check_zeros(self, name: str, value: object, shape: Shape, scales: Array) -> Array:
        zeros = as_array(name, value)
        if zeros.dtype.kind in "iu":
            # GPTQ stores z - 1 in 4 bits, so that 16 is a zero, too.
            low, high = (0, 16) if self.nibbles else (-128, 128)
            if zeros.size and not low <= int(zeros.min()) <= int(zeros.max()) <= high:
                worst = int(zeros.max()) if int(zeros.max()) > high else int(zeros.min())
                raise ValueError(f"{name} has {worst}; expected zeros from {low} to {high}")
            zeros = zeros.astype(np.uint8 if self.nibbles else np.int16)
        else:
            zeros = check_numbers(name, zeros)
        zeros = as_scales(name, zeros, shape)
        if zeros.shape != scales.shape and zeros.size > 1:
            raise ValueError(
                f"{name} has shape {zeros.shape}; expected {scales.shape} to match scales"
            )
        return np.broadcast_to(zeros, scales.shape)

    def codes_of(self, shape: Shape, parts: Parts) -> Array:
        return unpack_nibbles(parts["codes"], shape[-1]) if self.nibbles else parts["codes"]

    def planes(self, shape: Shape, parts: Parts) -> Planes:
        codes = self.codes_of(shape, parts).view(np.uint8).reshape(-1, shape[-1])
        scales = by_row(parts["scales"], shape[-2])
        if "zeros" in parts:
            zeros: MaybeArray = by_row(parts["zeros"], shape[-2])
        else:
            zeros = np.full_like(scales, self.zero) if self.zero else None
        group = shape[-1] // scales.shape[1] if "g_idx" not in parts else 1
        return Planes(codes, self.levels, Grid(scales, zeros), group, parts.get("g_idx"))

    def extract(self, shape: Shape, parts: Parts) -> Parts:
        return {**parts, "codes": self.codes_of(shape, parts)}

    def span(self, k: int, scale: str, group: int | None) -> int:
        if scale != "group" or not self.nibbles:
            return k
        wanted = group or INT4_GROUP
        if k % wanted:
            raise Misfit(
                f"has rows of {k} weights; expected a multiple of the group of {wanted} for "
                f"{self.name} (group= chooses another)"
            )
        return wanted

    def fit(self, w: Array, scale: str, group: int | None) -> Parts:
        rows, k = w.shape
        if not self.nibbles:
            if group not in (None, k):
                raise ValueError(f"group is {group}; expected None for int8, whose group is a row")
            scales = magnitude(w.reshape(1, -1) if scale == "tensor" else w)
            return {"scales": scales / FLOAT32.type(127)}
        groups = w.reshape(rows, -1, self.span(k, scale, group))
        low = np.minimum(groups.min(axis=-1), 0)
        scales = half((np.maximum(groups.max(axis=-1), 0) - low) / FLOAT32.type(15))
        unit = scales.astype(FLOAT32)
        zeros = np.rint(-low / np.where(unit == 0, np.inf, unit).astype(FLOAT32))
        return {"scales": scales, "zeros": np.clip(zeros, 0, 15).astype(np.uint8)}

    def grid(self, choice: Parts, rows: int, k: int) -> tuple[Grid, int]:  # noqa: ARG002
        zeros = choice.get("zeros")
        wide = None if zeros is None else zeros.astype(FLOAT32)
        scales = choice["scales"].astype(FLOAT32)
        return Grid(scales, wide), k // scales.shape[1]

    def build(self, shape: Shape, choice: Parts, codes: Array) -> Parts:  # noqa: ARG002
        kept = pack_nibbles(codes) if self.nibbles else codes.view(np.int8)
        return {"codes": kept, **choice}


def _check_g_idx(name: str, value: object, shape: Shape, groups: int) -> Array:
    g_idx = as_array(name, value)
    if g_idx.dtype.kind not in "iu":
        raise TypeError(f"{name} has dtype {g_idx.dtype}; expected integers")
    if g_idx.shape not in ((shape[-1],), (*shape[:-2], shape[-1])):
        raise ValueError(f"{name} has shape {g_idx.shape}; expected ({shape[-1]},), one per input")
    if math.prod(g_idx.shape) and not 0 <= int(g_idx.min()) <= int(g_idx.max()) < groups:
        worst = int(g_idx.max()) if int(g_idx.max()) >= groups else int(g_idx.min())
        raise ValueError(f"{name} has {worst}; expected groups from 0 to {groups - 1}")
    return g_idx.astype(np.int32)


FORMATS = (
    Integers("int8", FormatInfo(8.0, None, "int8 per output", True), integers(8, 0, -127, 127), 0),
    Integers(
        "int4",
        FormatInfo(4 + 24 / INT4_GROUP, INT4_GROUP, "AWQ, GPTQ, compressed-tensors", True),
        integers(4, 0, 0, 15),
        8,
    ),
)
