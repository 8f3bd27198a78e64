"""Values that can be copied and sent to another process: copy.copy, copy.deepcopy, pickle.

    copy.copy       another object of the same arrays
    copy.deepcopy   arrays of its own; one array in two places stays one
    pickle          likewise, by way of bytes

_state returns what a value is made from. Everything that was derived from it, such as views and the
tuples that the compiled core takes, is derived again. _remade runs the checks of a constructor,
because kernels rely on the sizes and ids of a value, and a pickle may contain anything. Only their
own library can copy arrays on a GPU; values that hold such arrays are refused with a sentence.

Tests: tests/values/test_copying.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any, TypeVar

from ..arrays.libraries import library_of

T = TypeVar("T", bound="Copied")


class Copied:
    """What is here serves dataclasses: the state is the fields, and the constructor checks them."""

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
                        f"copy.deepcopy and pickle (copy arrays of a GPU with their library, and "
                        f"make the {kind.__name__} again)"
                    )
        return _remake, (kind, state)


def _remake(kind: type[Copied], state: dict[str, Any]) -> Copied:
    return kind._remade(**state)


def _attributes(value: object) -> Iterator[str]:
    yield from getattr(value, "__dict__", ())
    for kind in type(value).__mro__:
        yield from (name for name in getattr(kind, "__slots__", ()) if hasattr(value, name))
