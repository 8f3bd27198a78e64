"""Quantised weights as _core packs them: codes of a few bits, and the numbers of their groups.

    w = scales (values[codes] - zeros) + offsets

A format gives the Planes of a matrix (encodings/grid.py). Here they become the arguments of
_core.pack_coded: the kind of the codes, and for scales, zeros and offsets the smallest type that
holds all of them exactly: float16, bfloat16 (which has every power of two) or float32. Scales that
are products of a float16 and an integer, as GGUF's formats of 256 weights have them, are kept as
such. So packed weights have almost the size of the file. Tests: tests/values/test_packed_codes.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import _core
from ...arrays.dtypes import FLOAT32
from ...arrays.memory import LINE, allocate
from ...arrays.shapes import Array, MaybeArray
from ...encodings.grid import Planes, Products
from ...encodings.tensor import QuantizedTensor
from ..weights import NAMES, FFNWeights

# The bits of codes, by the number of values that a format has.
_BITS = {2: 1, 4: 2, 16: 4, 32: 5, 64: 6, 256: 8}

_FIELDS = ("scales", "zeros", "offsets")


def can_pack_codes(weights: FFNWeights) -> bool:
    """Whether all matrices can be packed as codes: they are quantised, and each group is made of
    neighbours in a row.
    """
    matrices = [a for name in NAMES[:3] if (a := getattr(weights, name)) is not None]
    return all(isinstance(q, QuantizedTensor) and q._has_rows_of_groups() for q in matrices)


def stored_types(weights: FFNWeights) -> dict[str, dict[str, str]]:
    """For each matrix, the types that hold its scales, zeros and offsets, of all experts."""
    found: dict[str, dict[str, str]] = {}
    for name, q in _matrices(weights).items():
        grid = q._planes().grid
        found[name] = {
            field: _smallest(numbers)
            for field in _FIELDS
            if (numbers := getattr(grid, field)) is not None
        }
    return found


def packed_bytes(block: FFNWeights, types: dict[str, dict[str, str]]) -> int:
    return _core.coded_bytes(*_arguments(block, types))


def pack_codes(block: FFNWeights, types: dict[str, dict[str, str]], buffer: Array) -> None:
    """Write the weights of one layer, or of one expert, into a buffer."""
    _core.pack_coded(*_arguments(block, types), buffer)


def allocate_codes(weights: FFNWeights, types: dict[str, dict[str, str]]) -> tuple[Array, int]:
    """A buffer for all experts, or for one layer; and the bytes from one expert to the next."""
    n = weights.n_experts
    nbytes = packed_bytes(weights if n is None else weights.expert(0), types)
    if n is None:
        return allocate(nbytes), 0
    stride = nbytes + -nbytes % LINE
    return allocate(n * stride), stride


def _matrices(weights: FFNWeights) -> dict[str, QuantizedTensor]:
    return {name: a for name in NAMES[:3] if (a := getattr(weights, name)) is not None}


def _smallest(numbers: Array) -> str:
    with np.errstate(over="ignore"):
        if np.array_equal(numbers.astype(np.float16).astype(FLOAT32), numbers):
            return "float16"
    if not (np.ascontiguousarray(numbers).view(np.uint32) & np.uint32(0xFFFF)).any():
        return "bfloat16"
    return "float32"


def _arguments(
    block: FFNWeights, types: dict[str, dict[str, str]]
) -> tuple[list[dict[str, Any] | None], list[MaybeArray]]:
    matrices = _matrices(block)
    described = [
        _described(*matrices[name]._rows(), types[name]) if name in matrices else None
        for name in NAMES[:3]
    ]
    biases: list[MaybeArray] = []
    for name in NAMES[3:]:
        bias = getattr(block, name)
        biases.append(None if bias is None else np.ascontiguousarray(bias, FLOAT32))
    return described, biases


def _described(planes: Planes, products: Products, types: dict[str, str]) -> dict[str, Any]:
    codes, levels, grid, group, _ = planes
    bits = _BITS[len(levels.values)]
    values = levels.values.astype(FLOAT32)
    return {
        "codes": np.ascontiguousarray(codes),
        "bits": bits,
        "e4m3": bits == 8 and levels.values.dtype == FLOAT32,
        "table": np.resize(values, 16),
        "center": float(-values[0]) if bits in (5, 6) else 0.0,
        "group": group if grid.scales.shape[1] > 1 else codes.shape[1],
        **{
            field: _numbers(getattr(grid, field), products.get(field), types.get(field))
            for field in _FIELDS
        },
    }


def _numbers(numbers: MaybeArray, product: tuple[Array, Array] | None, stored: str | None) -> Any:
    """(data, factors, groups with one factor, type as which data is kept), or None."""
    if numbers is None:
        return None
    if product is not None:
        codes, factors = (np.ascontiguousarray(a) for a in product)
        return codes, factors, codes.shape[1] // factors.shape[1], "float32"
    return np.ascontiguousarray(numbers, FLOAT32), None, 1, stored
