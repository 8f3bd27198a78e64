"""fc.pack: copies weights into the layout that the kernels read.

Arrays are packed as numbers of one dtype, rounded once. Quantised weights are packed as codes
(codes.py). Numbers are checked before any are written, so that out= is filled wholly or not at all.
Tests: tests/values/test_packed.py, tests/values/test_packed_codes.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import _core
from ...arrays.dtypes import FLOAT32, as_dtype, check_range, is_narrow, rounded
from ...arrays.memory import allocate
from ...arrays.overlap import share_memory
from ..packed import PackedWeights, check_weights, layout_of, sizes_of, weights_inputs
from ..weights import NAMES, FFNWeights
from .codes import allocate_codes, can_pack_codes, pack_codes, stored_types


def pack(
    weights: FFNWeights, *, dtype: object = None, out: PackedWeights | None = None
) -> PackedWeights:
    """Pack weights: copy them into the layout that the kernels read.

    Results have the same bits as with the unpacked weights, and calls are faster. Weights change in
    training, so pack them for inference. Quantised weights are packed as codes, which take about as
    many bytes as in their file, if all matrices are quantised and no dtype is given; else as the
    numbers that they stand for.

    weights  FFNWeights of numpy arrays, of one layer or of experts
    dtype    the dtype of the packed matrices: "float32", "float64", "bfloat16", "float16" or a
             numpy dtype; each number is rounded once. Default: the dtype of the weights. With a
             dtype of 16 bits, float64 biases become float32 and other biases keep their dtype
    out      PackedWeights of the same sizes, dtype and biases, whose memory is filled again

    Returns the packed weights: out if it was passed, else new ones.

    Raises ValueError if a finite number would become infinite in dtype, or if out has other sizes
    or biases or overlaps the weights; TypeError for dtypes and types. In these cases nothing is
    written.

    >>> p = fc.pack(weights, dtype="bfloat16")  # halves the bytes to read; x may stay float32
    """
    checked = check_weights(weights)
    if isinstance(checked, PackedWeights):
        raise TypeError("weights are packed already; expected FFNWeights")
    if checked._place is not None:
        raise TypeError(
            f"weights.up is {checked._place}; expected numpy arrays, because packed weights are "
            f"for the CPU"
        )
    if dtype is None and checked.quantized and can_pack_codes(checked):
        return _pack_codes(checked, out)
    wanted = checked.dtype if dtype is None else as_dtype("dtype", dtype)
    _check_ranges(checked, wanted)
    # One expert at a time, so that a conversion holds the numbers of one expert, not of all.
    first = _converted(checked if checked.n_experts is None else checked.expert(0), wanted)
    if out is None:
        nbytes, sizes, biases = layout_of(first, checked.n_experts, wanted)
        out = PackedWeights._make(allocate(nbytes), sizes, biases, wanted)
    else:
        _check_refill(out, checked, wanted)
    if checked.n_experts is None:
        _core.pack(wanted.name, first._core_weights(), out._buffer)
    for e in range(checked.n_experts or 0):
        block = first if e == 0 else _converted(checked.expert(e), wanted)
        _core.pack(wanted.name, block._core_weights(), out.expert(e)._buffer)
    return out


def _pack_codes(weights: FFNWeights, out: PackedWeights | None) -> PackedWeights:
    types = stored_types(weights)
    n = weights.n_experts
    if out is None:
        buffer, stride = allocate_codes(weights, types)
        sizes = sizes_of(weights)._replace(n_experts=n, stride=stride)
        biases = {name: FLOAT32 for name in NAMES[3:] if getattr(weights, name) is not None}
        formats = {
            name: getattr(weights, name).format for name in NAMES[:3] if name in weights.arrays()
        }
        out = PackedWeights._make(buffer, sizes, biases, FLOAT32, formats)
    else:
        raise ValueError("out is given; expected None for quantised weights, which are packed anew")
    for e in range(1 if n is None else n):
        block, target = (weights, out) if n is None else (weights.expert(e), out.expert(e))
        pack_codes(block, types, target._buffer)
    return out


def _check_ranges(weights: FFNWeights, wanted: np.dtype[Any]) -> None:
    """Check all numbers before any are written, so that out= is filled wholly or not at all."""
    if wanted is weights.dtype:
        return
    n = weights.n_experts
    for e in range(1 if n is None else n):
        block = weights if n is None else weights.expert(e)
        where = "" if n is None else f" of expert {e}"
        for name, array in block.dequantize().arrays().items():
            check_range(f"w.{name}{where}", array, _dtype_beside(name, wanted))


def _dtype_beside(name: str, wanted: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of the array `name` in weights of dtype `wanted`: 16-bit weights have float32
    biases.
    """
    return FLOAT32 if name in NAMES[3:] and is_narrow(wanted) else wanted


def _kernels_round(weights: FFNWeights, wanted: np.dtype[Any]) -> bool:
    """Whether the kernels round while they pack: float32 to 16 bits."""
    return weights.dtype is FLOAT32 and is_narrow(wanted)


def _converted(block: FFNWeights, wanted: np.dtype[Any]) -> FFNWeights:
    block = block.dequantize()
    if wanted is block.dtype or _kernels_round(block, wanted):
        return block
    arrays = {n: rounded(a, _dtype_beside(n, wanted)) for n, a in block.arrays().items()}
    return FFNWeights(**arrays)


def _check_refill(out: object, weights: FFNWeights, dtype: np.dtype[Any]) -> None:
    if not isinstance(out, PackedWeights):
        raise TypeError(f"out is of type {type(out).__name__}; expected PackedWeights")
    if out.dtype is not dtype:
        raise TypeError(f"out has dtype {out.dtype.name}; expected {dtype.name}")
    if out._sizes.of_one() != sizes_of(weights) or out.n_experts != weights.n_experts:
        raise ValueError(f"out is {out!r}; expected the sizes and biases of {weights!r}")
    if any(a is not None and share_memory(out._buffer, a) for _, a in weights_inputs(weights)):
        raise ValueError("out overlaps the weights; expected memory of its own")
