"""The formats of 256 weights in groups whose scales are codes, too: q4_k, q5_k and q6_k.

    q4_k, q5_k   w = (d s) c - (dmin m)    8 groups of 32; s, m of 6 bits; c of 4 or 5 bits
    q6_k         w = (d s) (c - 32)        16 groups of 16; s int8; c of 6 bits

The 6-bit numbers s[8], m[8] are in 12 bytes b: the low 6 bits of b[0:4] and b[4:8] are s[0:4] and
m[0:4]; the nibbles of b[8:12] are the low bits of s[4:8] and m[4:8], whose two high bits are the
high bits of b[0:4] and b[4:8]. Tests: tests/encodings/test_k_blocks.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..arrays.dtypes import FLOAT32
from ..arrays.shapes import Array
from .bits import Bits
from .blocks import TURNS
from .fitting import half, largest, line_by_least_squares, scale_by_least_squares
from .format import BlockFormat, Parts
from .grid import Grid, Products, integers

_LOW6, _LOW4 = np.uint8(63), np.uint8(15)


def _split(b: Array) -> tuple[Array, Array]:
    """From 12 bytes [n, 12] to s and m, [n, 8] each."""
    first, second, rest = b[:, :4], b[:, 4:8], b[:, 8:]
    s = np.concatenate([first & _LOW6, rest & _LOW4 | first >> 6 << 4], axis=1)
    m = np.concatenate([second & _LOW6, rest >> 4 | second >> 6 << 4], axis=1)
    return s, m


def _joined(s: Array, m: Array) -> Array:
    """From s and m, uint8 [n, 8] each, to 12 bytes [n, 12]."""
    first = s[:, :4] | s[:, 4:] >> 4 << 6
    second = m[:, :4] | m[:, 4:] >> 4 << 6
    rest = s[:, 4:] & _LOW4 | m[:, 4:] << 4
    return np.concatenate([first, second, rest], axis=1)


def _products(blocks: Any) -> Products:
    s, m = _split(blocks["scales"])
    d, dmin = (blocks[name].astype(FLOAT32)[:, None] for name in ("d", "dmin"))
    return {"scales": (s.view(np.int8), d), "offsets": (m.view(np.int8), -dmin)}


def _q6_k_products(blocks: Any) -> Products:
    return {"scales": (blocks["scales"], blocks["d"].astype(FLOAT32)[:, None])}


def _grid_of(products: Callable[[Any], Products]) -> Callable[[Any], Grid]:
    return lambda blocks: Grid(
        **{name: factor * code.astype(FLOAT32) for name, (code, factor) in products(blocks).items()}
    )


def _in_units_of(numbers: Array, most: int) -> tuple[Array, Array]:
    """Numbers [n, groups] >= 0 as d [n] float16 times codes from 0 to most."""
    d = half(numbers.max(axis=1) / FLOAT32.type(most))
    unit = d.astype(FLOAT32)[:, None]
    codes = np.rint(numbers / np.where(unit == 0, np.inf, unit).astype(FLOAT32))
    return d, np.clip(codes, 0, most).astype(np.uint8)


def _chooser(high: int) -> Any:
    def choose(w: Array, _: float | None) -> Parts:
        scale, low = line_by_least_squares(w.reshape(-1, 8, 32), high, TURNS, most=0.0)
        d, s = _in_units_of(scale[..., 0], 63)
        dmin, m = _in_units_of(-low[..., 0], 63)
        return {"d": d, "dmin": dmin, "scales": _joined(s, m)}

    return choose


_SIX = integers(6, 32, -32, 31)


def _q6_k(w: Array, _: float | None) -> Parts:
    groups = w.reshape(-1, 16, 16)
    scale = scale_by_least_squares(groups, largest(groups) / FLOAT32.type(-32), _SIX, 2)[..., 0]
    d = half(np.abs(scale).max(axis=1) / FLOAT32.type(127))
    unit = d.astype(FLOAT32)[:, None]
    codes = np.rint(scale / np.where(unit == 0, np.inf, unit).astype(FLOAT32))
    return {"d": d, "scales": np.clip(codes, -127, 127).astype(np.int8)}


_HEAD = [("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12)]

FORMATS = (
    BlockFormat(
        name="q4_k",
        source="GGUF",
        block=256,
        group=32,
        fields=np.dtype([*_HEAD, ("qs", "u1", 128)]),
        codes=Bits((("qs", 4, 32),)),
        levels=integers(4, 0, 0, 15),
        grid_of=_grid_of(_products),
        products_of=_products,
        choose=_chooser(15),
    ),
    BlockFormat(
        name="q5_k",
        source="GGUF",
        block=256,
        group=32,
        fields=np.dtype([*_HEAD, ("qh", "u1", 32), ("qs", "u1", 128)]),
        codes=Bits((("qs", 4, 32), ("qh", 1, 32))),
        levels=integers(5, 0, 0, 31),
        grid_of=_grid_of(_products),
        products_of=_products,
        choose=_chooser(31),
    ),
    BlockFormat(
        name="q6_k",
        source="GGUF",
        block=256,
        group=16,
        fields=np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")]),
        codes=Bits((("ql", 4, 64), ("qh", 2, 32))),
        levels=_SIX,
        grid_of=_grid_of(_q6_k_products),
        products_of=_q6_k_products,
        choose=_q6_k,
    ),
)
