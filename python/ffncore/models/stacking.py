"""Parts of QuantizedTensors: some rows of a matrix, and matrices of experts as one stack.

    rows(q, slice(0, f))        the first f of the outputs, as gate of a fused gate_up
    stacked([q, q, ...])        [out, in] each -> [n_experts, out, in]
    select(q, [3, 5])           the matrices of two experts

Codes and scales stay as they are: nothing is quantised again. Tests: tests/models/test_stacking.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..arrays.shapes import Array
from ..encodings.floats import FP8_BLOCK, NF4_BLOCK
from ..encodings.tensor import QuantizedTensor


def rows(q: QuantizedTensor, part: slice) -> QuantizedTensor:
    """Some outputs of [out, in] or [n_experts, out, in].

    Raises ValueError if a scale belongs to outputs of both sides.
    """
    out, k = q.shape[-2:]
    chosen = range(out)[part]
    shape = (*q.shape[:-2], len(chosen), k)
    parts: dict[str, Any] = q.parts()
    for name in ("blocks", "codes"):
        if name in parts:
            parts[name] = parts[name][..., part, :]
    scales: Array | None = parts.get("scales")
    if q.format == "nf4" and scales is not None:
        # Blocks go on from one row to the next; whole ones can be divided.
        if k % NF4_BLOCK:
            raise _indivisible(q, f"rows of a multiple of {NF4_BLOCK} weights")
        by_row = scales.reshape(*q.shape[:-1], k // NF4_BLOCK)
        parts["scales"] = by_row[..., part, :].reshape(*q.shape[:-2], -1)
    else:
        for name in ("scales", "zeros"):
            if name in parts:
                parts[name] = _scales(q, parts[name], chosen, part)
    return _made(q.format, shape, parts)


def _scales(q: QuantizedTensor, scales: Array, chosen: range, part: slice) -> Array:
    """Scales [..., R, C] of some outputs, where R is 1, out, or the number of blocks of rows."""
    count, out = scales.shape[-2], q.shape[-2]
    if count == out:
        return scales[..., part, :]
    if count == 1 and scales.shape[-1] == 1:
        return scales
    if (
        chosen.step != 1
        or chosen.start % FP8_BLOCK
        or (chosen.stop % FP8_BLOCK and chosen.stop != out)
    ):
        raise _indivisible(q, f"halves of a multiple of {FP8_BLOCK} rows")
    return scales[..., chosen.start // FP8_BLOCK : -(-chosen.stop // FP8_BLOCK), :]


def _indivisible(q: QuantizedTensor, expected: str) -> ValueError:
    return ValueError(
        f"gate and up share a matrix of {q.format} {q.shape}, and scales; expected {expected}, or "
        f"dtype= to convert it"
    )


def stacked(matrices: Sequence[QuantizedTensor]) -> QuantizedTensor:
    """One tensor [n_experts, out, in] of matrices of one format and shape.

    Raises ValueError if their formats or groups differ.
    """
    first = matrices[0]
    parts = [q.parts() for q in matrices]
    for q in matrices:
        if (q.format, q.shape) != (first.format, first.shape):
            raise ValueError(
                f"experts are stored as {first.format} {first.shape} and as {q.format} {q.shape}; "
                f"expected one format and shape, or dtype= to convert them"
            )
    if any("g_idx" in p for p in parts):
        for p in parts:  # those in the usual order have no indices
            groups = p["scales"].shape[-1]
            k = first.shape[-1]
            p.setdefault("g_idx", (np.arange(k) // max(1, k // groups)).astype(np.int32))
    shapes = [{name: a.shape for name, a in p.items()} for p in parts]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError(
            f"experts in {first.format} have other groups or zeros than the first; expected the "
            f"same, or dtype= to convert them"
        )
    joined = {name: np.stack([p[name] for p in parts]) for name in parts[0]}
    return _made(first.format, (len(matrices), *first.shape), joined)


def select(q: QuantizedTensor, numbers: Sequence[int]) -> QuantizedTensor:
    """The matrices of some experts of [n_experts, out, in]."""
    if tuple(numbers) == tuple(range(q.shape[0])):
        return q
    return stacked([q[e] for e in numbers])


def _made(format: str, shape: tuple[int, ...], parts: dict[str, Any]) -> QuantizedTensor:
    if "blocks" in parts:
        return QuantizedTensor.from_bytes(format, np.ascontiguousarray(parts["blocks"]), shape)
    return QuantizedTensor.from_parts(format, shape, **parts)
