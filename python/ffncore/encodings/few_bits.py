"""The formats of one bit, and of the values -1, 0 and 1: q1_0, q2_0, tq1_0 and tq2_0.

    q1_0   w = d or -d      128 weights, one bit each
    q2_0   w = d (c - 1)    64 or 128 weights, 2 bits each; a file may have the code 3, 2 d
    tq1_0  w = d (c - 1)    256 weights, five in a byte (bits.py)
    tq2_0  w = d (c - 1)    256 weights, 2 bits each, in runs of 32 bytes

One bit: d is the mean magnitude, which minimises the squared error. Ternary weights: Lloyd's
algorithm from 1.2 times the mean magnitude. With one scale for a whole tensor both take its mean
magnitude, as BitNet b1.58 does. The largest magnitude is a scale for weights that are ternary
already, and these come out the same here. Tests: tests/encodings/test_few_bits.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays.dtypes import FLOAT32
from ..arrays.shapes import Array
from .bits import Bits, Trits
from .fitting import half, scale_by_least_squares
from .format import BlockFormat, Parts, plain_grid
from .grid import Levels, integers, signs

# The best three levels of a normal distribution are 0 and +-1.2 times its mean magnitude.
_START = 1.2

# The error of normal weights changes by less than 0.02 % after these.
_TURNS = 8

TERNARY = integers(2, 1, -1, 1)


def _mean(w: Array) -> Array:
    return np.asarray(np.abs(w).mean(axis=-1, keepdims=True))


def mean_of_tensor(w: Array) -> float:
    return float(np.abs(w).mean(dtype=np.float64))


def _one_bit(w: Array, fixed: float | None) -> Parts:
    return {"d": half(_filled(w, fixed) if fixed is not None else _mean(w))[:, 0]}


def _ternary(w: Array, fixed: float | None) -> Parts:
    if fixed is not None:
        return {"d": half(_filled(w, fixed))[:, 0]}
    start = _mean(w) * FLOAT32.type(_START)
    return {"d": half(scale_by_least_squares(w, start, TERNARY, _TURNS))[:, 0]}


def _filled(w: Array, number: float) -> Array:
    return np.full((len(w), 1), number, FLOAT32)


def _make(
    name: str,
    block: int,
    fields: list[Any],
    codes: Bits | Trits,
    levels: Levels = TERNARY,
    variants: tuple[BlockFormat, ...] = (),
) -> BlockFormat:
    return BlockFormat(
        name=name,
        source="GGUF",
        block=block,
        group=block,
        fields=np.dtype(fields),
        codes=codes,
        levels=levels,
        grid_of=plain_grid,
        choose=_one_bit if levels is not TERNARY else _ternary,
        average=mean_of_tensor,
        variants=variants,
    )


_NEIGHBOURS = Bits((("qs", 2, 1),))

FORMATS = (
    _make("q1_0", 128, [("d", "<f2"), ("qs", "u1", 16)], Bits((("qs", 1, 1),)), signs()),
    _make(
        "q2_0",
        64,
        [("d", "<f2"), ("qs", "u1", 16)],
        _NEIGHBOURS,
        variants=(_make("q2_0", 128, [("d", "<f2"), ("qs", "u1", 32)], _NEIGHBOURS),),
    ),
    _make("tq1_0", 256, [("qs", "u1", 48), ("qh", "u1", 4), ("d", "<f2")], Trits()),
    _make("tq2_0", 256, [("qs", "u1", 64), ("d", "<f2")], Bits((("qs", 2, 32),))),
)
