"""`python -m ffncore run MODEL x.npy y.npy`: one layer of a checkpoint on an array in a file.

Tests: tests/cli/test_run.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

import ffncore as fc

from . import options

HELP = """\
Computes one layer of a checkpoint: reads x from a file, and writes y.

x is an array [..., d_model] as np.save writes it, with the dtype of the layer
(float32 also goes with layers of 16 bits). y has the shape and the dtype of x.
np.save stores bfloat16 as raw bytes of two, dtype V2: such an x is read as
bfloat16 if the layer is in bfloat16, and y is stored in the same way.

The exit status is 0, or 2 if an argument or a file is refused.
"""
EXAMPLES = ("run path/to/model --layer 0 x.npy y.npy",)

# The first bytes of a file that np.save wrote.
_MAGIC = b"\x93NUMPY"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help=options.PATH)
    add("x", metavar="X", type=Path, help="a .npy file with an array [..., d_model]")
    add("y", metavar="Y", type=Path, help="the .npy file to write; an existing one is replaced")
    add("--layer", metavar="N", type=int, default=0, help="number of the layer (default: 0)")
    add("--part", metavar="NAME", help="another block of the layer (default: its main block)")
    add(
        "--dtype",
        choices=("float32", "float64", "bfloat16", "float16"),
        help="to which the weights are converted (default: as they are stored)",
    )
    options.add_loading(parser)
    options.add_settings(parser)


def run(args: argparse.Namespace) -> int:
    """The command; returns its exit status."""
    try:
        x = _read(args.x)
        if not args.y.parent.is_dir():  # before a layer is loaded and computed
            raise ValueError(f"{args.y.parent} is not a folder; expected one to write {args.y} to")
        with options.settings(args):
            given = {"dtype": args.dtype, "part": args.part, **options.loading(args)}
            layer = fc.load(args.model, args.layer, **given)
            if x.dtype == np.dtype("V2") and layer.dtype.name == "bfloat16":
                x = x.view(layer.dtype)
            y = layer(x)
        _write(args.y, y)
    except options.ERRORS as error:
        return options.refused("run", error)
    shape = ", ".join(map(str, y.shape))
    print(options.printable(f"{layer!r}: y [{shape}] {y.dtype.name} in {args.y}"))
    return 0


def _read(path: Path) -> np.ndarray[Any, Any]:
    """The array of a .npy file; nothing that is pickled is read."""
    try:
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise ValueError(f"{path} is not a .npy file; expected one that np.save wrote")
            file.seek(0)
            try:
                return np.lib.format.read_array(file, allow_pickle=False)
            except (ValueError, MemoryError) as error:
                raise ValueError(
                    f"{path} cannot be read: {error}; expected an array of numbers that np.save "
                    f"wrote"
                ) from None
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; expected a .npy file") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}; expected a file") from None


def _write(path: Path, y: np.ndarray[Any, Any]) -> None:
    try:
        with path.open("wb") as file:  # np.save would add .npy to another name
            np.save(file, y, allow_pickle=False)
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}") from None
