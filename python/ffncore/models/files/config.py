"""config.json of a checkpoint: its keys, their types and their defaults.

A missing key has the default of the model's configuration class (defaults.py); if the class has no
default, it is an error that names the key. The value of a key has to be of the type that the code
needs: "8" is not 8, true is not 1, and null is an error. If a model has several parts, such as text
and vision, the keys are those of its text part. Tests: tests/models/test_config_json.py.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .defaults import DEFAULTS, NESTED, SYNONYMS
from .json_text import brief, read_object


class Config:
    """The keys of one config.json, each of which is checked when it is read."""

    def __init__(self, path: Path, whole: Mapping[str, Any]) -> None:
        self.path = path
        self.whole = whole
        self.there = bool(whole)
        own = whole.get("text_config")
        if own is not None and not isinstance(own, dict):
            raise self.wrong("text_config", "an object")
        outer = whole.get("model_type")
        if own is None:
            own = {} if isinstance(outer, str) and outer in NESTED else whole
        self._own: Mapping[str, Any] = own
        self.model_type: Any = own.get("model_type", outer)
        name = self.model_type if isinstance(self.model_type, str) else ""
        self.knows = name in DEFAULTS
        self._defaults: Mapping[str, Any] = DEFAULTS.get(name, {})

    def names_model(self) -> bool:
        """Whether the file has a model_type, of any value."""
        return "model_type" in self.whole or "model_type" in self._own

    def reads(self, key: str) -> bool:
        """Whether the code of this model reads the key; for an unknown model_type, whether the
        file has it.
        """
        return key in self._defaults if self.knows else key in self._own

    def integer(self, key: str, least: int, most: int | None = None, of: str = "") -> int:
        """The integer of a key, from `least` to `most`; `of` says what `most` is."""
        value = self._value(key)
        if type(value) is not int or value < least or (most is not None and value > most):
            expected = f"an integer of at least {least}"
            if most is not None:
                expected += f" and at most {most}, {of}"
            raise self.wrong(key, expected)
        return value

    def number(self, key: str) -> float:
        """The number of a key, finite and above 0."""
        value = self._value(key)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise self.wrong(key, "a finite number above 0")
        try:
            return float(value)
        except OverflowError:
            raise self.wrong(key, "a number that a float can hold") from None

    def flag(self, key: str) -> bool:
        value = self._value(key)
        if type(value) is not bool:
            raise self.wrong(key, "true or false")
        return value

    def text(self, key: str, known: tuple[str, ...] = ()) -> str:
        """The text of a key, which is one of `known`, if there are any."""
        value = self._value(key)
        if type(value) is not str or (known and value not in known):
            raise self.wrong(key, " or ".join(map(repr, known)) if known else "a name")
        synonyms = SYNONYMS.get((self.model_type, key), {}) if self.knows else {}
        return synonyms.get(value, value)

    def require(self, key: str, value: str) -> None:
        """Check that a key has the only value that ffncore computes, if it exists or is read."""
        if key in self._own or key in self._defaults:
            self.text(key, (value,))

    def quantisation(self) -> str | None:
        """The quant_method of the file, or None."""
        for part in (self.whole, self._own):
            told = part.get("quantization_config")
            if isinstance(told, dict) and isinstance(told.get("quant_method"), str):
                return str(told["quant_method"])
        return None

    def _value(self, key: str) -> Any:
        if key in self._own:
            return self._own[key]
        default = self._defaults.get(key)
        if default is None:
            raise ValueError(
                f"{self.path} has no {key}, for which model_type {brief(self.model_type)} has no "
                f"default; expected a value"
            )
        return default

    def wrong(self, key: str, expected: str) -> ValueError:
        part = self.whole if key == "text_config" else self._own
        found = part[key] if key in part else self._defaults.get(key)
        return ValueError(f"{self.path} has {key} {brief(found)}; expected {expected}")


def read_config(path: Path) -> Config:
    """Read the file; if it does not exist, return an empty Config."""
    return Config(path, read_object(path) if os.path.lexists(path) else {})
