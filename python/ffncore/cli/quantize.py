"""`python -m ffncore quantize IN OUT --format q4_k`: a checkpoint with quantised layers.

models/writing has the work; here are the arguments, and the summary. Tests:
tests/cli/test_quantize_command.py.
"""

from __future__ import annotations

import argparse
import textwrap

import ffncore as fc

from ..models.writing.quantize import Written, quantize_checkpoint
from ..models.writing.rounding import FREE
from . import options

_FORMATS = ", ".join(name for name, info in fc.formats().items() if info.can_quantize)
HELP = f"""\
Writes a quantised copy of a checkpoint.

The matrices gate, up and down of all feed-forward layers are quantised, also
those of experts. Other tensors are copied as they are. If OUT ends with
.safetensors, it is one file. If it ends with .gguf, it gets the feed-forward
layers of the language model alone. Any other OUT is a folder, with the files
of IN, config.json and the files of the tokenizer. Nothing may have the name,
and after an error there is no OUT.

formats
{textwrap.fill(_FORMATS, 76, initial_indent="  ", subsequent_indent="  ")}

columns
  bits    per weight, with the scales
  error   the root of the mean square of the deviation of the weights, relative
          to that of the weights

The exit status is 0, or 2 if an argument or a file is refused.
"""
EXAMPLES = (
    "quantize path/to/model model-q4_k --format q4_k",
    "quantize path/to/model model.gguf --format gate=q4_k,up=q4_k,down=q6_k",
)

_LINE = "{:<12}  {:<9}  {:>16}  {:>6}  {:>8}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="IN", help=options.PATH)
    add("out", metavar="OUT", help="the folder, .safetensors file or .gguf file to write")
    add(
        "--format",
        metavar="FORMAT",
        required=True,
        help="of all matrices, or by field as gate=q4_k,down=q6_k, where a field that is left out "
        "stays as it is (there is no default)",
    )
    add(
        "--method",
        choices=FREE,
        default=FREE[0],
        help="rtn: the nearest codes; hqq: better zeros, for int4 (default: %(default)s)",
    )
    options.add_family(parser)


def run(args: argparse.Namespace) -> int:
    """The command; returns its exit status."""
    try:
        written = quantize_checkpoint(
            args.source,
            args.out,
            _formats(args.format),
            method=args.method,
            family=args.family,
        )
    except options.ERRORS as error:
        return options.refused("quantize", error)
    for line in summary(written):
        print(line)
    print(options.printable(f"written: {args.out}"))
    return 0


def _formats(text: str) -> str | dict[str, str]:
    """A format, or formats by field."""
    if "=" not in text:
        return text
    found: dict[str, str] = {}
    for pair in text.split(","):
        name, equals, format = pair.partition("=")
        if not equals or name in found:
            what = "is given twice" if name in found else "has no ="
            raise ValueError(
                f"--format is {text!r}, where {pair!r} {what}; expected a form like "
                f"gate=q4_k,up=q4_k,down=q6_k"
            )
        found[name] = format
    return found


def summary(written: Written) -> list[str]:
    """A table of the fields, and the bytes before and after."""
    lines = [_LINE.format("field", "format", "weights", "bits", "error")]
    for field, sums in written.sums.items():
        told = written.formats[field.partition(" ")[0]]
        bits, error = f"{sums.bits_per_weight:.4g}", f"{sums.error:.2g}"
        lines.append(_LINE.format(field, told, f"{sums.weights:,}", bits, error))
    share = written.after / max(1, written.before)
    lines.append(f"{written.before:,} bytes before, {written.after:,} after ({share:.0%})")
    return lines
