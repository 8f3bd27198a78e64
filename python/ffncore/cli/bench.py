"""`python -m ffncore bench`: how much of the machine's limit each shape reaches.

Each row is printed as soon as it is measured. --json also appends it to a file as a JSON line, with
the machine's facts first, and --picture draws the rows at the end. What the rows say:
bench/rows.py. Tests: tests/cli/test_cli.py, tests/bench/test_bench.py.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import ffncore as fc

from ..bench import against, picture, shapes
from ..bench.against import PeerError
from ..bench.limits import LimitError
from ..bench.measure import Row
from ..bench.mixture_shapes import GROUP, MOE_SHAPES, ROUTINGS
from ..bench.plan import PARTS, Plan
from ..bench.printing import describe, title
from ..bench.rows import rows
from . import options

_NAMES = [shape.name for shape in (*shapes.SHAPES, *MOE_SHAPES)]
HELP = f"""\
Measures the speed of layers as a share of this machine's limit.

The limits, the FMA peak and the read bandwidth, are measured first; the run
ends with an error if the peak cannot be right. A shape is one of
{textwrap.fill(", ".join([*_NAMES, f"{GROUP} (all mixtures of experts)"]), 78)},
or {shapes.FORM}.
Without "gated" a layer is plain. E/k makes it a mixture of E experts, with k
of them for each token.

modes
  packed  a forward pass with packed weights
  raw     a forward pass with weights that are not packed
  train   a forward and a backward pass, not packed, with all gradients

columns
  share   time at the limit / measured time, the median of the rounds
  best    the same ratio, of the shortest times in all rounds
  quiet   rounds without other load on the cores / all rounds
  bound   whether FLOPs or bytes are the limit
  takes   the other library's time over ffncore's, and its share of the limit
  hit     of a mixture: experts that have at least one token
  dense   of a mixture: time of a dense layer with as many FLOPs over its time
  uniform of a mixture: time with uniform routing over its time
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
    options.add_settings(parser)
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
