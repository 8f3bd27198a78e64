"""The table of all formats, by name, and fc.formats. Tests: tests/encodings/test_table.py."""

from __future__ import annotations

from ..arrays.scalars import nearest
from . import blocks, few_bits, floats, k_blocks, parts
from .format import Format, FormatInfo

FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        *blocks.FORMATS,
        *k_blocks.FORMATS,
        *few_bits.FORMATS,
        *parts.FORMATS,
        *floats.FORMATS,
    )
}


def formats() -> dict[str, FormatInfo]:
    """Return a dict from the names of formats to a FormatInfo each.

    A FormatInfo is a named tuple: bits_per_weight with the scales, group (the weights with one
    scale as fc.quantize makes them; None: a whole row), source, and can_quantize, which is False
    for formats that are only read.

    >>> fc.formats()["q4_k"].bits_per_weight
    """
    return {name: format.info for name, format in FORMATS.items()}


def format_of(value: object) -> Format:
    """The format of a name; ValueError or TypeError if there is none."""
    if not isinstance(value, str):
        raise TypeError(f"format is of type {type(value).__name__}; expected a name")
    if value not in FORMATS:
        raise ValueError(f"format {value!r} is not known; {nearest(value, FORMATS)}")
    return FORMATS[value]
