"""Small GGUF files for tests, written byte by byte: valid ones, and parts of damaged ones."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

import ffncore as fc

TYPES = {"float32": 0, "float16": 1, "bfloat16": 30, "q4_0": 2, "q4_1": 3, "q8_0": 8, "q4_k": 12}
TYPES |= {"q5_k": 13, "q6_k": 14, "tq1_0": 34, "tq2_0": 35, "mxfp4": 39, "q1_0": 41, "q2_0": 42}


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def value(told: Any) -> bytes:
    """The type and the bytes of metadata."""
    if isinstance(told, bool):
        return struct.pack("<I?", 7, told)
    if isinstance(told, int):
        return struct.pack("<II", 4, told)
    if isinstance(told, float):
        return struct.pack("<If", 6, told)
    if isinstance(told, str):
        return struct.pack("<I", 8) + text(told)
    if isinstance(told[0], str):
        return struct.pack("<IIQ", 9, 8, len(told)) + b"".join(map(text, told))
    return struct.pack("<IIQ", 9, 5, len(told)) + np.asarray(told, "<i4").tobytes()


def entry(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    sizes = b"".join(struct.pack("<Q", n) for n in shape[::-1])
    return text(name) + struct.pack("<I", len(shape)) + sizes + struct.pack("<IQ", kind, offset)


def file_bytes(
    metadata: dict[str, Any], tensors: dict[str, Any], alignment: int = 32, kinds: Any = None
) -> bytes:
    """A whole file. A tensor is an array or a QuantizedTensor; kinds: other types by name."""
    directory, data = b"", b""
    for name, tensor in tensors.items():
        if isinstance(tensor, fc.QuantizedTensor):
            kind, raw = TYPES[tensor.format], tensor.to_bytes()
        else:
            kind, raw = TYPES[tensor.dtype.name], np.ascontiguousarray(tensor).tobytes()
        kind = (kinds or {}).get(name, kind)
        directory += entry(name, tensor.shape, kind, len(data))
        data += raw + bytes(-len(raw) % alignment)
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    header += b"".join(text(key) + value(told) for key, told in metadata.items())
    header += directory
    return header + bytes(-len(header) % alignment) + data


def write(path: Path, metadata: dict[str, Any], tensors: dict[str, Any], **options: Any) -> Path:
    path.write_bytes(file_bytes(metadata, tensors, **options))
    return path


LLAMA = {
    "general.architecture": "llama",
    "general.name": "tiny",
    "tokenizer.ggml.tokens": ["a", "bb", ""],
    "tokenizer.ggml.token_type": [1, 2, 3],
    "llama.block_count": 2,
}


def layer(
    number: int, formats: tuple[str, ...], d: int = 256, f: int = 512, end: str = "", e: int = 0
) -> dict[str, Any]:
    """gate, up and down of a layer, each in a format or a dtype; with e experts."""
    rng = np.random.default_rng(number + 5)
    tensors = {}
    for role, format in zip(("gate", "up", "down"), formats, strict=True):
        shape = ((e,) if e else ()) + ((d, f) if role == "down" else (f, d))
        w = (rng.standard_normal(shape) / 16).astype("f4")
        stored = fc.quantize(w, format) if format in fc.formats() else w.astype(format)
        tensors[f"blk.{number}.ffn_{role}{end}.weight"] = stored
    return tensors
