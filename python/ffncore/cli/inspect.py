"""`python -m ffncore inspect PATH`: the feed-forward layers of a checkpoint, as a table or as JSON.

docs/checkpoints.md has the keys of the JSON objects. Tests: tests/cli/test_inspect.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

import ffncore

from .. import models
from ..models.loading import why_none
from . import options

HELP = """\
Lists the feed-forward layers of a checkpoint.

Layers whose tensors' names have one prefix stand together, and a line stands
for a run of equal layers. Layers that are damaged, or quantised in a way that
is not read, follow, with the reason. Only the headers of the files are read.

heads
  model_type  of config.json
  family      whose names and storage the tensors have (docs/models.md)
  prefix      what stands before "layers.0." in the tensors' names

columns
  kind        dense or a mixture of experts, with a gate or plain
  dtype       of the matrices, or their formats
  bits        for each weight of the matrices, if some are quantised
  parameters  of a layer, with all experts and the router
  ratio       d_ff / d_model
  matched     d_ff / d_model of a plain layer with as many parameters
"""
EXAMPLES = ("inspect path/to/model", "inspect path/to/model --json")

_COLUMNS: tuple[str, ...] = (
    *("layers", "kind", "d_model", "d_ff", "activation", "dtype", "bits", "parameters"),
    *("ratio", "matched"),
)
_PLAIN = tuple(name for name in _COLUMNS if name != "bits")
# Columns of numbers, which are aligned at their ends.
_NUMBERS = frozenset(("d_model", "d_ff", "bits", "parameters", "ratio", "matched"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("path", metavar="PATH", help=options.PATH)
    add("--json", action="store_true", help="print a JSON array with an object for each layer")
    options.add_family(parser)


def run(args: argparse.Namespace) -> int:
    """The command; returns its exit status."""
    try:
        infos = models.layers(args.path, args.family)
        nothing = "" if infos else why_none(args.path, args.family)
    except options.ERRORS as error:
        return options.refused("inspect", error)
    if args.json:
        objects = ",\n ".join(json.dumps(described(info)) for info in infos)
        print(f"[{objects}]")
        if nothing:
            print(options.printable(f"inspect: {nothing}"), file=sys.stderr)
    else:
        for line in [nothing] if nothing else inspection(infos):
            print(options.printable(line))
    return 0


# ---- as JSON


def described(info: models.LayerInfo) -> dict[str, Any]:
    """A layer as a JSON object. What is not known is null."""
    return {
        "layer": info.layer,
        "prefix": info.prefix,
        "tower": info.tower or None,
        "kind": "dense" if info.n_experts is None else "mixture",
        "gated": info.gated,
        "n_experts": info.n_experts,
        "shared_ff": info.shared_ff,
        "d_model": info.d_model or None,
        "d_ff": info.d_ff or None,
        "activation": info.activation,
        "format": info.packing or info.dtype or None,
        "dtype": info.dtype or None,
        "bits_per_weight": info.bits or None,
        "packing": info.packing,
        "parameters": info.parameters or None,
        "nbytes": info.nbytes,
        "ratio": info.ratio or None,
        "matched_ratio": info.matched_ratio or None,
        "family": info.family.name,
        "model_type": info.model_type,
        "around": asdict(info.around),
        "parts": info.parts,
        "problem": info.problem,
    }


# ---- as a table


def inspection(layers: Sequence[models.LayerInfo]) -> list[str]:
    """A table for the layers of each prefix that can be read, and the sum of all; then a line for
    each run of packed layers, with their bytes; then a line about what is wrong with each other
    layer.
    """
    sound = [info for info in layers if info.problem is None]
    lines = []
    for _, run in groupby(sound, lambda info: (info.prefix, info.model_type)):
        stack = list(run)
        lines += [_head(stack), *_table(stack), ""]
    if sound:
        total = sum(info.parameters for info in sound)
        lines.append(f"{len(sound)} layer{'s' * (len(sound) != 1)}, {total:,} parameters in them")
        if any(info.activation is None for info in sound):
            lines.append(
                "activation unknown: config.json does not name it; pass activation= to fc.load"
            )
        lines.append(
            "ratio is d_ff / d_model; matched is that of a plain layer with as many parameters"
        )
    packed = [info for info in layers if info.packing is not None]
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


def kind(info: models.LayerInfo) -> str:
    """ "dense, gated", or "mixture of 8, plain"; also with the size of a shared expert."""
    mixture = "dense" if info.n_experts is None else f"mixture of {info.n_experts}"
    also = f", shared {info.shared_ff}" if info.shared_ff else ""
    return f"{mixture}, {'gated' if info.gated else 'plain'}{also}"


def _head(stack: Sequence[models.LayerInfo]) -> str:
    first = stack[0]
    told = {
        "model_type": first.model_type,
        # The dense layers of a mixture may have the names of another family.
        "family": " and ".join(dict.fromkeys(info.family.name for info in stack)),
        "tower": first.tower,
        "prefix": first.prefix,
    }
    return ", ".join(f"{name} {value}" for name, value in told.items() if value)


def _table(layers: Sequence[models.LayerInfo]) -> list[str]:
    """The lines of one prefix."""
    formats = {name for info in layers for name in info.dtype.split(", ")}
    columns = _COLUMNS if formats & set(ffncore.formats()) else _PLAIN
    table = [columns]
    for facts, run in groupby(layers, _facts):
        told = {"layers": _numbers(list(run)), **dict(facts)}
        table.append(tuple(told[name] for name in columns))
    widths = [max(len(row[i]) for row in table) for i in range(len(columns))]
    lines = [
        "  ".join(
            text.rjust(width) if name in _NUMBERS else text.ljust(width)
            for text, width, name in zip(row, widths, columns, strict=True)
        ).rstrip()
        for row in table
    ]
    return [*lines, *_extras(layers, "around"), *_extras(layers, "parts")]


def _facts(info: models.LayerInfo) -> tuple[tuple[str, str], ...]:
    facts = (
        kind(info),
        str(info.d_model),
        str(info.d_ff),
        info.activation or "unknown",
        info.dtype,
        f"{info.bits:.4g}",
        f"{info.parameters:,}",
        f"{info.ratio:.3g}",
        f"{info.matched_ratio:.3g}",
    )
    return tuple(zip(_COLUMNS[1:], facts, strict=True))


def _extras(layers: Sequence[models.LayerInfo], name: str) -> list[str]:
    """Lines of what a LayerInfo has besides the columns, with the numbers of the layers that have
    it, unless all have the same.
    """
    groups: dict[str, list[models.LayerInfo]] = {}
    for info in layers:
        value = getattr(info, name)
        told = ", ".join(value) if isinstance(value, tuple) else str(value or "")
        groups.setdefault(told, []).append(info)
    return [
        f"{name} {_numbers(group)}: {told}" if len(groups) > 1 else f"{name}: {told}"
        for told, group in groups.items()
        if told
    ]


def _numbers(group: Sequence[models.LayerInfo]) -> str:
    """The numbers of layers: "3", "0-31", or "0, 4-9"."""
    return models.ranges([info.layer for info in group])
