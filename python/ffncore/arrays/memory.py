"""Aligned memory for packed weights, saved activations and gradients.

From 2 MiB on it consists of huge pages, because with pages of 4 KiB the read bandwidth of a large
array drops.

Saved activations are needed until the backward pass, and the next training step needs as much
memory again. The system clears new pages, which takes 3 to 6 % of a training step. So the two
buffers that were released last are kept and used again. A buffer is released when its last view is
gone: all views refer to an _Owner, which puts the buffer back when it is deleted.

Tests: tests/values/test_saved.py, tests/values/test_copying.py.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import _core
from .shapes import Array

# The alignment in bytes for vector loads: one cache line.
LINE = 64
_HUGE_PAGE = 2 * 2**20

# Two, because a loop with `y, saved = ...` still holds the old buffer when it needs a new one.
_KEPT = 2
# A buffer that is larger than this multiple of the needed size is not used for it.
_WASTE = 2

# append and popleft of a deque are atomic, and owners may be deleted in any thread.
_released: deque[Array] = deque(maxlen=_KEPT)


def allocate(nbytes: int) -> Array:
    """Aligned bytes that are zero, in huge pages if they fill one and the system has any."""
    alignment = LINE
    if nbytes < _HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        raw = np.zeros(nbytes + alignment, np.uint8)
    else:
        alignment = _HUGE_PAGE
        pages = mmap.mmap(-1, nbytes + alignment, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):  # small pages, on a system without huge pages
            pages.madvise(mmap.MADV_HUGEPAGE)
        raw = np.frombuffer(pages, np.uint8)
    start = -raw.ctypes.data % alignment
    return raw[start : start + nbytes]


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An array of undefined values. A large one is aligned, so that kernels write whole lines."""
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < _HUGE_PAGE:
        return np.empty(shape, dtype)
    return allocate(nbytes).view(dtype).reshape(shape)


def reusable(nbytes: int) -> Array:
    """Bytes of undefined value, 1-D, from a released buffer if one fits."""
    if nbytes < _HUGE_PAGE:  # malloc reuses such small pieces itself
        return allocate(nbytes)
    memory = _take(nbytes)
    return np.asarray(_Owner(allocate(nbytes) if memory is None else memory, nbytes))


def clear_workspace() -> None:
    """Free the memory that is kept for later calls.

    It is the workspace of the kernels, at most what one call may use, and the memory of the last
    two saved activations that were released.

    >>> fc.clear_workspace()
    """
    _released.clear()
    _core.clear_workspace()


def _take(nbytes: int) -> Array | None:
    for _ in range(_KEPT):
        try:
            memory = _released.popleft()
        except IndexError:
            return None
        if nbytes <= memory.nbytes <= _WASTE * nbytes:
            return memory
        _released.append(memory)
    return None


class Memory:
    """An aligned array in an object that is copied or pickled: its copies are aligned, too."""

    __slots__ = ("array",)

    def __init__(self, array: Array) -> None:
        self.array = array  # 1-D

    def __deepcopy__(self, _: dict[int, Any]) -> Memory:
        return _copied(self.array)

    def __reduce__(self) -> tuple[Callable[[Array], Memory], tuple[Array]]:
        return _copied, (self.array,)


def _copied(array: Array) -> Memory:
    memory = allocate(array.nbytes).view(array.dtype)
    memory[...] = array
    return Memory(memory)


class _Owner:
    """The base of all views of a buffer, which puts the buffer back when it is deleted."""

    __slots__ = ("__array_interface__", "_memory")

    def __init__(self, memory: Array, nbytes: int) -> None:
        self._memory = memory
        self.__array_interface__ = {
            "version": 3,
            "data": (memory.ctypes.data, False),
            "shape": (nbytes,),
            "typestr": "|u1",
        }

    # A default argument, because the names of the module may be gone when the interpreter exits.
    def __del__(self, released: deque[Array] = _released) -> None:
        released.append(self._memory)
