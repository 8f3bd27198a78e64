"""Codes of 1, 2, 4 and 8 bits in bytes, and ternary digits in base 3.

A field of n bytes holds codes of `bits` bits, 8 / bits of them in each byte, lowest bits first. The
bytes are cut into runs of `width`:

    run r, shift s, byte b of the run  ->  element (r * 8 / bits + s) * width + b

so that width 1 means neighbours, and width 16 over 16 bytes means halves: the first half of the
elements in the low bits. Codes of 5 and 6 bits have two fields.

Tests: tests/encodings/test_bits.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays.shapes import Array


@dataclass(frozen=True)
class Bits:
    """The codes of a block of a format: fields of bytes, each with some bits of every code.

    fields  for each field (name, bits, width), the field with the lowest bits first
    """

    fields: tuple[tuple[str, int, int], ...]

    def unpack(self, blocks: Array) -> Array:
        """From blocks [n], structured, to codes uint8 [n, elements]."""
        codes: Any = None
        at = 0
        for name, bits, width in self.fields:
            part = unpack(blocks[name].reshape(len(blocks), -1).view(np.uint8), bits, width)
            codes = part if codes is None else codes | (part << np.uint8(at))
            at += bits
        return np.asarray(codes)

    def pack(self, codes: Array, blocks: Array) -> None:
        """Write codes [n, elements] into the fields of blocks [n]."""
        at = 0
        for name, bits, width in self.fields:
            part = (codes >> np.uint8(at)) & np.uint8(2**bits - 1)
            data = pack(part, bits, width)
            blocks[name] = data.view(blocks[name].dtype).reshape(blocks[name].shape)
            at += bits


def unpack(data: Array, bits: int, width: int) -> Array:
    """From bytes [n, m] to codes [n, m * 8 / bits]."""
    n = len(data)
    if bits == 8:
        return data
    if width == 1:
        return _TABLES[bits][data].reshape(n, -1)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    parts = (data.reshape(n, -1, 1, width) >> shifts) & np.uint8(2**bits - 1)
    return np.asarray(parts.reshape(n, -1))


def pack(codes: Array, bits: int, width: int) -> Array:
    """From codes [n, elements] to bytes [n, elements * bits / 8]."""
    n, per = len(codes), 8 // bits
    parts = codes.reshape(n, -1, per, width)
    data = parts[:, :, 0].copy()
    for s in range(1, per):
        data |= parts[:, :, s] << np.uint8(s * bits)
    return np.asarray(data.reshape(n, -1))


def _table(bits: int) -> Array:
    """For each byte its codes, lowest bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return np.asarray((np.arange(256, dtype=np.uint8)[:, None] >> shifts) & np.uint8(2**bits - 1))


_TABLES = {bits: _table(bits) for bits in (1, 2, 4)}


class Trits:
    """The codes of tq1_0: five ternary digits in a byte, the first of them the most significant.

    A byte is ceil(256 v / 243) for the number v of its digits in base 3, so that multiplying the
    byte by 3 shifts the next digit out of its top. 240 of the 256 elements are in 48 bytes (two
    runs, of 32 and of 16), the last 16 in 4 bytes of four digits.
    """

    _runs = (("qs", 0, 32, 5), ("qs", 32, 16, 5), ("qh", 0, 4, 4))

    def unpack(self, blocks: Array) -> Array:
        n = len(blocks)
        parts = []
        for name, start, width, digits in self._runs:
            data = blocks[name][:, start : start + width]
            parts.append(_DIGITS[data][..., :digits].swapaxes(1, 2).reshape(n, -1))
        return np.concatenate(parts, axis=1)

    def pack(self, codes: Array, blocks: Array) -> None:
        first = 0
        for name, start, width, digits in self._runs:
            run = codes[:, first : first + width * digits].reshape(len(codes), digits, width)
            number = np.zeros((len(codes), width), np.uint16)
            for n in range(digits):
                number += run[:, n] * np.uint16(3 ** (4 - n))
            blocks[name][:, start : start + width] = (number * np.uint32(256) + 242) // 243
            first += width * digits


def _digits() -> Array:
    """For each byte its five digits."""
    powers = 3 ** np.arange(5)
    shifted = (np.arange(256)[:, None] * powers) % 256
    return (shifted * 3 >> 8).astype(np.uint8)


_DIGITS = _digits()
