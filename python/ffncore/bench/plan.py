"""What a run of the bench measures: shapes, tokens, modes and settings, from its arguments.

Tests: tests/bench/test_bench.py.
"""

from __future__ import annotations

import argparse

import ffncore as fc

from ..arrays.dtypes import as_dtype, is_narrow
from . import against, shapes
from .mixture_shapes import MOE_TOKENS, ROUTINGS, MoEShape, find_shapes
from .picture import check_picture

PARTS = ("cases", "calls", "activations")


class Plan:
    """What the arguments ask for; ValueError or TypeError with one sentence if they are wrong."""

    def __init__(self, args: argparse.Namespace) -> None:
        quick = args.quick
        default = shapes.QUICK_SHAPES if quick else [shape.name for shape in shapes.SHAPES]
        names = _split(args.shapes) or default
        self.shapes = [shape for name in names for shape in find_shapes(name)]
        tokens = [_positive(word) for word in _split(args.tokens)]
        self.tokens = tokens or list(shapes.QUICK_TOKENS if quick else shapes.TOKENS)
        self.moe_tokens = tokens or list(shapes.QUICK_TOKENS if quick else MOE_TOKENS)
        self.routings = _among(args.routing, ROUTINGS, "--routing")
        self.modes = _among(args.modes, shapes.MODES, "--modes")
        # A user who names shapes wants their rows, and not those of calls and activations.
        self.parts = _among(args.parts, PARTS, "--parts", PARTS[:1] if args.shapes else PARTS)
        self.dtype: str = args.dtype
        as_dtype("--dtype", self.dtype)  # bfloat16 needs ml_dtypes
        self.x_dtype: str = args.x_dtype or self.dtype
        if self.x_dtype != self.dtype and not is_narrow(as_dtype("--dtype", self.dtype)):
            raise ValueError(
                f"--x-dtype is {self.x_dtype} and --dtype {self.dtype}; expected weights of 16 bits"
            )
        self.against = _among(args.against, against.NAMES, "--against", ())
        self._check_against()
        for option, given in (("--picture", args.picture), ("--against", args.against)):
            if given and "cases" not in self.parts:
                raise ValueError(f"--parts has no cases; expected them for {option} {given}")
        if args.picture is not None:
            check_picture(args.picture)  # before minutes of measuring
        self.isa: str | None = args.isa
        known = fc.available_isas()
        if self.isa is not None and self.isa not in known:
            raise ValueError(f"--isa is {self.isa!r}; expected one of {', '.join(known)}")
        self.threads: int | None = args.threads
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"--threads is {self.threads}; expected at least 1")
        self.seconds = args.seconds if args.seconds is not None else 0.25 if quick else 0.6

    def _check_against(self) -> None:
        if not self.against:
            return
        mixtures = [shape.name for shape in self.shapes if isinstance(shape, MoEShape)]
        if mixtures:
            raise ValueError(
                f"--shapes has {mixtures[0]}; expected dense layers with --against (mixtures are "
                f"compared by bench/peers.py in a checkout)"
            )
        if self.x_dtype != self.dtype:
            raise ValueError(f"--x-dtype is {self.x_dtype}; expected {self.dtype} with --against")
        if "numpy" in self.against and is_narrow(as_dtype("--dtype", self.dtype)):
            raise ValueError(
                f"--dtype is {self.dtype}; expected float32 or float64 with --against numpy, "
                f"which multiplies 16-bit matrices one number at a time"
            )


def _split(text: str | None) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()] if text else []


def _positive(word: str) -> int:
    if not word.isdigit() or int(word) == 0:
        raise ValueError(f"--tokens has {word!r}; expected whole numbers above 0")
    return int(word)


def _among(
    text: str | None, known: tuple[str, ...], option: str, default: tuple[str, ...] | None = None
) -> tuple[str, ...]:
    """The words of `text`; without text, `default` or all that are known."""
    words = tuple(dict.fromkeys(_split(text))) or (known if default is None else default)
    for word in words:
        if word not in known:
            raise ValueError(f"{option} has {word!r}; expected some of {', '.join(known)}")
    return words
