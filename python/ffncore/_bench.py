"""`python -m ffncore bench`: how much of the machine's limit each shape reaches.

For every shape, number of tokens and mode ("packed", "raw", "train"; see _shapes.py) it prints a
row as soon as it is measured: time, GFLOP/s, GB/s, and the share of the limit (_limits.py); for
every shape also what packing reaches of the read bandwidth. Before the rows come the limits
themselves, after them the cost of a call beyond its kernel and each activation's rate. --json
writes the same as JSON lines, with the machine's facts first. Mixtures: _bench_moe.py.

A case runs in rounds of some 20 ms, each next to a fresh measurement of its limit; `share` is the
median of the rounds' ratios, `best` the fastest limit over the fastest round. Where there are
enough rounds in which nobody else worked on the cores, only they count: column `quiet`.
Test: tests/test_bench.py (no time is asserted there).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import IO, Any

import numpy as np

import ffncore as fc

from . import _core, _shapes
from ._arrays import as_dtype, is_narrow
from ._bench_cases import Case, errors, make_weights
from ._bench_measure import MEMORY_SHARE, Row, facts, free_memory, measure_case, pack_row
from ._bench_moe import moe_rows
from ._bench_rows import describe
from ._limits import LimitError, Limits, machine_facts
from ._shapes import Shape
from ._shapes_moe import MOE_TOKENS, ROUTINGS, MoEShape, find_shapes
from .activations import KINDS

PARTS = ("cases", "calls", "activations")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--quick", action="store_true", help="four shapes, four numbers of tokens, short rounds")
    add("--shapes", help="comma-separated: names, DxF[:activation[:gated]] or moe")
    add("--tokens", help="comma-separated numbers of tokens")
    add("--modes", help=f"comma-separated, of {', '.join(_shapes.MODES)}")
    add("--routing", help=f"of mixtures: comma-separated, of {', '.join(ROUTINGS)}")
    add("--parts", help=f"comma-separated, of {', '.join(PARTS)}")
    add("--dtype", default="float32", choices=("float32", "float64", "bfloat16", "float16"))
    add("--x-dtype", choices=("float32",), help="of x; default: as --dtype, which is the weights'")
    add("--isa", help="default: the one that ffncore would use")
    add("--threads", type=int, help="default: as ffncore would use")
    add("--seconds", type=float, help="for each case (default 0.6, quick 0.25)")
    add("--json", metavar="FILE", help="append every result as a JSON line")


class Plan:
    """What the arguments ask for; raises ValueError with one sentence."""

    def __init__(self, args: argparse.Namespace) -> None:
        quick = args.quick
        default = _shapes.QUICK_SHAPES if quick else [shape.name for shape in _shapes.SHAPES]
        names = _split(args.shapes) or default
        self.shapes = [shape for name in names for shape in find_shapes(name)]
        for shape in self.shapes:
            fc.Activation(shape.activation)  # raises for an unknown one
        given = [_positive(word) for word in _split(args.tokens)]
        self.tokens = given or list(_shapes.QUICK_TOKENS if quick else _shapes.TOKENS)
        self.moe_tokens = given or list(_shapes.QUICK_TOKENS if quick else MOE_TOKENS)
        self.routings = _among(args.routing, ROUTINGS, "--routing")
        self.modes = _among(args.modes, _shapes.MODES, "--modes")
        self.parts = _among(args.parts, PARTS, "--parts")
        self.dtype: str = args.dtype
        as_dtype("--dtype", self.dtype)  # bfloat16 needs ml_dtypes
        self.x_dtype: str = args.x_dtype or self.dtype
        if self.x_dtype != self.dtype and not is_narrow(as_dtype("--dtype", self.dtype)):
            raise ValueError(f"--x-dtype {self.x_dtype} goes with weights of 16 bits alone")
        self.isa: str | None = args.isa
        self.threads: int | None = args.threads
        self.seconds = args.seconds if args.seconds is not None else 0.25 if quick else 0.6


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


def rows(plan: Plan) -> Iterator[Row]:
    """Every result, as soon as there is one."""
    limits = Limits(_core.isa(), plan.x_dtype, _core.num_threads())
    yield machine_facts(limits.isa, limits.threads)
    yield {"kind": "peak", "isa": limits.isa, "dtype": plan.x_dtype, **limits.check_peak()}
    if "cases" in plan.parts:
        for shape in plan.shapes:
            yield from _shape_rows(shape, plan, limits)
        limits.release()
    if "calls" in plan.parts:
        for mode in ("packed", "raw"):
            for pause in (0.0, 1e-3):
                yield call_cost(mode, pause, plan.dtype, plan.x_dtype)
    if "activations" in plan.parts:
        for kind in KINDS:
            for gated in (False, True):
                yield _activation_row(kind, gated, limits)


# Cases


def _shape_rows(shape: Shape, plan: Plan, limits: Limits) -> Iterator[Row]:
    if isinstance(shape, MoEShape):
        yield from moe_rows(shape, plan, limits)
        return
    itemsize = as_dtype("dtype", plan.dtype).itemsize
    # raw, packed, gradients, the buffer of the bandwidth; activations of the largest case
    wanted = shape.parameters * itemsize * (5 if "train" in plan.modes else 3)
    wanted += shape.parameters * 4 if plan.x_dtype != plan.dtype else 0  # to be packed from
    wanted += max(plan.tokens) * (5 * shape.d + 2 * shape.f) * max(4, itemsize)
    if wanted > MEMORY_SHARE * free_memory():
        yield {"kind": "skipped", "shape": shape.name, "reason": f"needs {wanted / 2**30:.1f} GiB"}
        return
    weights = make_weights(shape, plan.dtype)
    known = facts(shape, plan.dtype, limits)
    yield {"kind": "shape", "shape": shape.name, **known, **errors(shape, weights, plan.x_dtype)}
    packed = fc.pack(weights) if "packed" in plan.modes else None
    gradients: Any = None
    for mode in plan.modes:
        for tokens in plan.tokens:
            case = Case(shape, tokens, plan.x_dtype, weights)
            if mode == "train":
                old, gradients = gradients, case.gradients()
                del old
                call = case.train(gradients)
            else:
                call = case.forward(packed if mode == "packed" else weights)
            yield measure_case(shape, tokens, mode, call, plan.dtype, limits, plan.seconds)
    if packed is not None:
        raw = weights if plan.x_dtype == plan.dtype else make_weights(shape, plan.x_dtype)
        yield pack_row(shape, raw, packed, limits)


# The cost of a call


def call_cost(mode: str, pause: float, dtype: str, x_dtype: str, repeats: int = 400) -> Row:
    """One token through 384 x 1536: the call's time, and what of it is not the kernel's.

    The kernel's time is a slope: calls with d_ff of 384, 768 and 1536 differ in nothing else. With
    `pause` the caller computes something else for that long between calls, and the pool sleeps.
    """
    sizes = (384, 768, 1536)
    calls = []
    for f in sizes:
        shape = Shape(f"384x{f}", 384, f, "gelu", bias=True)
        weights = make_weights(shape, dtype)
        calls.append(
            Case(shape, 1, x_dtype, weights).forward(
                fc.pack(weights) if mode == "packed" else weights
            )
        )
    medians = [_median_call(call, 0.0, repeats) for call in calls]
    spread = np.polyfit(sizes, medians, 1)
    kernel = float(spread[0]) * sizes[-1]
    call_seconds = _median_call(calls[-1], pause, repeats) if pause else medians[-1]
    return {
        "kind": "call",
        "mode": mode,
        "dtype": dtype,
        "pause": pause,
        "seconds": call_seconds,
        "kernel_seconds": kernel,
        "beyond_seconds": call_seconds - kernel,
    }


def _median_call(call: Callable[[], object], pause: float, repeats: int) -> float:
    clock = time.perf_counter_ns
    for _ in range(20):
        call()
    times = []
    for _ in range(repeats):
        if pause:
            until = clock() + int(pause * 1e9)
            while clock() < until:
                pass
        start = clock()
        call()
        times.append(clock() - start)
    return median(times) / 1e9


def _activation_row(kind: str, gated: bool, limits: Limits) -> Row:
    forward = limits.activation(kind, "forward", gated)
    backward = limits.activation(kind, "backward", gated)
    return {
        "kind": "activation",
        "activation": kind,
        "gated": gated,
        "isa": limits.isa,
        "dtype": limits.dtype,
        "threads": limits.threads,
        "forward_per_second": forward,
        "backward_per_second": backward,
    }


def _write(file: IO[str], row: Row) -> None:
    file.write(json.dumps({k: _rounded(v) for k, v in row.items()}) + "\n")
    file.flush()


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


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
