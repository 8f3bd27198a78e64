"""QuantizedTensors from the arrays of a checkpoint, as other programs write them.

    awq                 qweight int32 [in, out / 8], qzeros [groups, out / 8], scales [groups, out]
    gptq                qweight int32 [in / 8, out], qzeros [groups, out / 8], scales, g_idx [in]
    compressed-tensors  weight_packed int32 [out, words], bit streams, weight_scale [out, groups]
    fp8                 weight e4m3 [out, in], weight_scale_inv or weight_scale
    mxfp4               blocks uint8 [..., out, in / 32, 16], scales uint8 [..., out, in / 32]
    nvfp4               weight_packed uint8 [out, in / 2], weight_scale e4m3, weight_global_scale
    nf4                 weight uint8, flat, the even weight in the high bits, absmax

Every result has weights [out, in]. Codes of 8 bits become int8, those of fewer int4. Scales and
codes are those of the checkpoint, so that the numbers are, too.
Tests: tests/quantisation/test_converters.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays.shapes import Array, MaybeArray, as_array
from ..encodings.floats import NF4_BLOCK
from ..encodings.tensor import QuantizedTensor

# Nibble i of a word is column 8 c + AWQ_ORDER[i].
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def from_awq(qweight: Array, scales: Array, qzeros: Array, *, name: str = "q") -> QuantizedTensor:
    """AWQ's "gemm" layout: w[k, n] = (q - z) s, 4 bits."""
    codes = _nibbles(f"{name}.qweight", qweight)[..., np.argsort(AWQ_ORDER)]
    zeros = _nibbles(f"{name}.qzeros", qzeros)[..., np.argsort(AWQ_ORDER)]
    codes, zeros = (a.reshape(*a.shape[:-2], -1).T for a in (codes, zeros))
    return _int4(name, codes, as_array(f"{name}.scales", scales).T, zeros)


