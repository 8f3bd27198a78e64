"""A file or folder that appears under its name when it is complete, or not at all.

It is written under a temporary name in the same folder, and renamed at the end; after an error the
temporary one is removed. Tests: tests/models/writing/test_atomic.py.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def complete(out: Path, *, folder: bool) -> Iterator[Path]:
    """The path to write to, which becomes out if the block ends without an error.

    Raises ValueError if out exists, if its parent is no folder, or if it cannot be written.
    """
    if os.path.lexists(out):
        raise ValueError(f"{out} exists; expected a name that is not in use")
    if not out.parent.is_dir():
        raise ValueError(f"{out.parent} is not a folder; expected one to write {out} to")
    try:
        # In a folder of its own, so that nothing can have the name.
        room = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise unwritable(out, error) from None
    path = room / out.name
    try:
        if folder:
            path.mkdir()
        yield path
        path.rename(out)
    except OSError as error:
        if error.strerror is None:  # not of the system: about a file that is read
            raise
        raise unwritable(out, error) from None
    finally:
        shutil.rmtree(room, ignore_errors=True)


def unwritable(path: Path, error: OSError) -> ValueError:
    return ValueError(f"{path} cannot be written: {error.strerror}")
