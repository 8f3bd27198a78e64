"""`python -m ffncore bench`: how much of the machine's limit each shape reaches.

Each row is printed as soon as it is measured; --json also appends it to a file as a JSON line, with
the machine's facts first. What the rows say: bench/rows.py. Tests: tests/bench/test_bench.py.
"""

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import ffncore as fc

from ..bench import shapes
from ..bench.limits import LimitError
from ..bench.measure import Row
from ..bench.mixture_shapes import ROUTINGS
from ..bench.plan import PARTS, Plan
from ..bench.printing import describe
from ..bench.rows import rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--quick", action="store_true", help="four shapes, four numbers of tokens, short rounds")
    add("--shapes", help="comma-separated: names, DxF[:activation[:gated]] or moe")
    add("--tokens", help="comma-separated numbers of tokens")
    add("--modes", help=f"comma-separated, of {', '.join(shapes.MODES)}")
    add("--routing", help=f"of mixtures: comma-separated, of {', '.join(ROUTINGS)}")
    add("--parts", help=f"comma-separated, of {', '.join(PARTS)}")
    add("--dtype", default="float32", choices=("float32", "float64", "bfloat16", "float16"))
    add("--x-dtype", choices=("float32",), help="of x; default: as --dtype, which is the weights'")
    add("--isa", help="default: the one that ffncore would use")
    add("--threads", type=int, help="default: as ffncore would use")
    add("--seconds", type=float, help="for each case (default 0.6, quick 0.25)")
    add("--json", metavar="FILE", help="append every result as a JSON line")


def run(args: argparse.Namespace) -> int:
    """The command; returns its exit status."""
    try:
        plan = Plan(args)
    except (ValueError, TypeError) as error:
        print(f"bench: {error}")
        return 2
    with ExitStack() as stack:
        if plan.isa is not None:
            try:
                stack.enter_context(fc.using_isa(plan.isa))
            except ValueError as error:
                print(f"bench: {error}")
                return 2
        if plan.threads is not None:
            stack.enter_context(fc.num_threads(plan.threads))
        file = None
        if args.json:
            file = stack.enter_context(Path(args.json).open("a", encoding="utf-8"))
        try:
            for row in rows(plan):
                text = describe(row)
                if text:
                    print(text, flush=True)
                if file is not None:
                    _write(file, row)
        except LimitError as error:
            print(f"bench: {error}")
            return 1
    return 0


def _write(file: IO[str], row: Row) -> None:
    file.write(json.dumps({k: _rounded(v) for k, v in row.items()}) + "\n")
    file.flush()


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
