"""The base class of values that can be copied and pickled.

    copy.copy       another object that refers to the same arrays
    copy.deepcopy   an object with arrays of its own; an array that occurs twice is copied once
    pickle          the same by way of bytes, also to another process

_state returns the values that an object is made from. _remade makes an object from them, derives
the rest again (views, the structs of the compiled core), and runs the checks of the constructor:
kernels rely on sizes and ids, and a pickle may contain anything. Arrays on a GPU can only be copied
by their own library, so objects that hold such arrays raise TypeError.

Tests: tests/values/test_copying.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any, TypeVar

from ..arrays.libraries import library_of

T = TypeVar("T", bound="Copied")


class Copied:
    """These methods are for dataclasses: the state is the fields, and the constructor checks it.

    Other classes override _state and _remade.
    """

    __slots__ = ()

    def _state(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

    @classmethod
    def _remade(cls: type[T], *_: Any, **state: Any) -> T:
        return cls(**state)

    def __copy__(self: T) -> T:
        made = object.__new__(type(self))
        for name in _attributes(self):
            object.__setattr__(made, name, getattr(self, name))
        return made

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        kind, state = type(self), self._state()
        for name, value in state.items():
            for part in value if isinstance(value, tuple) else (value,):
                library = library_of(part)
                if library is not None:
                    raise TypeError(
                        f"{kind.__name__}.{name} is a {library.noun}; expected numpy arrays for "
                        f"copy.deepcopy and pickle (copy GPU arrays with their library, and make "
                        f"the {kind.__name__} again)"
                    )
        return _remake, (kind, state)


def _remake(kind: type[Copied], state: dict[str, Any]) -> Copied:
    return kind._remade(**state)


def _attributes(value: object) -> Iterator[str]:
    yield from getattr(value, "__dict__", ())
    for kind in type(value).__mro__:
        yield from (name for name in getattr(kind, "__slots__", ()) if hasattr(value, name))
