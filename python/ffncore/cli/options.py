"""Options that several commands have: how a checkpoint is read, and settings of the process.

A command reports what is wrong with its arguments or files in one sentence on stderr, and its exit
status is then 2. Tests: tests/cli/test_options.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import ffncore as fc

from .. import models

# What fc.load, fc.models.layers and the files of a command raise.
ERRORS = (OSError, ValueError, TypeError, ImportError)

PATH = "a folder with config.json and .safetensors files, or a .safetensors or .gguf file"


def add_family(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--family",
        metavar="NAME",
        help="read a model_type that ffncore does not know with the tensor names of this family, "
        f"one of {', '.join(row.name for row in (*models.FAMILIES, *models.MOE_FAMILIES))} "
        "(default: the family of the model_type)",
    )


def add_loading(parser: argparse.ArgumentParser) -> None:
    """The options of fc.load, except for its layer and dtype."""
    add_family(parser)
    parser.add_argument(
        "--prefix",
        metavar="PREFIX",
        help="what stands before the layers in the tensors' names, a part of it, or a tower such "
        "as vision (default: the language model)",
    )
    parser.add_argument(
        "--activation",
        metavar="NAME",
        help="such as silu (default: that of config.json)",
    )


def loading(args: argparse.Namespace) -> dict[str, Any]:
    """The values of these options, for fc.load."""
    return {name: getattr(args, name) for name in ("family", "prefix", "activation")}


def add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--isa",
        metavar="NAME",
        help="instruction set (default: the one that ffncore would use)",
    )
    parser.add_argument(
        "--threads",
        metavar="N",
        type=int,
        help="of a call (default: as many as ffncore would use)",
    )


@contextmanager
def settings(args: argparse.Namespace) -> Iterator[None]:
    """Use the instruction set and the number of threads; ValueError for those that are wrong."""
    known = fc.available_isas()
    if args.isa is not None and args.isa not in known:
        raise ValueError(f"--isa is {args.isa!r}; expected one of {', '.join(known)}")
    if args.threads is not None and args.threads < 1:
        raise ValueError(f"--threads is {args.threads}; expected at least 1")
    with ExitStack() as stack:
        if args.isa is not None:
            stack.enter_context(fc.using_isa(args.isa))
        if args.threads is not None:
            stack.enter_context(fc.num_threads(args.threads))
        yield


def refused(command: str, error: Exception) -> int:
    """Print the error of a command; returns its exit status."""
    print(printable(f"{command}: {error}"), file=sys.stderr)
    return 2


def printable(line: str) -> str:
    """The line with escapes for what a terminal obeys or cannot show: tensors may have any name."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    encoding = sys.stdout.encoding or "utf-8"
    return shown.encode(encoding, "backslashreplace").decode(encoding)
