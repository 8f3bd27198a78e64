"""Which instruction set the kernels use, and what this build and machine are.

The best one is chosen when the first call is made; FFNCORE_ISA names another. All give the same
bits, so this is for tests and for measuring. The setting holds for the whole process.
Tests: tests/runtime/test_dispatch.py.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from .. import _core


def available_isas() -> tuple[str, ...]:
    """Instruction sets that this build has and this machine can run, the best one last."""
    return tuple(_core.isas())


def active_isa() -> str:
    """The instruction set that the next call uses."""
    return _core.isa()


@contextmanager
def using_isa(name: str | None) -> Iterator[str]:
    """Use one instruction set inside a with block, in all threads; None means the default."""
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name is of type {type(name).__name__}; expected a str or None")
    before = active_isa()
    _core.use_isa(name)
    try:
        yield active_isa()
    finally:
        _core.use_isa(before)


def cpu_features() -> tuple[str, ...]:
    """What of this CPU the kernels know: "avx2", "fma", "avx512f" and so on."""
    return tuple(_core.cpu_features().split())


def show_config(file: TextIO | None = None) -> None:
    """Print version, build, instruction sets and threads: what belongs into a report of a bug."""
    import numpy as np

    from ..backends.cuda.library import status

    rows = {
        "ffncore": _core.__version__,
        "build": _core.build_info(),
        "cpu features": " ".join(cpu_features()) or "none that the kernels use",
        "instruction sets": ", ".join(available_isas()),
        "active": active_isa(),
        "threads": str(_core.num_threads()),
        "cuda": status(),
        "numpy": np.__version__,
        "python": sys.version.split()[0],
    }
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:{width}}  {value}", file=file)
