"""What is to be measured: shapes, tokens, modes and settings, out of a command's arguments.

Tests: tests/bench/test_bench.py.
"""

from __future__ import annotations

import argparse

import ffncore as fc

from ..arrays.dtypes import as_dtype, is_narrow
from . import shapes
from .mixture_shapes import MOE_TOKENS, ROUTINGS, find_shapes

PARTS = ("cases", "calls", "activations")


class Plan:
    """What the arguments ask for; raises ValueError with one sentence."""

    def __init__(self, args: argparse.Namespace) -> None:
        quick = args.quick
        default = shapes.QUICK_SHAPES if quick else [shape.name for shape in shapes.SHAPES]
        names = _split(args.shapes) or default
        self.shapes = [shape for name in names for shape in find_shapes(name)]
        for shape in self.shapes:
            fc.Activation(shape.activation)  # raises for an unknown one
        given = [_positive(word) for word in _split(args.tokens)]
        self.tokens = given or list(shapes.QUICK_TOKENS if quick else shapes.TOKENS)
        self.moe_tokens = given or list(shapes.QUICK_TOKENS if quick else MOE_TOKENS)
        self.routings = _among(args.routing, ROUTINGS, "--routing")
        self.modes = _among(args.modes, shapes.MODES, "--modes")
        self.parts = _among(args.parts, PARTS, "--parts")
        self.dtype: str = args.dtype
        as_dtype("--dtype", self.dtype)  # bfloat16 needs ml_dtypes
        self.x_dtype: str = args.x_dtype or self.dtype
        if self.x_dtype != self.dtype and not is_narrow(as_dtype("--dtype", self.dtype)):
            raise ValueError(f"--x-dtype {self.x_dtype} goes with weights of 16 bits alone")
        self.isa: str | None = args.isa
        self.threads: int | None = args.threads
        self.seconds = args.seconds if args.seconds is not None else 0.25 if quick else 0.6


def _split(text: str | None) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()] if text else []


def _positive(word: str) -> int:
    if not word.isdigit() or int(word) == 0:
        raise ValueError(f"--tokens has {word!r}; expected numbers above 0")
    return int(word)


def _among(text: str | None, known: tuple[str, ...], option: str) -> tuple[str, ...]:
    words = tuple(_split(text)) or known
    for word in words:
        if word not in known:
            raise ValueError(f"{option} has {word!r}; expected some of {', '.join(known)}")
    return words
