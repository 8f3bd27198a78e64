"""config.json of a checkpoint: its keys, their types and their defaults.

A missing key has the default of the model's configuration class (defaults.py); if the class has no
default, it is an error that names the key. The value of a key has to be of the type that the code
needs: "8" is not 8, true is not 1, and null is an error.

A model of several towers, such as text and vision, has a Config for each: part("vision") reads
vision_config. The first Config is that of the text model. A key with dots is a path into objects
and lists: "ffn_config.moe_top_k", "mlp_multipliers.0". "new|old" are two keys for one thing. Tests:
tests/models/test_config_json.py, tests/models/test_towers.py.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .defaults import DEFAULTS, SYNONYMS
from .json_text import brief, read_object
from .towers import FLAT, PARTS, TOWERS


class Config:
    """The keys of one tower in config.json, each of which is checked when it is read."""

    def __init__(
        self,
        path: Path,
        whole: Mapping[str, Any],
        there: bool = True,
        tower: str = "",
        layer: int | None = None,
        by_layer: tuple[str, ...] = (),
    ) -> None:
        self.path = path
        self.whole = whole
        self.there = there
        self.tower = tower
        self.layer, self._by_layer = layer, by_layer
        outer = whole.get("model_type")
        self.outer = outer if isinstance(outer, str) else ""
        models = TOWERS.get(self.outer, {})
        kind = tower if tower in PARTS else "text"
        if kind in ("encoder", "decoder") and kind not in models:
            kind = "text"  # both read the same keys
        own = self._part(whole, kind)
        told = models.get(kind, outer)
        if own is None:
            nested = self.outer in TOWERS and self.outer not in FLAT
            own = {} if nested and kind in models else whole
            self.model_type: Any = told
        else:
            self.model_type = own.get("model_type", told)
        self._own: Mapping[str, Any] = own
        name = self.model_type if isinstance(self.model_type, str) else ""
        self.knows = name in DEFAULTS
        self._defaults: Mapping[str, Any] = DEFAULTS.get(name, {})

    def _part(self, whole: Mapping[str, Any], kind: str) -> Mapping[str, Any] | None:
        for key in PARTS[kind]:
            own = whole.get(key)
            if own is None:
                continue
            if not isinstance(own, dict):
                raise ValueError(f"{self.path} has {key} {brief(own)}; expected an object")
            return self._part(own, kind) or own
        inner = whole.get("thinker_config")
        return self._part(inner, kind) if isinstance(inner, dict) else None

    def part(self, tower: str) -> Config:
        """The Config of another tower."""
        return Config(self.path, self.whole, self.there, tower)

    def at(self, layer: int, by_layer: tuple[str, ...]) -> Config:
        """This Config for one layer: lists of the keys `by_layer` have an entry for each layer."""
        return Config(self.path, self.whole, self.there, self.tower, layer, by_layer)

    def names_model(self) -> bool:
        """Whether the file has a model_type, of any value."""
        return "model_type" in self.whole or "model_type" in self._own

    def reads(self, key: str) -> bool:
        """Whether the code of this model reads the key; for an unknown model_type, whether the
        file has it.
        """
        if self.knows:
            return any(name in self._defaults for name in key.split("|"))
        return _at(self._own, key) is not _NOTHING

    def has(self, key: str) -> bool:
        """Whether the file has the key, with another value than null."""
        return _at(self._own, key) not in (_NOTHING, None)

    def is_null(self, key: str) -> bool:
        """Whether the file has null for the key."""
        return _at(self._own, key) is None

    def integer(self, key: str, least: int, most: int | None = None, of: str = "") -> int:
        """The integer of a key, from `least` to `most`; `of` says what `most` is."""
        value = self._value(key)
        if type(value) is not int or value < least or (most is not None and value > most):
            expected = f"an integer of at least {least}"
            if most is not None:
                expected += f" and at most {most}, {of}"
            raise self.wrong(key, expected)
        return value

    def number(self, key: str, *, least: float | None = None) -> float:
        """The number of a key, finite and above 0, or at least `least`."""
        value = self._value(key)
        sound = type(value) in (int, float) and -math.inf < value < math.inf
        if not sound or (value <= 0 if least is None else value < least):
            expected = "above 0" if least is None else f"of at least {least:g}"
            expected = "" if least == -math.inf else f" {expected}"
            raise self.wrong(key, f"a finite number{expected}")
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
        if _at(self._own, key) is not _NOTHING or key in self._defaults:
            self.text(key, (value,))

    def quantisation(self) -> str | None:
        """The quant_method of the file, or None."""
        return self.quantisation_config().get("quant_method")

    def quantisation_config(self) -> Mapping[str, Any]:
        """The quantization_config of the file that names a method; {} if there is none."""
        for part in (self.whole, self._own):
            told = part.get("quantization_config")
            if isinstance(told, dict) and isinstance(told.get("quant_method"), str):
                return told
        return {}

    def _value(self, key: str) -> Any:
        value = _at(self._own, key)
        if value is _NOTHING:
            value = self._default(key)
            if value is None:
                raise self._missing(key)
        if key in self._by_layer and isinstance(value, list) and self.layer is not None:
            if self.layer >= len(value):
                raise self.wrong(key, f"an entry for layer {self.layer}")
            value = value[self.layer]
        return value

    def _default(self, key: str) -> Any:
        return next((self._defaults[k] for k in key.split("|") if k in self._defaults), None)

    def _missing(self, key: str) -> ValueError:
        if not self.there:
            return ValueError(
                f"{self.path}, which would give {key}, does not exist; expected it in the "
                f"folder of the tensors"
            )
        source = "which has no default without model_type"
        if self.names_model():
            source = f"for which model_type {brief(self.model_type)} has no default"
        return ValueError(f"{self.path} has no {key}, {source}; expected a value")

    def wrong(self, key: str, expected: str) -> ValueError:
        found = _at(self._own, key)
        found = self._default(key) if found is _NOTHING else found
        key = _named(self._own, key)
        return ValueError(f"{self.path} has {key} {brief(found)}; expected {expected}")


_NOTHING: Any = object()


def _at(value: Any, key: str) -> Any:
    """The value of a key, or of a path with dots; _NOTHING if there is none. Of several keys
    "new|old", the first that is there counts.
    """
    key = _named(value, key)
    for name in [key] if key in value else key.split("."):
        if isinstance(value, list) and name.isdigit() and int(name) < len(value):
            value = value[int(name)]
        elif isinstance(value, dict) and name in value:
            value = value[name]
        else:
            return _NOTHING
    return value


def _named(value: Any, key: str) -> str:
    names = key.split("|")
    return next((name for name in names if name in value), names[0])


def read_config(path: Path) -> Config:
    """Read the file; if it does not exist, return an empty Config."""
    there = os.path.lexists(path)
    return Config(path, read_object(path) if there else {}, there)
