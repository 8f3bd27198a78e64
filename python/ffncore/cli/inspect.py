"""`python -m ffncore inspect PATH`: the feed-forward layers of a checkpoint, as a table.

Tests: tests/cli/test_cli.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from .. import models

HELP = """\
Lists the feed-forward layers of a checkpoint.

A line stands for a run of equal layers. Layers that are packed by a quantiser
or damaged follow, with the reason. Only the headers of the files are read.

columns
  ratio       d_ff / d_model
  matched     d_ff / d_model of a plain layer with as many parameters
  model_type  of config.json; - where there is none
  family      whose names and storage the tensors have (docs/models.md)
  prefix      what stands before "layers.0." in the tensors' names
"""
EXAMPLES = ("inspect path/to/model",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("path", metavar="PATH", help="a folder with config.json, or a .safetensors file")
    add(
        "--family",
        metavar="NAME",
        help="read a model_type that ffncore does not know with the tensor names of this family, "
        f"one of {', '.join(row.name for row in (*models.FAMILIES, *models.MOE_FAMILIES))} "
        "(default: the family of the model_type)",
    )


def run(args: argparse.Namespace) -> int:
    try:
        for line in inspection(models.layers(args.path, args.family)):
            print(_printable(line))
    except (OSError, ValueError, ImportError) as error:
        print(f"inspect: {error}", file=sys.stderr)
        return 2
    return 0


def _printable(line: str) -> str:
    """The line with escapes for what a terminal obeys or cannot show: tensors may have any name."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    encoding = sys.stdout.encoding or "utf-8"
    return shown.encode(encoding, "backslashreplace").decode(encoding)


def inspection(layers: Sequence[models.LayerInfo]) -> list[str]:
    """A line for each run of equal layers that can be read, and their sum; then a line for each run
    of packed layers, with their bytes; then a line about what is wrong with each other layer.
    """
    if not layers:
        return ["no feed-forward layer that ffncore knows"]
    packed = [info for info in layers if info.packing is not None]
    sound = [info for info in layers if info.problem is None]
    lines = _table(sound) if sound else []
    if sound:
        total = sum(info.parameters for info in sound)
        lines.append(f"{len(sound)} layers, {total:,} parameters in them")
        lines.append(
            "ratio is d_ff / d_model; matched is that of a plain layer with as many parameters"
        )
    for (packing, prefix, family), run in groupby(
        packed, lambda info: (info.packing, info.prefix, info.family.name)
    ):
        group = list(run)
        size = sum(info.nbytes for info in group)
        what = f"packed by {packing}, not read, {size:,} bytes"
        lines.append(f"{_numbers(group)}  {what}  {family} {prefix}".rstrip())
    for info in layers:
        if info.problem is not None and info.packing is None:
            lines.append(f"{info.layer}  not read: {info.problem}")
    return lines


def _table(layers: Sequence[models.LayerInfo]) -> list[str]:
    head = ("layers", "kind", "d_model", "d_ff", "activation", "dtype", "parameters", "ratio")
    table: list[tuple[str, ...]] = [(*head, "matched", "model_type", "family", "prefix")]
    for (*facts, _), run in groupby(layers, _facts):
        group = list(run)
        prefix, gated, experts, d_model, d_ff, activation, dtype, parameters = facts
        kind = "gated" if gated else "plain"
        table.append(
            (
                _numbers(group),
                kind if experts is None else f"{kind}, {experts} experts",
                str(d_model),
                str(d_ff),
                activation or "unknown",
                dtype,
                f"{parameters:,}",
                f"{group[0].ratio:.3g}",
                f"{group[0].matched_ratio:.3g}",
                group[0].model_type or "-",
                group[0].family.name,
                prefix,
            )
        )
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return [
        "  ".join(t.ljust(w) for t, w in zip(row, widths, strict=True)).rstrip() for row in table
    ]


def _numbers(group: Sequence[models.LayerInfo]) -> str:
    """The numbers of layers: "3", "0-31", or "0, 4-9"."""
    return models.ranges([info.layer for info in group])


def _facts(info: models.LayerInfo) -> tuple[Any, ...]:
    return (
        *(info.prefix, info.gated, info.n_experts, info.d_model, info.d_ff, info.activation),
        info.dtype,
        *(info.parameters, info.family.name),
    )
