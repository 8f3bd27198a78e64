"""config.json: what it says about a layer, or what the model's own code takes where it is silent.

A key that is absent has the default of the family's configuration class (defaults.py), or,
where that has none, is asked for by name. One that is there has to be of the kind that the code
computes with: "8" is no 8, true is no 1, and null stands for nothing. Of a model of several parts
the text part counts. Tests: tests/models/test_config_json.py.
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
    """The keys of one config.json, checked where they are asked for."""

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
        """Whether model_type is there at all, whatever it says."""
        return "model_type" in self.whole or "model_type" in self._own

    def reads(self, key: str) -> bool:
        """Whether the code of this model_type reads the key; of an unknown one it may."""
        return key in self._defaults if self.knows else key in self._own

    def integer(self, key: str, least: int, most: int | None = None, of: str = "") -> int:
        """`of` says what `most` is."""
        value = self._value(key)
        if type(value) is not int or value < least or (most is not None and value > most):
            expected = f"a whole number of at least {least}"
            if most is not None:
                expected += f" and at most {most}, {of}"
            raise self.wrong(key, expected)
        return value

    def number(self, key: str) -> float:
        """Above 0 and finite."""
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
        """Any text, or one that is known."""
        value = self._value(key)
        if type(value) is not str or (known and value not in known):
            raise self.wrong(key, " or ".join(map(repr, known)) if known else "a name")
        synonyms = SYNONYMS.get((self.model_type, key), {}) if self.knows else {}
        return synonyms.get(value, value)

    def require(self, key: str, value: str) -> None:
        """The only value of the key that is computed here, where the key is there or is read."""
        if key in self._own or key in self._defaults:
            self.text(key, (value,))

    def quantisation(self) -> str | None:
        """quant_method, where the file names one."""
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
                f"{self.path} has no {key}, for which {brief(self.model_type)} has no default; "
                f"expected it there"
            )
        return default

    def wrong(self, key: str, expected: str) -> ValueError:
        part = self.whole if key == "text_config" else self._own
        found = part[key] if key in part else self._defaults.get(key)
        return ValueError(f"{self.path} has {key} {brief(found)}; expected {expected}")


def read_config(path: Path) -> Config:
    """The file, or an empty Config where there is none."""
    return Config(path, read_object(path) if os.path.lexists(path) else {})
