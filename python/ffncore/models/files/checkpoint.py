"""Checkpoint: the tensors of a model by name, from one safetensors file or from many.

Names are read once: from the header of the single file, from the index of many, or, without an
index, from the headers of all files model-00001-of-00003 and so on. With an index, a file is opened
when one of its tensors is needed, so that a missing or damaged file only matters to layers with
tensors in it. Files outside the folder are never opened. A tensor is read in the dtype in which it
is stored, unless another one is requested.

Names are without the prefixes that training tools add, such as "_orig_mod."; errors show the names
in the file. Tests: tests/models/test_checkpoint.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
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
_HUB = " (a model name on a hub is not a path: download it, and pass the folder)"
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")

# Prefixes that torch.compile, data-parallel training and adapters add to names, at any depth.
_TOOLS = re.compile(
    r"(?<![^.])(?:(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|module)\."
    r"|base_model\.model\.)+"
)

# Longer numbers are not those of layers, and int() raises ValueError for very long ones.
_MOST_DIGITS = 9


class Checkpoint:
    """The tensors of one model by name, in one file or in many with an index."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        found = _find(self.path, os.fspath(path))
        self._folder = found[0].parent
        self._open: dict[str, SafetensorsFile | ValueError | FileNotFoundError] = {}
        self._groups: dict[str, Groups] = {}
        self.config: Config = read_config(self._folder / "config.json")
        self._single: SafetensorsFile | None = None
        self._listed: dict[str, Any] = {}  # the file of each tensor, if there are many files
        self.names_file: Path = found[0]  # the file that lists the names, or their folder
        if len(found) > 1:
            self.names_file = self._folder
            try:
                self._listed = self._headers(found)
            except BaseException:
                self.close()
                raise
        elif found[0].name.endswith(".json"):
            self._listed = _weight_map(found[0])
        else:
            self._single = self._open[found[0].name] = SafetensorsFile(found[0])
        # Only the names that differ from those in the files.
        self._stored = _renamed(self._listed if self._single is None else self._single)

    def _headers(self, files: list[Path]) -> dict[str, Any]:
        listed: dict[str, Any] = {}
        for path in files:
            file = self._open[path.name] = SafetensorsFile(path)
            for name in file:
                if name in listed:
                    raise ValueError(
                        f"{self._folder} has no index, and {shown(name)} is in {listed[name]} and "
                        f"in {path.name}; expected it in one file"
                    )
                listed[name] = path.name
        return listed

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for file in self._open.values():
            if isinstance(file, SafetensorsFile):
                file.close()

    def __contains__(self, name: str) -> bool:
        return self._stored.get(name, name) in self._names

    def __iter__(self) -> Iterator[str]:
        if not self._stored:
            return iter(self._names)
        clean = {stored: name for name, stored in self._stored.items()}
        return (clean.get(name, name) for name in self._names)

    @property
    def _names(self) -> SafetensorsFile | dict[str, Any]:
        return self._listed if self._single is None else self._single

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
        name = self._stored.get(name, name)
        return self._file_of(name).entry(name)

    def place(self, name: str) -> str:
        """The file and the name of a tensor, with which an error message about it begins."""
        name = self._stored.get(name, name)
        single = self._single
        file = self._folder / self._listed[name] if single is None else single.path
        return f"{file}: {shown(name)}"

    def read(self, name: str, dtype: str | None, rows: range | None = None) -> np.ndarray[Any, Any]:
        """Read a tensor into a new array of `dtype`; None: the dtype in which it is stored.

        rows  the part of the first dimension that is read; None: all of it
        """
        stored = self._stored.get(name, name)
        tensor = self._file_of(stored).read(stored, rows)
        if dtype is None:
            return tensor
        return converted(tensor, as_dtype("dtype", dtype), self.place(name))

    def _file_of(self, name: str) -> SafetensorsFile:
        if self._single is not None:
            return self._single
        listed = self._listed[name]
        if not isinstance(listed, str) or repeats(self._listed, name):
            found = "two files" if isinstance(listed, str) else f"the file {brief(listed)}"
            raise ValueError(
                f"{self.names_file} names {found} for {shown(name)}; expected one name"
            )
        file = self._open.get(listed)
        if file is None:
            file = self._open[listed] = self._opened(listed)
        if not isinstance(file, SafetensorsFile):
            raise type(file)(f"{file}; {shown(name)} should be in it")
        if name not in file:
            raise ValueError(
                f"{file.path} has no tensor {shown(name)}; expected one, because {self.names_file} "
                f"lists it there"
            )
        return file

    def _opened(self, file: str) -> SafetensorsFile | ValueError | FileNotFoundError:
        """Open a file, or return the error, so that it is tried once for all its tensors."""
        if not file or os.path.basename(file) != file:  # noqa: PTH119  # as text: nothing else is looked at
            return ValueError(
                f"{self.names_file} names {brief(file)}; expected a file in the same folder"
            )
        path = self._folder / file
        if not os.path.lexists(path):
            return FileNotFoundError(f"{self.names_file} names {brief(file)}, which does not exist")
        try:
            return SafetensorsFile(path)
        except ValueError as error:
            return error


