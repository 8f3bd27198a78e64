"""Checkpoint: the tensors of a model by name, from one safetensors or GGUF file or from many.

Names are read once, from the index, or from the headers of the files if there is no index. With an
index, each file is opened when one of its tensors is needed, so that a missing or damaged file only
matters to layers with tensors in it. Without one, a single file or all shards of a model are
opened; shards.py finds them. Files outside the folder are never opened. A tensor is read in the
dtype in which it is stored, unless another one is requested.

Names are without the prefixes that training tools add, such as "_orig_mod."; errors show the names
in the file. Tests: tests/models/test_checkpoint.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from ...arrays.dtypes import as_dtype, converted
from .architectures import Architecture, architecture, gguf_config
from .config import Config, read_config
from .gguf import GGUFFile
from .json_text import brief, read_object, repeats, shown
from .safetensors import Entry, SafetensorsFile
from .shards import INDEX, shards, shards_with

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


Opened = SafetensorsFile | GGUFFile


class Checkpoint(os.PathLike[str]):
    """The tensors of one model by name, in one file or in many.

    It can stand for its path, so that functions that take a path can share an open checkpoint.

    mapped  whether read() returns views of the mapped files, which cannot be written to, instead of
            new arrays
    """

    def __init__(self, path: str | os.PathLike[str], *, mapped: bool = False) -> None:
        self.path = Path(path)
        files = _find(self.path, os.fspath(path))
        self._folder = files[0].parent
        self._mapped = mapped
        self._open: dict[str, Opened | ValueError | FileNotFoundError] = {}
        self._groups: dict[str, Groups] = {}
        # How a GGUF file is read; None: the files are safetensors.
        self.architecture: Architecture | None = None
        self._index: Path | None = None
        self._listed: dict[str, Any] = {}  # the file of each tensor
        # The file that lists the names of the tensors; without an index, the folder of the shards.
        self.names_file = files[0] if len(files) == 1 else self._folder
        try:
            if files[0].name.endswith(".json"):
                self._index = files[0]
                self._listed = _weight_map(files[0])
            else:
                for file in files:
                    self._list(file)
            self.config: Config = self._read_config(files[0])
        except BaseException:
            self.close()
            raise
        # Only the names that differ from those in the files.
        self._stored = _renamed(self._listed)

    def _list(self, file: Path) -> None:
        """Open a file, and list its tensors."""
        opened = self._open[file.name] = _file(file)
        for name in opened:
            if name in self._listed:
                raise ValueError(
                    f"{self._folder} has {shown(name)} in {self._listed[name]} and in {file.name}; "
                    f"expected it in one file, or a {INDEX}"
                )
            self._listed[name] = file.name

    def _read_config(self, first: Path) -> Config:
        file = self._open.get(first.name)
        if not isinstance(file, GGUFFile):
            return read_config(self._folder / "config.json")
        self.architecture = architecture(file.path, file.metadata)
        return gguf_config(file.path, file.metadata)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for file in self._open.values():
            if isinstance(file, Opened):
                file.close()

    def __fspath__(self) -> str:
        return str(self.path)

    def __contains__(self, name: str) -> bool:
        return self._stored.get(name, name) in self._listed

    def __iter__(self) -> Iterator[str]:
        if not self._stored:
            return iter(self._listed)
        clean = {stored: name for name, stored in self._stored.items()}
        return (clean.get(name, name) for name in self._listed)

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
        stored = self._stored.get(name, name)
        return self._file_of(stored).entry(stored)

    @property
    def folder(self) -> Path:
        """The folder of config.json and of all files."""
        return self._folder

    def stored(self, name: str) -> tuple[SafetensorsFile | GGUFFile, str]:
        """The file of a tensor, and its name there."""
        stored = self._stored.get(name, name)
        return self._file_of(stored), stored

    def place(self, name: str) -> str:
        """The file and the name of a tensor, with which an error message about it begins."""
        stored = self._stored.get(name, name)
        return f"{self._folder / self._listed[stored]}: {shown(stored)}"

    def read(self, name: str, dtype: str | None, rows: range | None = None) -> np.ndarray[Any, Any]:
        """Read a tensor as an array of `dtype`; None: the dtype in which it is stored.

        rows  the part of the first dimension that is read; None: all of it
        """
        stored = self._stored.get(name, name)
        file = self._file_of(stored)
        tensor = file.view(stored, rows) if self._mapped else file.read(stored, rows)
        if dtype is None:
            return tensor
        return converted(tensor, as_dtype("dtype", dtype), self.place(name))

    def metadata(self, name: str, key: str) -> Any:
        """The value of a key in the metadata of the file that has this tensor, or None. The key
        begins with a name as it stands in the file.
        """
        stored = self._stored.get(name, name)
        before = stored[: len(stored) - len(name)] if stored.endswith(name) else ""
        return self._file_of(stored).metadata.get(before + key)

    def _file_of(self, name: str) -> Opened:
        listed = self._listed[name]
        if not isinstance(listed, str) or repeats(self._listed, name):
            found = "two files" if isinstance(listed, str) else f"the file {brief(listed)}"
            raise ValueError(f"{self._index} names {found} for {shown(name)}; expected one name")
        file = self._open.get(listed)
        if file is None:
            file = self._open[listed] = self._opened(listed)
        if not isinstance(file, Opened):
            raise type(file)(f"{file}; {shown(name)} should be in it")
        if name not in file:
            raise ValueError(
                f"{file.path} has no tensor {shown(name)}; expected one, because {self._index} "
                f"lists it there"
            )
        return file

    def _opened(self, file: str) -> Opened | ValueError | FileNotFoundError:
        """Open a file, or return the error, so that it is tried once for all its tensors."""
        if not file or os.path.basename(file) != file:  # noqa: PTH119  # as text: nothing else is looked at
            return ValueError(
                f"{self._index} names {brief(file)}; expected a file in the same folder"
            )
        path = self._folder / file
        if not os.path.lexists(path):
            return FileNotFoundError(f"{self._index} names {brief(file)}, which does not exist")
        try:
            return _file(path)
        except ValueError as error:
            return error


def _file(path: Path) -> Opened:
    return GGUFFile(path) if path.name.endswith(".gguf") else SafetensorsFile(path)


def opened(path: str | os.PathLike[str]) -> AbstractContextManager[Checkpoint]:
    """The Checkpoint of a path, for a with statement; one that is open already stays open."""
    return nullcontext(path) if isinstance(path, Checkpoint) else Checkpoint(path)


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
    """The index, the one file, or all shards; given: the path as the caller wrote it."""
    if not os.path.exists(path):  # noqa: PTH110  # false, too, for a name that no file can have
        a_file = path.suffix in (".safetensors", ".gguf", ".json") or os.path.exists(path.parent)  # noqa: PTH110
        hub = _HUB if _HUB_NAME.fullmatch(given) and not a_file else ""
        raise FileNotFoundError(
            f"{path} does not exist; expected a folder or a .safetensors file{hub}"
        )
    if not path.is_dir():
        return shards_with(path) if path.name.endswith(".gguf") else [path]
    for file in (path / INDEX, path / "model.safetensors"):
        if os.path.lexists(file):
            return [file]
    files = sorted(path.glob("*.safetensors")) or sorted(path.glob("*.gguf"))
    found = shards(path, [file.name for file in files])
    if found:
        return [path / name for name in found]
    if len(files) != 1:
        raise ValueError(
            f"{path} has {len(files)} .safetensors files and no {INDEX}; expected one file, shards "
            f"named as in model-00001-of-00003.safetensors, or an index"
        )
    return files


def _weight_map(index: Path) -> dict[str, Any]:
    whole = read_object(index)
    listed = whole.get("weight_map")
    if not isinstance(listed, dict) or repeats(whole, "weight_map"):
        found = "two entries" if repeats(whole, "weight_map") else "no object"
        raise ValueError(f"{index} has {found} weight_map; expected one object")
    return listed
