"""How many threads a call uses.

The default is the number of physical cores that this process may use (affinity mask, cgroup quota),
or FFNCORE_NUM_THREADS. The setting holds for the whole process; the bits of a result do not depend
on it. threadpoolctl sees and limits the pool, too, once `register_threadpoolctl` has been called;
this happens by itself where threadpoolctl was imported before ffncore.
Tests: tests/runtime/test_threads.py.
"""

from __future__ import annotations

import operator
import sys
from types import TracebackType
from typing import Any

from .. import _core

_MOST = 2**31 - 1  # what the C ABI's int32 holds


def set_num_threads(n: int) -> None:
    """Use `n` threads from now on; 0 means the default."""
    _core.set_num_threads(_checked(n))


def get_num_threads() -> int:
    """The number of threads that the next call may use."""
    return _core.num_threads()


class num_threads:
    """Context manager: `with num_threads(n):` sets n, and the former number at its end."""

    def __init__(self, n: int) -> None:
        self._n = _checked(n)
        self._before: list[
            int
        ] = []  # a list, so that one object may be entered again inside itself

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
    """Make threadpoolctl know this pool (user_api "ffncore"); to be called once, any time."""
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

        # Called before check_symbols is looked at, so also for other libraries of that prefix.
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
