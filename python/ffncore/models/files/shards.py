"""Shards: the files of one model, recognised by their names if there is no index.

    model-00001-of-00003.safetensors
    model-00002-of-00003.safetensors      a name, a number, and how many there are
    model-00003-of-00003.safetensors

The names have to be consistent: one name, one count, and every number from 1 to the count once.
Anything else is an error, because a tensor of a missing shard would look like one that the model
does not have. Tests: tests/models/test_shards.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

INDEX = "model.safetensors.index.json"

# Longer numbers are not those of shards, and int() raises ValueError for very long ones.
_NAME = re.compile(r"(.+)-(\d{1,9})-of-(\d{1,9})\.(safetensors|gguf)", re.ASCII)


def shards_with(path: Path) -> list[Path]:
    """All shards of the GGUF file at this path, whose metadata only the first one has in full."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        return [path]
    start = match[1] + "-"
    beside = [file.name for file in path.parent.glob("*.gguf") if file.name.startswith(start)]
    found = shards(path.parent, sorted(name for name in beside if _NAME.fullmatch(name)))
    return [path.parent / name for name in found] or [path]


def shards(folder: Path, files: Iterable[str]) -> list[str]:
    """The files of one model in their order; [] if the names are not those of shards.

    files  all .safetensors or all .gguf files of the folder; others may stand beside shards named
           "model"

    Raises FileNotFoundError if a shard is missing, and ValueError if they do not belong together.
    """
    files = list(files)
    matches = {file: match for file in files if (match := _NAME.fullmatch(file))}
    stems = {match[1] for match in matches.values()}
    if "model" in stems:
        stem = "model"
    elif len(stems) == 1 and len(matches) == len(files):
        (stem,) = stems
    else:
        return []
    matches = {file: match for file, match in matches.items() if match[1] == stem}
    counts = {int(match[3]): file for file, match in matches.items()}
    if len(counts) > 1:
        one, other, *_ = counts.values()
        raise ValueError(f"{folder} has {one} and {other}; expected one number of shards")
    (count,) = counts
    numbered: dict[int, str] = {}
    for file, match in matches.items():
        number = int(match[2])
        if not 1 <= number <= count:
            raise ValueError(f"{folder} has {file}; expected a number from 1 to {count}")
        if number in numbered:
            raise ValueError(
                f"{folder} has {numbered[number]} and {file}; expected each number once"
            )
        numbered[number] = file
    missing = next((n for n in range(1, count + 1) if n not in numbered), None)
    if missing is not None:
        match = matches[numbered[min(numbered)]]
        name = f"{stem}-{missing:0{len(match[2])}}-of-{match[3]}.{match[4]}"
        gguf = match[4] == "gguf"
        raise FileNotFoundError(
            f"{folder} has {len(numbered)} of {count} shards{'' if gguf else f' and no {INDEX}'}; "
            f"expected {name}, too"
            + ("" if gguf else " (a shard is read alone if you pass its own path)")
        )
    return [numbered[number] for number in range(1, count + 1)]
