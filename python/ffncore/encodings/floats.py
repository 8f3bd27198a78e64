"""The formats whose codes are small floats: fp8_e4m3, nvfp4 and nf4.

    fp8_e4m3  w = s v        v of E4M3: 4 bits of exponent, 3 of mantissa, no infinity, 448 at most
                             s of a tensor, of each output, or of blocks of 128 x 128
    nvfp4     w = (s / g) v  v of E2M1; s of E4M3 for 16 weights; g float32, for a tensor
    nf4       w = s v        v from a table of 16; s for 64 weights, counted through all rows

The quotient s / g is rounded to float32 before it is multiplied. nvfp4 and nf4 are read only.
Tests: tests/encodings/test_floats.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..arrays.dtypes import FLOAT32
from ..arrays.shapes import Array, as_array
from .blocks import E2M1
from .fitting import magnitude
from .format import Format, FormatInfo, Parts, Shape
from .grid import Grid, Levels, Planes, floats
from .parts import (
    as_scales,
    by_row,
    check_codes,
    check_numbers,
    pack_nibbles,
    unpack_nibbles,
)

# The rows and columns of a block of fp8_e4m3 with one scale, as DeepSeek chose them.
FP8_BLOCK = 128


def _e4m3() -> Array:
    """The magnitudes of the codes 0 to 127; the last one is NaN."""
    code = np.arange(128)
    exponent, mantissa = code >> 3, code & 7
    normal = (8 + mantissa) * 2.0 ** (exponent - 10)
    found = np.where(exponent == 0, mantissa * 2.0**-9, normal)
    found[127] = np.nan
    return found.astype(FLOAT32)


E4M3 = floats(_e4m3())
E4M3_MAX = FLOAT32.type(448)


def check_e4m3(name: str, value: object) -> Array:
    """Codes as uint8, from uint8 or a float8_e4m3fn of ml_dtypes; no NaN."""
    codes = as_array(name, value)
    if codes.dtype.name == "float8_e4m3fn":
        codes = codes.view(np.uint8)
    if codes.dtype != np.uint8:
        raise TypeError(f"{name} has dtype {codes.dtype}; expected uint8 or float8_e4m3fn")
    nan = (codes & np.uint8(127)) == 127
    if nan.any():
        at = tuple(int(i) for i in np.argwhere(nan)[0])
        raise ValueError(f"{name} has a NaN at {at}; expected finite numbers")
    return codes


class Float8(Format):
    name = "fp8_e4m3"
    info = FormatInfo(8.0, FP8_BLOCK, "DeepSeek, compressed-tensors", True)
    levels = E4M3
    takes = {"codes": True, "scales": True}  # noqa: RUF012
    scales = ("group", "channel", "tensor")

    def check(self, shape: Shape, given: Mapping[str, Any], name: str) -> Parts:
        codes = check_e4m3(f"{name}.codes", given["codes"])
        check_codes(f"{name}.codes", codes, shape, np.uint8)
        label = f"{name}.scales"
        scales = as_scales(label, check_numbers(label, given["scales"]), shape)
        if scales.shape[-2:] not in ((1, 1), (shape[-2], 1), _blocks(shape)):
            raise ValueError(
                f"{label} has shape {scales.shape}; expected one number, one for each output, or "
                f"{_blocks(shape)} for blocks of {FP8_BLOCK} x {FP8_BLOCK}"
            )
        return {"codes": codes, "scales": scales}

    def planes(self, shape: Shape, parts: Parts) -> Planes:
        numbers = parts["scales"]
        grid, group = self._grid(numbers, shape)
        return Planes(parts["codes"].reshape(-1, shape[-1]), self.levels, grid, group)

    def _grid(self, numbers: Array, shape: Shape) -> tuple[Grid, int]:
        whole = numbers.shape[-2:] in ((1, 1), (shape[-2], 1))
        repeat = 1 if whole else FP8_BLOCK
        group = FP8_BLOCK if numbers.shape[-1] > 1 else shape[-1]
        return Grid(by_row(numbers, shape[-2], repeat)), group

    def span(self, k: int, scale: str, group: int | None) -> int:  # noqa: ARG002
        return FP8_BLOCK if scale == "group" else k

    def fit(self, w: Array, scale: str, group: int | None) -> Parts:
        if group not in (None, FP8_BLOCK):
            raise ValueError(f"group is {group}; expected {FP8_BLOCK}, that of fp8_e4m3")
        if scale == "tensor":
            most = magnitude(w.reshape(1, -1))
        elif scale == "channel":
            most = magnitude(w)
        else:
            rows = np.maximum.reduceat(np.abs(w), np.arange(0, w.shape[0], FP8_BLOCK), axis=0)
            most = np.maximum.reduceat(rows, np.arange(0, w.shape[1], FP8_BLOCK), axis=1)
        return {"scales": most / E4M3_MAX}

    def grid(self, choice: Parts, rows: int, k: int) -> tuple[Grid, int]:
        return self._grid(choice["scales"], (rows, k))

    def build(self, shape: Shape, choice: Parts, codes: Array) -> Parts:  # noqa: ARG002
        return {"codes": codes, **choice}


def _blocks(shape: Shape) -> tuple[int, int]:
    return -(-shape[-2] // FP8_BLOCK), -(-shape[-1] // FP8_BLOCK)


class ReadOnly(Format):
    """Formats of 4-bit codes that are read, and not made."""

    def span(self, k: int, scale: str, group: int | None) -> int:  # noqa: ARG002
        raise ValueError(f"format {self.name!r} is read only; expected one that can be made")

    def fit(self, w: Array, scale: str, group: int | None) -> Parts:
        raise NotImplementedError

    def grid(self, choice: Parts, rows: int, k: int) -> tuple[Grid, int]:
        raise NotImplementedError

    def build(self, shape: Shape, choice: Parts, codes: Array) -> Parts:
        raise NotImplementedError

    def extract(self, shape: Shape, parts: Parts) -> Parts:
        return {**parts, "codes": unpack_nibbles(parts["codes"], shape[-1])}


class NVFloat4(ReadOnly):
    name = "nvfp4"
    info = FormatInfo(4.5, 16, "compressed-tensors", False)
    levels = floats(E2M1.astype(FLOAT32) / 2)
    takes = {"codes": True, "scales": True, "global_scale": False}  # noqa: RUF012

    def check(self, shape: Shape, given: Mapping[str, Any], name: str) -> Parts:
        codes = check_codes(f"{name}.codes", given["codes"], shape, np.uint8, 15)
        if shape[-1] % 16:
            raise ValueError(
                f"{name} has rows of {shape[-1]} weights; expected a multiple of 16 for nvfp4"
            )
        scales = check_e4m3(f"{name}.scales", given["scales"])
        check_codes(f"{name}.scales", scales, (*shape[:-1], shape[-1] // 16), np.uint8)
        parts = {"codes": pack_nibbles(codes), "scales": scales}
        if "global_scale" in given:
            label = f"{name}.global_scale"
            number = as_scales(label, check_numbers(label, given["global_scale"]), shape)
            if number.shape[-2:] != (1, 1) or (number == 0).any():
                raise ValueError(f"{label} is {number.ravel()[0]}; expected one number, not 0")
            parts["global_scale"] = number
        return parts

    def planes(self, shape: Shape, parts: Parts) -> Planes:
        numbers = E4M3.of(parts["scales"])
        if "global_scale" in parts:
            numbers = numbers / parts["global_scale"].astype(FLOAT32)
        codes = unpack_nibbles(parts["codes"], shape[-1]).reshape(-1, shape[-1])
        return Planes(codes, self.levels, Grid(by_row(numbers, shape[-2])), 16)


# The quantiles of a normal distribution that QLoRA chose: 0, 7 numbers below it and 8 above.
_NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
NF4_BLOCK = 64


class NormalFloat4(ReadOnly):
    name = "nf4"
    info = FormatInfo(4 + 32 / NF4_BLOCK, NF4_BLOCK, "bitsandbytes", False)
    levels = Levels(np.array(_NF4, FLOAT32), -1.0, 1.0, 0.0, lambda t: t.astype(np.uint8))
    takes = {"codes": True, "scales": True}  # noqa: RUF012

    def check(self, shape: Shape, given: Mapping[str, Any], name: str) -> Parts:
        codes = check_codes(f"{name}.codes", given["codes"], shape, np.uint8, 15)
        scales = check_numbers(f"{name}.scales", given["scales"])
        blocks = -(-shape[-1] * shape[-2] // NF4_BLOCK)
        expected = math.prod(shape[:-2]) * blocks
        if scales.size != expected:
            raise ValueError(
                f"{name}.scales has shape {scales.shape}; expected {expected} numbers, one for "
                f"every {NF4_BLOCK} weights of shape {shape}"
            )
        return {"codes": pack_nibbles(codes), "scales": scales.reshape(*shape[:-2], blocks)}

    def planes(self, shape: Shape, parts: Parts) -> Planes:
        """One row for each matrix, because blocks go on from one row of weights to the next."""
        matrices, k = math.prod(shape[:-2]), shape[-1] * shape[-2]
        codes = unpack_nibbles(parts["codes"], shape[-1]).reshape(matrices, k)
        scales = parts["scales"].astype(FLOAT32).reshape(matrices, -1)
        return Planes(codes, self.levels, Grid(scales), NF4_BLOCK)


FORMATS = (Float8(), NVFloat4(), NormalFloat4())
