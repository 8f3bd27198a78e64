"""`python -m ffncore verify MODEL`: the backward pass of each layer against central differences.

The weights are converted to float64, where central differences have ten correct digits. For x and
each array of weights, fc.check_gradients changes the entry with the largest gradient, and then all
entries in a random direction. A function with a kink (relu, a clamp, the choice of experts) has
wrong differences where a change crosses the kink, which happens to few x. So an array that fails is
tried again with another x. Tests: tests/cli/test_verify.py.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

import ffncore as fc

from .. import models
from ..runtime.progress import bar, say
from . import options
from .inspect import kind

HELP = """\
Checks the gradients of each layer of a checkpoint.

The weights are converted to float64, and the backward pass is compared with
central differences, for x and for each array of the layer: at the entry with
the largest gradient, and in a random direction of all entries. x is random. A
layer of n parameters takes about 32 n bytes of memory; of a mixture, only the
experts that x reaches are read.

The exit status is 0 if all layers pass, 1 if one fails or cannot be read, and
2 if the checkpoint or an argument is refused.

columns
  error   the largest difference, relative to the largest entry of the gradient
          (in a random direction: to the norm of the gradient)
  array   whose gradient has this error
"""
EXAMPLES = ("verify path/to/model", "verify path/to/model --layer 0")

# Enough for sums over tokens; a row costs little beside reading the weights.
ROWS = 4
# Single entries of each array, besides the random direction: each costs two forward passes.
SAMPLES = 1
# What the truncation and rounding errors of central differences stay below in float64.
TOLERANCE = 1e-7
# A try fails at a kink for one x in a hundred, in a layer of 10,000 hidden units.
TRIES = 3

_LINE = "{:>6}  {:<30}  {:>9}  {:<20}  {:<6}  {:>7}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help=options.PATH)
    add("--layer", metavar="N", type=int, help="check this layer alone (default: all layers)")
    options.add_loading(parser)
    options.add_settings(parser)


def run(args: argparse.Namespace) -> int:
    """Prints a line for each layer; returns the exit status."""
    try:
        with options.settings(args):
            infos = _chosen(args)
            return _verify(infos, args)
    except options.ERRORS as error:
        return options.refused("verify", error)


def _chosen(args: argparse.Namespace) -> list[models.LayerInfo]:
    if args.prefix is None:
        infos = models.layers(args.model, args.family)
    else:
        infos = fc.load_all(args.model, family=args.family, prefix=args.prefix).infos
    if args.layer is not None:
        infos = [info for info in infos if info.layer == args.layer]
    if not infos:
        # fc.load says why there is no such layer.
        fc.load(args.model, 0 if args.layer is None else args.layer, **options.loading(args))
        raise ValueError(f"{args.model} has no such layer; expected one")
    return infos


def _verify(infos: list[models.LayerInfo], args: argparse.Namespace) -> int:
    say(_LINE.format("layer", "kind", "error", "array", "result", "seconds").rstrip())
    failures = 0
    given = {**options.loading(args), "dtype": "float64"}
    for info in bar(infos, "verify", "layer"):
        passed = True
        for part in (None, *info.parts):
            start = time.perf_counter()
            what = kind(info) if part is None else f"part {part}"
            try:
                options_of_load = {**given, "prefix": info.prefix, "part": part}
                layer = _loaded(args.model, info, options_of_load)
                error, array = largest_error(layer, seed=info.layer)
            except (*options.ERRORS, MemoryError) as refusal:
                passed = False
                say(options.printable(f"{info.layer:>6}  {what:<30}  not checked: {refusal}"))
                continue
            right = error <= TOLERANCE
            passed = passed and right
            seconds = f"{time.perf_counter() - start:.1f}"
            result = "passed" if right else "failed"
            line = _LINE.format(info.layer, what, f"{error:.1e}", array, result, seconds)
            say(options.printable(f"{line}  {info.prefix}".rstrip()))
        failures += not passed
    count = f"{len(infos)} layer{'s' * (len(infos) != 1)}"
    print(f"verify failed: {failures} of {count}" if failures else f"verify passed: {count}")
    return 1 if failures else 0


def _loaded(path: str, info: models.LayerInfo, given: dict[str, Any]) -> fc.FFN | fc.MoE:
    """The layer; of a mixture, only the experts that some x reaches, and expert 0.

    The other experts have no part in any result, and may take most of the memory.
    """
    if info.n_experts is None or given["part"] is not None:
        return fc.load(path, info.layer, **given)
    layer = fc.load(path, info.layer, experts=[0], **given)
    assert isinstance(layer, fc.MoE)
    reached = {0}
    for attempt in range(TRIES):
        _, routing = layer(_x(layer, info.layer, attempt), return_routing=True)
        reached |= {int(e) for e in np.unique(routing.experts) if 0 <= e < info.n_experts}
    return fc.load(path, info.layer, experts=sorted(reached), **given)


def _x(layer: fc.FFN | fc.MoE, seed: int, attempt: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng((seed, attempt)).standard_normal((ROWS, layer.d_model))


def largest_error(layer: fc.FFN | fc.MoE, seed: int) -> tuple[float, str]:
    """The largest error of the gradients of a float64 layer, and the name of that array.

    The arrays of the layer are changed, and have their values again at the end.
    """
    worst, where = 0.0, ""
    for name in ("x", *layer.parameters()):
        error = min(_errors(layer, name, seed), key=lambda e: (np.isnan(e), e))
        if not error <= worst:
            worst, where = error, name
    return worst, where


def _errors(layer: fc.FFN | fc.MoE, name: str, seed: int) -> Iterator[float]:
    """The error of one array's gradient, for one x after the other until one is small enough."""
    for attempt in range(TRIES):
        error = _error(layer, _x(layer, seed, attempt), name, seed)
        yield error
        if error <= TOLERANCE:
            return


def _error(layer: fc.FFN | fc.MoE, x: np.ndarray[Any, Any], name: str, seed: int) -> float:
    own = {"x": x, **layer.parameters()}[name]
    before = own.copy()

    def passes(array: np.ndarray[Any, Any]) -> tuple[Any, Any]:
        own[...] = array
        y, saved = layer.forward(x)
        return y, lambda grad_y: layer.backward(grad_y, saved, needs=(name,)).arrays()[name]

    try:
        report = fc.check_gradients(passes, [own], tolerance=None, samples=SAMPLES, seed=seed)
    finally:
        own[...] = before
    return report.max_error
