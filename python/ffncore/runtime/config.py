"""The instruction set that the kernels use, and a description of this build and this machine.

The first call chooses the best instruction set of the machine; the environment variable FFNCORE_ISA
can name another one. All of them give the same bits, so that choosing one is only useful for tests
and measurements. The setting holds for the whole process. Tests: tests/runtime/test_dispatch.py.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from .. import _core


def available_isas() -> tuple[str, ...]:
    """Return the instruction sets that this build has and this machine can run, the best one last.

    The names are "scalar", "avx2", "avx512" and "avx512bf16".

    >>> fc.available_isas()[-1]
    """
    return tuple(_core.isas())


def active_isa() -> str:
    """Return the name of the instruction set that the next call uses.

    Raises RuntimeError if FFNCORE_ISA has a name that is not in fc.available_isas().

    >>> fc.active_isa()
    """
    return _core.isa()


@contextmanager
def using_isa(name: str | None) -> Iterator[str]:
    """Use an instruction set inside a with block; it applies to all threads of the process.

    name  one of fc.available_isas(); None: the best one, or that of FFNCORE_ISA

    The value of the with statement is the name of the instruction set. At the end of the block the
    former one is used again.

    Raises ValueError for a name that this build or this machine does not have, and TypeError if
    name is not a str or None.

    >>> with fc.using_isa("scalar"):
    ...     y = fc.ffn(x, weights, activation="silu")
    """
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name is of type {type(name).__name__}; expected a str or None")
    before = active_isa()
    _core.use_isa(name)
    try:
        yield active_isa()
    finally:
        _core.use_isa(before)


def cpu_features() -> tuple[str, ...]:
    """Return the features of this CPU that the kernels may use, such as "avx2" and "fma".

    >>> "fma" in fc.cpu_features()
    """
    return tuple(_core.cpu_features().split())


def show_config(file: TextIO | None = None) -> None:
    """Print the version, the build, the CPU's features and the settings, for bug reports.

    file  an object with a write method; None: sys.stdout

    >>> fc.show_config()
    """
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
