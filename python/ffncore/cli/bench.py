"""`python -m ffncore bench`: how much of the machine's limit each shape reaches.

Each row is printed as soon as it is measured. --json also appends it to a file as a JSON line, with
the machine's facts first, and --picture draws the rows at the end. What the rows say:
bench/rows.py. Tests: tests/cli/test_cli.py, tests/bench/test_bench.py.
"""

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import ffncore as fc

from ..bench import against, picture, shapes
from ..bench.against import PeerError
from ..bench.limits import LimitError
from ..bench.measure import Row
from ..bench.mixture_shapes import ROUTINGS
from ..bench.plan import PARTS, Plan
from ..bench.printing import describe, title
from ..bench.rows import rows

HELP = f"""\
Measures the limits of this machine (the FMA peak and the read bandwidth), and then the share of
them that each layer reaches. The run ends with an error if the measured peak cannot be right.

A shape is a name ({", ".join(shape.name for shape in shapes.SHAPES)}),
{shapes.FORM}, such as 1536x4096:silu:gated, or a mixture of experts:
{shapes.FORM}:E/k with E experts and k of them per token.
Without "gated" a layer is plain.

modes
  packed  one forward pass with packed weights
  raw     one forward pass with the weights as they are
  train   a forward and a backward pass with the weights as they are, and all gradients

columns
  share   of the limit: the median over the rounds
  best    the shortest limit over the shortest round
  quiet   rounds in which nobody else worked on the cores, of all rounds
  bound   whether FLOPs or bytes are the limit
  takes   with --against: the other library's time over ffncore's, and its own share
"""
EXAMPLES = (
    "bench --quick",
    "bench --shapes 1536x4096:silu:gated --tokens 64 --against numpy --picture out.png",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--quick", action="store_true", help="four shapes, four numbers of tokens, short rounds")
    add("--shapes", metavar="SHAPES", help="comma-separated (default: eight layers of models)")
    add(
        "--tokens", metavar="NUMBERS", help="comma-separated, as 1,64,512 (default: ten, 1 to 4096)"
    )
    add("--modes", metavar="MODES", help="comma-separated (default: packed,raw,train)")
    add(
        "--against",
        metavar="PEERS",
        help=f"run the same layer in these libraries in turn, of {', '.join(against.NAMES)} "
        "(default: none)",
    )
    add("--picture", metavar="FILE", type=Path, help="draw the shares; needs matplotlib")
    add("--json", metavar="FILE", help="append every result as a JSON line")
    add(
        "--dtype",
        default="float32",
        choices=("float32", "float64", "bfloat16", "float16"),
        help="of the weights (default: %(default)s)",
    )
    add("--x-dtype", choices=("float32",), help="of x, with weights of 16 bits (default: --dtype)")
    add(
        "--routing",
        metavar="ROUTINGS",
        help=f"of mixtures, comma-separated (default: {','.join(ROUTINGS)})",
    )
    add(
        "--parts",
        metavar="PARTS",
        help=f"comma-separated (default: {','.join(PARTS)}; with --shapes: {PARTS[0]})",
    )
    add("--isa", metavar="NAME", help="instruction set (default: the one that ffncore would use)")
    add("--threads", metavar="N", type=int, help="(default: as many as ffncore would use)")
    add("--seconds", metavar="S", type=float, help="for each case (default: 0.6, quick 0.25)")


def run(args: argparse.Namespace) -> int:
    """The command; returns its exit status."""
    try:
        plan = Plan(args)
    except (ValueError, TypeError) as error:
        print(f"bench: {error}")
        return 2
    with ExitStack() as stack:
        try:
            if plan.isa is not None:
                stack.enter_context(fc.using_isa(plan.isa))
            if plan.threads is not None:
                stack.enter_context(fc.num_threads(plan.threads))
            file = None
            if args.json:
                file = stack.enter_context(Path(args.json).open("a", encoding="utf-8"))
        except (OSError, ValueError) as error:
            print(f"bench: {error}")
            return 2
        machine, cases = "", []
        try:
            for row in rows(plan):
                text = describe(row)
                if text:
                    print(text, flush=True)
                if file is not None:
                    _write(file, row)
                if row["kind"] == "machine":
                    machine = f"{title(row)}, {plan.dtype}"
                elif row["kind"] == "case":
                    cases.append(row)
            if args.picture is not None:
                picture.draw(cases, machine, args.picture)
                print(f"picture: {args.picture}")
        except (LimitError, PeerError, OSError, ValueError) as error:
            print(f"bench: {error}")
            return 1
    return 0


def _write(file: IO[str], row: Row) -> None:
    file.write(json.dumps({k: _rounded(v) for k, v in row.items()}) + "\n")
    file.flush()


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
