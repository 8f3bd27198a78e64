"""Reads JSON objects from files; every error is one sentence that names the file.

    read_object(path)             a whole file
    parse_object(bytes, where)    a part of a file; error messages begin with `where`

In JSON an object may have a name twice, and Python keeps only the last value. Such an object
becomes a Repeating, which knows these names, so that a reader can refuse their values alone.
Tests: tests/models/test_safetensors.py, tests/models/test_checkpoint.py.
"""

from __future__ import annotations

import gc
import json
import os
from typing import Any


class Repeating(dict[str, Any]):
    """An object that has some names more than once."""

    repeated: frozenset[str]


def read_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    return parse_object(read_bytes(path), str(path))


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    check_file(path)
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            return file.read()
    except OSError as error:
        raise unreadable(path, error) from None


def check_file(path: str | os.PathLike[str]) -> None:
    """Raise an error unless the path is a file, or a link to one."""
    if os.path.isfile(path):  # noqa: PTH113  # Path.is_file raises for names that are too long
        return
    if os.path.isdir(path):  # noqa: PTH112
        raise ValueError(f"{path} is a folder; expected a file")
    if os.path.lexists(path):
        raise ValueError(f"{path} is neither a file nor a link to a file; expected a file")
    raise FileNotFoundError(f"{path} does not exist; expected a file")


def unreadable(path: str | os.PathLike[str], error: OSError) -> ValueError:
    return ValueError(f"{path} cannot be read: {error.strerror}; expected a readable file")


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    # A header of 92,000 tensors makes 300,000 objects without a cycle. The garbage collector would
    # walk through them again and again, which takes half of the time.
    collects = gc.isenabled()
    gc.disable()
    try:
        text = data.decode("utf-8")
        value = json.loads(text)
        # Each name has one colon. If there are more colons than names, a name may be repeated.
        if text.count(":") != _names_in(value):
            value = json.loads(text, object_pairs_hook=_object)
    except UnicodeDecodeError:
        raise ValueError(f"{where} is not in UTF-8; expected JSON") from None
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply; expected a JSON object") from None
    except ValueError as error:  # also for numbers with more digits than Python converts
        raise ValueError(f"{where} is not JSON: {error}") from None
    finally:
        if collects:
            gc.enable()
    if not isinstance(value, dict):
        raise ValueError(f"{where} is a JSON {_KINDS[type(value)]}; expected an object")
    return value


_KINDS = {list: "array", str: "string", int: "number", float: "number", bool: "boolean"}
_KINDS[type(None)] = "null"


def _names_in(value: Any) -> int:
    """The number of names in an object and in its values, which is as deep as a header goes."""
    if not isinstance(value, dict):
        return 0
    return len(value) + sum(len(part) for part in value.values() if isinstance(part, dict))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    names = [name for name, _ in pairs]
    repeating = Repeating(found)
    repeating.repeated = frozenset(name for name in found if names.count(name) > 1)
    return repeating


def brief(value: object) -> str:
    """A value as text, shortened so that it fits into an error message."""
    try:
        text = ascii(value)
    except RecursionError:
        return "nested too deeply"
    return text if len(text) <= 80 else text[:77] + "..."


def shown(name: str) -> str:
    """A tensor's name for an error message, also if a damaged file has a strange one."""
    return name if len(name) <= 200 and name.isprintable() else brief(name)


def repeats(value: dict[str, Any], name: str) -> bool:
    """Whether the object has the name more than once."""
    return isinstance(value, Repeating) and name in value.repeated
