"""The formats of 32 weights and one scale: q8_0, q4_0, q4_1 and mxfp4.

    q8_0   w = d c            d float16    c int8
    q4_0   w = d (c - 8)      d float16    c of 4 bits, two halves of 16
    q4_1   w = d c + m        d, m float16 c of 4 bits, two halves of 16
    mxfp4  w = 2^(e - 127) v  e a byte     v of E2M1 (0, 0.5, 1, 1.5, 2, 3, 4, 6 and a sign)

The values of mxfp4 are kept doubled, as integers, with half the scale. In q4_0 the weight of
largest magnitude gets the code -8 (d has its sign), and least squares improve d.
Tests: tests/encodings/test_blocks.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays.dtypes import FLOAT32
from ..arrays.shapes import Array
from .bits import Bits
from .fitting import (
    half,
    largest,
    line_by_least_squares,
    magnitude,
    scale_by_least_squares,
)
from .format import BlockFormat, Parts, plain_grid
from .grid import Grid, Levels, floats, integers

HALVES = (("qs", 4, 16),)

# Turns of least squares: the error of Gaussian weights changes by less than 1 % after these.
TURNS = 4

NIBBLES = integers(4, 8, -8, 7)


def _q8_0(w: Array, _: float | None) -> Parts:
    return {"d": half(magnitude(w) / FLOAT32.type(127))[:, 0]}


def _q4_0(w: Array, _: float | None) -> Parts:
    d = scale_by_least_squares(w, largest(w) / FLOAT32.type(-8), NIBBLES, TURNS)
    return {"d": half(d)[:, 0]}


def _q4_1(w: Array, _: float | None) -> Parts:
    d, m = line_by_least_squares(w, 15, TURNS)
    return {"d": half(d)[:, 0], "m": half(m)[:, 0]}


def _q4_1_grid(blocks: Any) -> Grid:
    return Grid(blocks["d"].astype(FLOAT32)[:, None], None, blocks["m"].astype(FLOAT32)[:, None])


# Doubled, so that they are integers.
E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12], np.int8)


def e2m1() -> Levels:
    levels = floats(E2M1.astype(FLOAT32))
    return levels._replace(values=levels.values.astype(np.int8))


def _mxfp4(w: Array, _: float | None) -> Parts:
    # The largest exponent of E2M1 is 2, so that the largest weight lands in [4, 8).
    with np.errstate(divide="ignore"):
        exponent = np.frexp(magnitude(w))[1] - 1 - 2
    return {"e": np.where(magnitude(w) == 0, 0, np.clip(exponent + 127, 0, 254))[:, 0]}


def _mxfp4_grid(blocks: Any) -> Grid:
    e = blocks["e"].astype(np.int32)
    scales = np.ldexp(FLOAT32.type(1), e - 128)
    return Grid(np.where(e == 255, FLOAT32.type(np.nan), scales)[:, None])


FORMATS = (
    BlockFormat(
        name="q8_0",
        source="GGUF",
        block=32,
        group=32,
        fields=np.dtype([("d", "<f2"), ("qs", "i1", 32)]),
        codes=Bits((("qs", 8, 32),)),
        levels=integers(8, 0, -127, 127),
        grid_of=plain_grid,
        choose=_q8_0,
    ),
    BlockFormat(
        name="q4_0",
        source="GGUF",
        block=32,
        group=32,
        fields=np.dtype([("d", "<f2"), ("qs", "u1", 16)]),
        codes=Bits(HALVES),
        levels=NIBBLES,
        grid_of=plain_grid,
        choose=_q4_0,
    ),
    BlockFormat(
        name="q4_1",
        source="GGUF",
        block=32,
        group=32,
        fields=np.dtype([("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16)]),
        codes=Bits(HALVES),
        levels=integers(4, 0, 0, 15),
        grid_of=_q4_1_grid,
        choose=_q4_1,
    ),
    BlockFormat(
        name="mxfp4",
        source="GGUF, gpt-oss",
        block=32,
        group=32,
        fields=np.dtype([("e", "u1"), ("qs", "u1", 16)]),
        codes=Bits(HALVES),
        levels=e2m1(),
        grid_of=_mxfp4_grid,
        choose=_mxfp4,
    ),
)
