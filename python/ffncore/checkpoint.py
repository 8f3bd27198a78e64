"""The tensors of a checkpoint by name: one safetensors file, or many with their index.

Headers tell names, shapes and dtypes; a tensor is read where it is asked for, in the dtype in which
it is stored unless another one is given. Nothing outside the folder is opened. Needs the extra
`models` (safetensors, ml_dtypes). Tests: tests/test_models.py.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from ._arrays import SUPPORTED, as_dtype, converted

# safetensors' names; the numpy side of the library knows BF16 once ml_dtypes is imported.
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class Checkpoint:
    """The tensors of one model, by name: one file, or many with their index."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        folder = self.path if self.path.is_dir() else self.path.parent
        files, index = _find_files(self.path)
        self.config = _read_config(folder / "config.json")
        safetensors = _import("safetensors")
        self._stack = ExitStack()
        self._where: dict[str, Any] = {}
        try:
            for file in files:
                handle = self._stack.enter_context(
                    safetensors.safe_open(str(file), framework="numpy")
                )
                listed = index.get(file.name)
                for name in handle.keys() if listed is None else listed:
                    self._where[name] = handle
        except safetensors.SafetensorError as error:
            self.close()
            raise ValueError(f"{file} is not a safetensors file: {error}") from None

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._where[name].get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        stored = str(self._where[name].get_slice(name).get_dtype())
        return _DTYPES.get(stored, stored)

    def read(self, name: str, dtype: str | None) -> np.ndarray[Any, Any]:
        stored = self.dtype(name)
        if stored not in _DTYPES.values():
            raise TypeError(f"{name} has dtype {stored}; expected {SUPPORTED}")
        if stored == "bfloat16":
            _import("ml_dtypes")
        tensor: np.ndarray[Any, Any] = self._where[name].get_tensor(name)
        return tensor if dtype is None else converted(tensor, as_dtype("dtype", dtype), name)


def _find_files(path: Path) -> tuple[list[Path], dict[str, list[str]]]:
    """The files to open, and which tensors the index says each holds (no index: all)."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected a folder or a .safetensors file")
    if path.is_file() and not path.name.endswith(".index.json"):
        return [path], {}
    index = path if path.is_file() else path / "model.safetensors.index.json"
    if path.is_dir() and not index.is_file():
        single = path / "model.safetensors"
        files = [single] if single.is_file() else sorted(path.glob("*.safetensors"))
        if len(files) != 1:
            raise ValueError(
                f"{path} holds {len(files)} .safetensors files and no "
                f"model.safetensors.index.json; expected one model"
            )
        return files, {}
    listed: dict[str, list[str]] = {}
    for tensor, file in json.loads(index.read_text("utf-8"))["weight_map"].items():
        if Path(file).name != file:  # an index must not lead out of its folder
            raise ValueError(f"{index} names {file!r}; expected a file of the same folder")
        listed.setdefault(file, []).append(tensor)
    missing = [file for file in listed if not (index.parent / file).is_file()]
    if missing:
        raise FileNotFoundError(f"{index} names {missing[0]}, which is not there")
    return [index.parent / file for file in sorted(listed)], listed


def _read_config(path: Path) -> dict[str, Any]:
    """config.json; of a model of several parts, the text part over the whole."""
    if not path.is_file():
        return {}
    config: dict[str, Any] = json.loads(path.read_text("utf-8"))
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, dict) else config


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ImportError(
            f'reading this checkpoint needs {name}; pip install "ffncore[models]" brings it'
        ) from None
