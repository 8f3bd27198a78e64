"""The number of threads that calls use.

The default is FFNCORE_NUM_THREADS, or else the number of physical cores that the process may use
(by its affinity mask and its cgroup quota). The setting holds for the whole process. The bits of a
result do not depend on it.

threadpoolctl can read and limit this number, too, after a call of `register_threadpoolctl`. If
threadpoolctl was imported before ffncore, importing ffncore makes that call.
Tests: tests/runtime/test_threads.py.
"""

from __future__ import annotations

import operator
import sys
from types import TracebackType
from typing import Any

from .. import _core

_MOST = 2**31 - 1  # the largest int32, the type in the C ABI


def set_num_threads(n: int) -> None:
    """Set the number of threads that calls in this process may use.

    n  at least 0; 0 means the default: FFNCORE_NUM_THREADS, or else the number of physical cores

    Raises ValueError for a negative number, and TypeError if n is not an integer. Results have the
    same bits for any number of threads.

    See also: fc.num_threads, which sets it for a with block.

    >>> fc.set_num_threads(2)
    """
    _core.set_num_threads(_checked(n))


def get_num_threads() -> int:
    """Return the number of threads that the next call may use.

    >>> fc.get_num_threads()
    """
    return _core.num_threads()


class num_threads:
    """Use n threads inside a with block; at its end the former number is set again.

    n  as for fc.set_num_threads

    Raises ValueError and TypeError as fc.set_num_threads does.

    >>> with fc.num_threads(1):
    ...     y = fc.ffn(x, weights, activation="silu")
    """

    def __init__(self, n: int) -> None:
        self._n = _checked(n)
        # A list, because the same object may be entered again inside its own block.
        self._before: list[int] = []

    def __enter__(self) -> num_threads:
        self._before.append(get_num_threads())
        _core.set_num_threads(self._n)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _core.set_num_threads(self._before.pop())


def register_threadpoolctl() -> None:
    """Register the thread pool with threadpoolctl, under user_api "ffncore".

    Further calls do nothing. Raises ImportError if threadpoolctl is not installed.
    """
    import threadpoolctl

    global _registered
    if _registered:
        return

    class FFNCoreController(threadpoolctl.LibController):  # type: ignore[misc]
        user_api = "ffncore"
        internal_api = "ffncore"
        filename_prefixes = ("libffncore",)
        check_symbols = ("ffncore_num_threads", "ffncore_set_num_threads")

        def get_num_threads(self) -> int:
            return int(self.dynlib.ffncore_num_threads())

        def set_num_threads(self, num_threads: int) -> None:
            self.dynlib.ffncore_set_num_threads(num_threads)

        # threadpoolctl calls this before it looks at check_symbols, so that it is also called for
        # other libraries of that prefix.
        def get_version(self) -> str:
            return _core.__version__

        def set_additional_attributes(self) -> None:
            self.isa = _core.isa()

    threadpoolctl.register(FFNCoreController)
    _registered = True


_registered = False


def _checked(n: Any) -> int:
    if isinstance(n, bool):
        raise TypeError(f"n is {n}; expected an integer >= 0")
    try:
        value = operator.index(n)
    except TypeError:
        raise TypeError(f"n is of type {type(n).__name__}; expected an integer >= 0") from None
    if not 0 <= value <= _MOST:
        raise ValueError(f"n is {value}; expected an integer >= 0 (0: the default) and < 2**31")
    return value


if "threadpoolctl" in sys.modules:
    register_threadpoolctl()
