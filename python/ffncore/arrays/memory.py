"""Large aligned memory: for packed weights, and for what a forward pass saves.

From 2 MiB on in huge pages, because on 4 KiB pages the read bandwidth of a large array drops.

What a forward pass saves lives until the backward pass is done, and the next step wants as much
again. Fresh pages cost the system's time to clear, 3 to 6 % of a training step; so the last two
such buffers are kept when they are released, and used again. A buffer is released when the last
view of it is gone: every view holds on to an owner, whose end gives the memory back.

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

# What a vector load wants; one line of the cache.
LINE = 64
_HUGE_PAGE = 2 * 2**20

# Two, because a loop that assigns `y, saved = ...` holds the old one while it makes the new one.
_KEPT = 2
# A buffer that is larger than this many times what is asked for stays for somebody else.
_WASTE = 2

# append and pop of a deque are atomic: owners may end in any thread, and inside a collection.
_released: deque[Array] = deque(maxlen=_KEPT)


def allocate(nbytes: int) -> Array:
    """Aligned bytes, zero; in huge pages where they fill one and the system grants them."""
    alignment = LINE
    if nbytes < _HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        raw = np.zeros(nbytes + alignment, np.uint8)
    else:
        alignment = _HUGE_PAGE
        pages = mmap.mmap(-1, nbytes + alignment, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):  # a kernel without huge pages: small ones do
            pages.madvise(mmap.MADV_HUGEPAGE)
        raw = np.frombuffer(pages, np.uint8)
    start = -raw.ctypes.data % alignment
    return raw[start : start + nbytes]


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An array of any values; a large one is aligned, which lets kernels write whole lines."""
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < _HUGE_PAGE:
        return np.empty(shape, dtype)
    return allocate(nbytes).view(dtype).reshape(shape)


def reusable(nbytes: int) -> Array:
    """Bytes of any value, 1-D; in a released buffer where one fits."""
    if nbytes < _HUGE_PAGE:  # malloc has such pieces at hand
        return allocate(nbytes)
    memory = _take(nbytes)
    return np.asarray(_Owner(allocate(nbytes) if memory is None else memory, nbytes))


def clear_workspace() -> None:
    """Free the memory kept for later calls: the kernels' scratch, and released saved buffers.

    Both are bounded: scratch by what one call may take, saved buffers by the two last ones.
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
    """Such memory as a part of what is copied: a copy of it is aligned as well as it is."""

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
    """What all views of a buffer hold on to, as their base; gives the memory back at its end."""

    __slots__ = ("__array_interface__", "_memory")

    def __init__(self, memory: Array, nbytes: int) -> None:
        self._memory = memory
        self.__array_interface__ = {
            "version": 3,
            "data": (memory.ctypes.data, False),
            "shape": (nbytes,),
            "typestr": "|u1",
        }

    # Bound as a default: at the interpreter's end the module's names may be gone.
    def __del__(self, released: deque[Array] = _released) -> None:
        released.append(self._memory)
