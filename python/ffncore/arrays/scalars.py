"""Checks of arguments that are not arrays: names from a list, integers, and finite numbers.

Each function returns the checked value, and raises TypeError or ValueError with the name of the
argument. Tests: tests/values/test_errors.py, tests/values/test_routing_errors.py.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import numpy as np

from .dtypes import FLOAT64


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name: the nearest known one, or all of them."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    if close:
        return f"the nearest known name is {close[0]!r}"
    return "known are " + ", ".join(names)


def check_names(argument: str, names: object, known: tuple[str, ...]) -> tuple[str, ...]:
    """A tuple of names, all of them known, such as needs=."""
    if isinstance(names, str) or not hasattr(names, "__iter__"):
        raise TypeError(
            f"{argument} is of type {type(names).__name__}; expected a tuple of names like ('x',)"
        )
    checked = tuple(names)
    for name in checked:
        if not isinstance(name, str):
            raise TypeError(
                f"{argument} has an entry of type {type(name).__name__}; expected a name"
            )
        if name not in known:
            raise ValueError(f"{argument} has {name!r}, which is not known; {nearest(name, known)}")
    return checked


def known(name: str, value: object, table: dict[str, int]) -> int:
    """The number that a table has for a name."""
    if not isinstance(value, str):
        raise TypeError(f"{name} is of type {type(value).__name__}; expected a name")
    if value not in table:
        raise ValueError(f"{name} {value!r} is not known; {nearest(value, table)}")
    return table[value]


def integer(name: str, value: object) -> int:
    """An int from an integer of Python or numpy."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} is of type {type(value).__name__}; expected an integer")
    return int(value)


def number(name: str, value: object, dtype: np.dtype[Any] = FLOAT64) -> float:
    """A finite float that does not become 0 or infinity in dtype, unless it is 0."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is of type {type(value).__name__}; expected a number")
    result = float(value)
    if not math.isfinite(result):
        raise ValueError(f"{name} is {result}; expected a finite number")
    with np.errstate(over="ignore", under="ignore"):
        there = dtype.type(result)
    if (there == 0) != (result == 0) or not np.isfinite(there):
        size = "large" if result and there else "small"
        raise ValueError(
            f"{name} is {result}, which is too {size} for {dtype.name}; "
            f"expected a number that {dtype.name} can compute with"
        )
    return result
