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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="a folder with config.json, or a .safetensors file")
    parser.add_argument("--family", help="for a model_type that ffncore does not know")


def run(args: argparse.Namespace) -> int:
    try:
        for line in inspection(models.layers(args.path, args.family)):
            print(_printable(line))
    except (OSError, ValueError, ImportError) as error:
        print(f"inspect: {error}", file=sys.stderr)
        return 2
    return 0


def _printable(line: str) -> str:
    """A file may call its tensors anything: what a terminal cannot show, or obeys, is escaped."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    encoding = sys.stdout.encoding or "utf-8"
    return shown.encode(encoding, "backslashreplace").decode(encoding)


def inspection(layers: Sequence[models.LayerInfo]) -> list[str]:
    """One line for each run of equal layers that can be read, and the sum; then one for each run of
    packed layers, with their bytes; then what is wrong with each of the others.
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
            "ratio: d_ff / d_model; matched: the ratio of a plain layer with as many parameters"
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
    table: list[tuple[str, ...]] = [(*head, "matched", "names")]
    for facts, run in groupby(layers, _facts):
        group = list(run)
        prefix, gated, experts, d_model, d_ff, activation, dtype, parameters, family = facts
        kind = "gated" if gated else "plain"
        table.append(
            (
                _numbers(group),
                kind if experts is None else f"{kind}, {experts} experts",
                str(d_model),
                str(d_ff),
                activation or "not told",
                dtype,
                f"{parameters:,}",
                f"{group[0].ratio:.3g}",
                f"{group[0].matched_ratio:.3g}",
                f"{family} {prefix}",
            )
        )
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return [
        "  ".join(t.ljust(w) for t, w in zip(row, widths, strict=True)).rstrip() for row in table
    ]


def _numbers(group: Sequence[models.LayerInfo]) -> str:
    """Of a run of layers: "3", "0-31", or "0, 4-9" where others lie between."""
    return models.ranges([info.layer for info in group])


def _facts(info: models.LayerInfo) -> tuple[Any, ...]:
    return (
        *(info.prefix, info.gated, info.n_experts, info.d_model, info.d_ff, info.activation),
        info.dtype,
        *(info.parameters, info.family.name),
    )