def _is_number(text: str) -> bool:
    """Whether text is a number as names have it: 0 or 17, but not 017."""
    short = text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS
    return short and (text[0] != "0" or text == "0")


def _renamed(names: Iterable[str]) -> dict[str, str]:
    """From names without the prefixes of tools to those in the file, where they differ."""
    if not any(_TOOLS.search(name) for name in names):
        return {}
    clean: dict[str, list[str]] = {}
    for name in names:
        clean.setdefault(_TOOLS.sub("", name), []).append(name)
    # Two tensors that would have one name keep their own.
    return {n: s[0] for n, s in clean.items() if len(s) == 1 and s[0] != n}


def _find(path: Path, given: str) -> list[Path]:
    """The one file, the index of many, or many without one; given: the path as the caller wrote
    it.
    """
    if not os.path.exists(path):  # noqa: PTH110  # false, too, for a name that no file can have
        a_file = path.suffix in (".safetensors", ".json") or os.path.exists(path.parent)  # noqa: PTH110
        hub = _HUB if _HUB_NAME.fullmatch(given) and not a_file else ""
        raise FileNotFoundError(
            f"{path} does not exist; expected a folder or a .safetensors file{hub}"
        )
    if not path.is_dir():
        return [path]
    index = path / "model.safetensors.index.json"
    if os.path.lexists(index):
        return [index]
    single = path / "model.safetensors"
    files = [single] if os.path.lexists(single) else sorted(path.glob("*.safetensors"))
    if len(files) == 1:
        return files
    return _shards(path, files)


_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.safetensors")


def _shards(path: Path, files: list[Path]) -> list[Path]:
    """The files, if their names are those of all parts of one model."""
    matches = [_SHARD.fullmatch(file.name) for file in files]
    kinds = {match and (match[1], match[3]) for match in matches}
    if not files or None in kinds or len(kinds) > 1:
        raise ValueError(
            f"{path} has {len(files)} .safetensors files and no model.safetensors.index.json; "
            f"expected one file, or an index, or files like model-00001-of-00002.safetensors"
        )
    there = {int(match[2]) for match in matches if match}
    count = int(matches[0][3]) if matches[0] else 0
    missing = [n for n in range(1, count + 1) if n not in there]
    if missing or len(there) != count:
        name = f"{matches[0][1]}-{missing[0]:05}-of-{count:05}" if missing and matches[0] else ""
        raise FileNotFoundError(
            f"{path} has {len(files)} of {count} files and no model.safetensors.index.json, and "
            f"{name}.safetensors does not exist; expected all of them"
        )
    return files


def _weight_map(index: Path) -> dict[str, Any]:
    whole = read_object(index)
    listed = whole.get("weight_map")
    if not isinstance(listed, dict) or repeats(whole, "weight_map"):
        found = "two entries" if repeats(whole, "weight_map") else "no object"
        raise ValueError(f"{index} has {found} weight_map; expected one object")
    return listed
