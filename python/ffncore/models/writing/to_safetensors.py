"""Writes a checkpoint with quantised matrices as safetensors files.

A matrix NAME [out, in] or [E, out, in] becomes

    NAME.q4_k              uint8 [..., out, bytes of a row], for formats of one block of bytes
    NAME.int4.codes, ...   the arrays of QuantizedTensor.parts(), for formats of several arrays

and the file's metadata gets the entry "NAME.q4_k": '{"format": "q4_k", "shape": [out, in]}'. The
rows of a quantised matrix are outputs, also where NAME was stored as [in, out]. All other tensors
are copied byte by byte. Tests: tests/models/writing/test_to_safetensors.py.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ...encodings.table import FORMATS
from ..files.checkpoint import Checkpoint
from ..files.shards import INDEX
from .matrices import Matrix
from .rounding import Rounding
from .safetensors_file import SafetensorsWriter

# What stands beside the weights of a model: its configuration, tokenizer and templates.
_BESIDE = (".json", ".txt", ".model", ".jinja", ".tiktoken")


def write_folder(
    folder: Path,
    checkpoint: Checkpoint,
    chosen: Mapping[str, tuple[Matrix, str]],
    rounding: Rounding,
    step: Callable[[], None],
) -> None:
    """Write files with the names of those of the checkpoint, and what stands beside them."""
    by_file: dict[str, list[str]] = {}
    for name in checkpoint:
        by_file.setdefault(checkpoint.stored(name)[0].path.name, []).append(name)
    listed: dict[str, str] = {}
    for file, names in by_file.items():
        made = write_file(folder / file, checkpoint, names, chosen, rounding, step)
        listed |= dict.fromkeys(made, file)
    source = checkpoint.folder
    if (source / INDEX).exists():
        total = sum((folder / file).stat().st_size for file in by_file)
        index = {"metadata": {"total_size": total}, "weight_map": listed}
        (folder / INDEX).write_text(json.dumps(index, indent=1), "utf-8")
    for path in sorted(source.iterdir()):
        if path.suffix in _BESIDE and path.name != INDEX and path.is_file():
            shutil.copyfile(path, folder / path.name)


def write_file(
    path: Path,
    checkpoint: Checkpoint,
    names: Sequence[str],
    chosen: Mapping[str, tuple[Matrix, str]],
    rounding: Rounding,
    step: Callable[[], None],
) -> list[str]:
    """Write one file. Returns the names of its tensors.

    names   the tensors of the checkpoint that go into it
    chosen  by name the matrices that are quantised, and their formats
    step    called after each of them
    """
    expected: dict[str, int] = {}
    metadata: dict[str, str] = {}
    for name in names:
        file, stored = checkpoint.stored(name)
        metadata |= {k: v for k, v in file.metadata.items() if isinstance(v, str)}
        if name not in chosen:
            expected[stored] = len(checkpoint.entry(name).shape)
            continue
        matrix, format = chosen[name]
        start = f"{stored}.{format}"
        told = {"format": format, "shape": list(matrix.shape)}
        metadata[start] = json.dumps(told)
        expected |= {part: len(matrix.shape) for part in _parts(start, format)}
    written = []
    with SafetensorsWriter(path, expected, metadata) as writer:
        # Tensors that are copied stay aligned only if no bytes of codes stand between them.
        for name in names:
            if name not in chosen:
                file, stored = checkpoint.stored(name)
                writer.copy(stored, file.path, checkpoint.entry(name))
                written.append(stored)
        for name in names:
            if name not in chosen:
                continue
            matrix, format = chosen[name]
            start = f"{checkpoint.stored(name)[1]}.{format}"
            w = matrix.read(checkpoint)
            q = rounding.tensor(checkpoint.place(name), w, format, matrix.fields)
            parts = q.parts()
            for part, array in zip(_parts(start, format, [*parts]), parts.values(), strict=True):
                writer.write(part, array)
                written.append(part)
            step()
    return written


def _parts(start: str, format: str, parts: Sequence[str] = ()) -> list[str]:
    """The names of the tensors of a matrix; without its parts, all that it may have."""
    takes = parts or tuple(FORMATS[format].takes)
    return [start] if "blocks" in takes else [f"{start}.{part}" for part in takes]