def from_gptq(
    qweight: Array,
    scales: Array,
    qzeros: Array,
    g_idx: MaybeArray = None,
    *,
    version: int = 1,
    name: str = "q",
) -> QuantizedTensor:
    """GPTQ, 4 bits: w[k, n] = (q - z) s, where version 1 stores z - 1, and version 2 z.

    A version that lies is found where all stored zeros are 7, which is 8 in version 1, or all are
    8, which is 8 in version 2. Else it is believed. In version 1 a stored 15 is a zero of 16.
    """
    if version not in (1, 2):
        raise ValueError(f"version is {version!r}; expected 1 or 2")
    codes = _nibbles(f"{name}.qweight", qweight)  # [in / 8, out, 8]
    codes = codes.swapaxes(0, 1).reshape(codes.shape[1], -1)
    zeros = _nibbles(f"{name}.qzeros", qzeros)
    zeros = zeros.reshape(len(zeros), -1).T
    symmetric = {7: 1, 8: 2}.get(int(zeros.flat[0]) if zeros.size else 0)
    if symmetric is not None and (zeros == zeros.flat[0]).all():
        version = symmetric
    zeros = zeros + np.uint8(version == 1)
    # The order that groups have anyway needs no indices.
    k, groups = codes.shape[1], max(1, zeros.shape[1])
    if g_idx is not None and np.array_equal(g_idx, np.arange(k) // max(1, k // groups)):
        g_idx = None
    return _int4(name, codes, as_array(f"{name}.scales", scales).T, zeros, g_idx)


def from_pack_quantized(
    weight_packed: Array,
    weight_scale: Array,
    shape: tuple[int, int],
    *,
    bits: int = 4,
    weight_zero_point: MaybeArray = None,
    g_idx: MaybeArray = None,
    name: str = "q",
) -> QuantizedTensor:
    """compressed-tensors' pack-quantized, 1 to 8 bits: w = (q - z) s with signed q and z.

    weight_packed      int32 [out, words]: codes q + 2^(bits - 1), lowest bits first; they go on
                       from one word to the next
    weight_scale       [out, groups]
    weight_zero_point  None: 0; int8 [out, groups], or packed like weight_packed along out, int32
                       [words, groups]
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"bits is {bits!r}; expected 1 to 8")
    out, k = shape
    codes = _stream(f"{name}.weight_packed", weight_packed, bits, (out, k))
    middle = 2 ** (bits - 1)
    zeros: Any = weight_zero_point
    if zeros is not None and zeros.dtype == np.int32:
        groups = weight_scale.shape[-1]
        label = f"{name}.weight_zero_point"
        by_group = _stream(label, np.ascontiguousarray(zeros.T), bits, (groups, out))
        zeros = by_group.T.astype(np.int16) - middle
    if bits > 4:
        signed = (codes.astype(np.int16) - middle).astype(np.int8)
        return QuantizedTensor.from_parts(
            "int8", (out, k), codes=signed, scales=weight_scale, zeros=zeros, g_idx=g_idx, name=name
        )
    own = np.full(weight_scale.shape, middle, np.uint8)
    zeros = own if zeros is None else (zeros.astype(np.int16) + middle)
    return QuantizedTensor.from_parts(
        "int4", (out, k), codes=codes, scales=weight_scale, zeros=zeros, g_idx=g_idx, name=name
    )


def from_fp8(weight: Array, scale: Array, *, name: str = "q") -> QuantizedTensor:
    """FP8 E4M3 with a scale that multiplies: DeepSeek's weight_scale_inv, or weight_scale."""
    return QuantizedTensor.from_parts(
        "fp8_e4m3", weight.shape, codes=weight, scales=scale, name=name
    )


def from_mxfp4(blocks: Array, scales: Array, *, name: str = "q") -> QuantizedTensor:
    """gpt-oss: neighbours in a byte, the even one low; GGUF's mxfp4 has halves of a block."""
    data, exponents = as_array(f"{name}_blocks", blocks), as_array(f"{name}_scales", scales)
    for label, array in ((f"{name}_blocks", data), (f"{name}_scales", exponents)):
        if array.dtype != np.uint8:
            raise TypeError(f"{label} has dtype {array.dtype}; expected uint8")
    if data.ndim < 3 or data.shape[-1] != 16 or exponents.shape != data.shape[:-1]:
        raise ValueError(
            f"{name}_blocks has shape {data.shape} and {name}_scales {exponents.shape}; expected "
            f"[..., out, in / 32, 16] and [..., out, in / 32]"
        )
    codes = np.stack([data & 15, data >> 4], axis=-1).reshape(*data.shape[:-1], 32)
    joined = np.empty((*data.shape[:-1], 17), np.uint8)
    joined[..., 0] = exponents
    joined[..., 1:] = codes[..., :16] | codes[..., 16:] << 4
    shape = (*data.shape[:-2], data.shape[-2] * 32)
    return QuantizedTensor.from_bytes("mxfp4", joined, shape, name=name)


def from_nvfp4(
    weight_packed: Array, weight_scale: Array, weight_global_scale: Any, *, name: str = "q"
) -> QuantizedTensor:
    """compressed-tensors' nvfp4-pack-quantized: w = code (scale / global), even codes low."""
    codes = _bytes(f"{name}.weight_packed", weight_packed, high_first=False)
    return QuantizedTensor.from_parts(
        "nvfp4",
        codes.shape,
        codes=codes,
        scales=weight_scale,
        global_scale=weight_global_scale,
        name=name,
    )


def from_nf4(
    weight: Array,
    absmax: Array,
    shape: tuple[int, int],
    *,
    nested_absmax: MaybeArray = None,
    nested_map: MaybeArray = None,
    nested_offset: float = 0.0,
    nested_block: int = 256,
    name: str = "q",
) -> QuantizedTensor:
    """bitsandbytes' NF4 in blocks of 64, the even weight in the high bits.

    With nested_absmax, absmax holds codes of a table: scales are the table's number times the
    nested_absmax of 256 of them, plus nested_offset.
    """
    flat = _bytes(f"{name}.weight", as_array(f"{name}.weight", weight).reshape(-1), high_first=True)
    count = int(np.prod(shape))
    if flat.size != count + count % 2:
        raise ValueError(
            f"{name}.weight has {flat.size // 2} bytes; expected {(count + 1) // 2} for {shape}"
        )
    scales = as_array(f"{name}.absmax", absmax).reshape(-1)
    if nested_absmax is not None:
        if nested_map is None or nested_map.shape != (256,) or scales.dtype != np.uint8:
            raise ValueError(
                f"{name}.absmax has dtype {scales.dtype}; expected uint8 and a nested_map of 256"
            )
        outer = np.repeat(nested_absmax.reshape(-1), nested_block)[: scales.size]
        if outer.size != scales.size:
            raise ValueError(
                f"{name}.nested_absmax has {nested_absmax.size} numbers; expected "
                f"{-(-scales.size // nested_block)}"
            )
        inner = nested_map.astype(np.float32)[scales] * outer.astype(np.float32)
        scales = inner + np.float32(nested_offset)
    assert NF4_BLOCK == 64
    codes = flat[:count].reshape(shape)
    return QuantizedTensor.from_parts("nf4", tuple(shape), codes=codes, scales=scales, name=name)


# ---- codes


def _nibbles(name: str, value: object) -> Array:
    """Words int32 [rows, columns] as their nibbles, uint8 [rows, columns, 8], the lowest first."""
    words = as_array(name, value)
    if words.dtype not in (np.int32, np.uint32):
        raise TypeError(f"{name} has dtype {words.dtype}; expected int32")
    if words.ndim != 2:
        raise ValueError(f"{name} has shape {words.shape}; expected two dimensions")
    shifts = np.arange(0, 32, 4, dtype=np.uint32)
    return np.asarray((words.view(np.uint32)[..., None] >> shifts & np.uint32(15)).astype(np.uint8))


def _stream(name: str, value: object, bits: int, shape: tuple[int, int]) -> Array:
    """Rows of words int32 as streams of codes of some bits: uint8 of the shape."""
    words = as_array(name, value)
    if words.dtype != np.int32:
        raise TypeError(f"{name} has dtype {words.dtype}; expected int32")
    rows, k = shape
    expected = (rows, -(-k * bits // 32))
    if words.shape != expected:
        raise ValueError(f"{name} has shape {words.shape}; expected {expected} for {bits} bits")
    data = np.ascontiguousarray(words, "<i4").view(np.uint8)
    stream = np.unpackbits(data, axis=1, bitorder="little")[:, : k * bits]
    codes: Array = np.packbits(stream.reshape(rows, k, bits), axis=2, bitorder="little")
    return np.asarray(codes[..., 0])


def _bytes(name: str, value: object, *, high_first: bool) -> Array:
    """Bytes [..., n] as codes of 4 bits [..., 2 n]."""
    data = as_array(name, value)
    if data.dtype != np.uint8:
        raise TypeError(f"{name} has dtype {data.dtype}; expected uint8")
    pair = [data & np.uint8(15), data >> np.uint8(4)]
    return np.stack(pair[::-1] if high_first else pair, axis=-1).reshape(*data.shape[:-1], -1)


def _int4(
    name: str, codes: Array, scales: Array, zeros: Array, g_idx: MaybeArray = None
) -> QuantizedTensor:
    codes, scales, zeros = (np.ascontiguousarray(a) for a in (codes, scales, zeros))
    return QuantizedTensor.from_parts(
        "int4", codes.shape, codes=codes, scales=scales, zeros=zeros, g_idx=g_idx, name=name
    )
