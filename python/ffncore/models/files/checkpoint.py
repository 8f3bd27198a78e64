"""Checkpoint: the tensors of a model by name, from one safetensors file or from many with an index.

Names are read once, from the header of the single file or from the index. Of many files, each is
opened when one of its tensors is needed, so that a missing or damaged file only matters to layers
with tensors in it. Files outside the folder are never opened. A tensor is read in the dtype in
which it is stored, unless another one is requested. Tests: tests/models/test_checkpoint.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...arrays.dtypes import as_dtype, converted
from .config import Config, read_config
from .json_text import brief, read_object, repeats, shown
from .safetensors import Entry, SafetensorsFile

# From the prefix and the number of a layer to the rest of its tensors' names, after "layers.N.".
Groups = dict[tuple[str, int], list[str]]

# The end of the error for a path like "google/gemma-2-2b".
_HUB = " (a model's name on a hub is no path: download it, and pass the folder)"
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")

# Longer numbers are not those of layers, and int() raises ValueError for very long ones.
_MOST_DIGITS = 9


class Checkpoint:
    """The tensors of one model by name, in one file or in many with an index."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        found = _find(self.path, os.fspath(path))
        self._folder = found.parent
        self._open: dict[str, SafetensorsFile | ValueError | FileNotFoundError] = {}
        self._groups: dict[str, Groups] = {}
        self.config: Config = read_config(self._folder / "config.json")
        self._index: Path | None = None
        self._listed: dict[str, Any] = {}
        if found.name.endswith(".json"):
            self._index = found
            self._listed = _weight_map(found)
        else:
            self._single = self._open[found.name] = SafetensorsFile(found)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for file in self._open.values():
            if isinstance(file, SafetensorsFile):
                file.close()

    def __contains__(self, name: str) -> bool:
        return name in (self._single if self._index is None else self._listed)

    def __iter__(self) -> Iterator[str]:
        return iter(self._single if self._index is None else self._listed)

    @property
    def names_file(self) -> Path:
        """The file that lists the names of the tensors."""
        return self._single.path if self._index is None else self._index

    def layers(self, layer: str) -> Groups:
        """The names that start with `layer`, such as "layers.{}.", after any prefix, by layer."""
        if layer not in self._groups:
            self._groups[layer] = self._grouped(layer)
        return self._groups[layer]

    def _grouped(self, layer: str) -> Groups:
        before, after = ("." + layer).split("{}")
        texts: dict[tuple[str, str], list[str]] = {}
        for name in self:
            prefix, found, rest = ("." + name).rpartition(before)
            if found:
                number, found, rest = rest.partition(after)
                if found:
                    texts.setdefault((prefix, number), []).append(rest)
        return {
            (prefix[1:] + "." if prefix else "", int(number)): names
            for (prefix, number), names in texts.items()
            if _is_number(number)
        }

    def entry(self, name: str) -> Entry:
        """The Entry of a tensor.

        Raises ValueError if the tensor is damaged or not in its file, FileNotFoundError if there is
        no such file.
        """
        return self._file_of(name).entry(name)

    def place(self, name: str) -> str:
        """The file and the name of a tensor, with which an error message about it begins."""
        file = self._single.path if self._index is None else self._folder / self._listed[name]
        return f"{file}: {shown(name)}"

    def read(self, name: str, dtype: str | None) -> np.ndarray[Any, Any]:
        """Read a tensor into a new array of `dtype`; None: the dtype in which it is stored."""
        tensor = self._file_of(name).read(name)
        if dtype is None:
            return tensor
        return converted(tensor, as_dtype("dtype", dtype), self.place(name))

    def _file_of(self, name: str) -> SafetensorsFile:
        if self._index is None:
            return self._single
        listed = self._listed[name]
        if not isinstance(listed, str) or repeats(self._listed, name):
            found = "two files" if isinstance(listed, str) else f"the file {brief(listed)}"
            raise ValueError(f"{self._index} names {found} for {shown(name)}; expected one name")
        file = self._open.get(listed)
        if file is None:
            file = self._open[listed] = self._opened(listed)
        if not isinstance(file, SafetensorsFile):
            raise type(file)(f"{file}; {shown(name)} should be in it")
        if name not in file:
            raise ValueError(
                f"{file.path} has no tensor {shown(name)}; expected one, because {self._index} "
                f"lists it there"
            )
        return file

    def _opened(self, file: str) -> SafetensorsFile | ValueError | FileNotFoundError:
        """Open a file, or return the error, so that it is tried once for all its tensors."""
        if not file or os.path.basename(file) != file:  # noqa: PTH119  # as text: nothing else is looked at
            return ValueError(
                f"{self._index} names {brief(file)}; expected a file in the same folder"
            )
        path = self._folder / file
        if not os.path.lexists(path):
            return FileNotFoundError(f"{self._index} names {brief(file)}, which does not exist")
        try:
            return SafetensorsFile(path)
        except ValueError as error:
            return error


def _is_number(text: str) -> bool:
    """Whether text is a number as names have it: 0 or 17, but not 017."""
    short = text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS
    return short and (text[0] != "0" or text == "0")


def _find(path: Path, given: str) -> Path:
    """The one file, or the index of many; given: the path as the caller wrote it."""
    if not os.path.exists(path):  # noqa: PTH110  # false, too, for a name that no file can have
        a_file = path.suffix in (".safetensors", ".json") or os.path.exists(path.parent)  # noqa: PTH110
        hub = _HUB if _HUB_NAME.fullmatch(given) and not a_file else ""
        raise FileNotFoundError(
            f"{path} does not exist; expected a folder or a .safetensors file{hub}"
        )
    if not path.is_dir():
        return path
    index = path / "model.safetensors.index.json"
    if os.path.lexists(index):
        return index
    single = path / "model.safetensors"
    files = [single] if os.path.lexists(single) else sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        raise ValueError(
            f"{path} has {len(files)} .safetensors files and no model.safetensors.index.json; "
            f"expected one file, or an index"
        )
    return files[0]


def _weight_map(index: Path) -> dict[str, Any]:
    whole = read_object(index)
    listed = whole.get("weight_map")
    if not isinstance(listed, dict) or repeats(whole, "weight_map"):
        found = "two entries" if repeats(whole, "weight_map") else "no object"
        raise ValueError(f"{index} has {found} weight_map; expected one object")
    return listed
