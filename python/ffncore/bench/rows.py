"""The results of the bench, each as soon as it is measured.

First come the machine and its limits (limits.py). For each shape, number of tokens and mode
(shapes.py) follows a row with the time, GFLOP/s, GB/s and the share of the limit, and for each
shape a row that compares packing with the read bandwidth. At the end come the part of a call's time
that is not the kernel's, and the rate of each activation. Mixtures: mixtures.py; other libraries:
against.py.

A case runs in rounds of about 20 ms, each next to a new measurement of its limit. `share` is the
median of limit / time over the rounds, `best` the shortest limit over the shortest round. `quiet`
counts the rounds in which nobody else worked on the cores; if there are enough, only they count.
Tests: tests/bench/test_bench.py (no time is asserted there).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from statistics import median
from typing import Any

import numpy as np

import ffncore as fc

from .. import _core
from ..arrays.dtypes import as_dtype
from ..values.activation import KINDS
from .against import Against
from .cases import Case, errors, make_weights
from .limits import Limits, machine_facts
from .measure import MEMORY_SHARE, Row, facts, free_memory, measure_case, pack_row, skipped_row
from .mixture_shapes import MoEShape
from .mixtures import moe_rows
from .plan import Plan
from .shapes import Shape


def rows(plan: Plan) -> Iterator[Row]:
    """The results, each as soon as it is measured."""
    limits = Limits(_core.isa(), plan.x_dtype, _core.num_threads())
    yield machine_facts(limits.isa, limits.threads)
    yield {"kind": "peak", "isa": limits.isa, "dtype": plan.x_dtype, **limits.check_peak()}
    if "cases" in plan.parts:
        with closing(Against(plan.against, limits.threads)) as against:
            yield from against.facts()
            for shape in plan.shapes:
                yield from _shape_rows(shape, plan, limits, against)
                against.drop()
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


def _shape_rows(shape: Shape, plan: Plan, limits: Limits, against: Against) -> Iterator[Row]:
    if isinstance(shape, MoEShape):
        yield from moe_rows(shape, plan, limits)
        return
    itemsize = as_dtype("dtype", plan.dtype).itemsize
    # raw, packed, gradients, the buffer of the bandwidth; activations of the largest case
    copies = 5 if "train" in plan.modes else 3
    copies += len(plan.against) * (2 if "train" in plan.modes else 1)
    wanted = shape.parameters * itemsize * copies
    wanted += shape.parameters * 4 if plan.x_dtype != plan.dtype else 0  # to be packed from
    rows_bytes = max(plan.tokens) * (5 * shape.d + 2 * shape.f) * max(4, itemsize)
    wanted += rows_bytes * (1 + 2 * len(plan.against))  # numpy has an array for every step
    if wanted > MEMORY_SHARE * free_memory():
        yield skipped_row(shape, wanted)
        return
    weights = make_weights(shape, plan.dtype)
    known = facts(shape, plan.dtype, limits)
    names = {"against": list(plan.against)} if plan.against else {}
    error = errors(shape, weights, plan.x_dtype)
    yield {"kind": "shape", "shape": shape.name, **known, **error, **names}
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
            peers = {}
            if plan.against:
                peers = against.calls(shape, tokens, mode, plan.dtype, call())
            yield measure_case(shape, tokens, mode, call, plan.dtype, limits, plan.seconds, peers)
    if packed is not None:
        raw = weights if plan.x_dtype == plan.dtype else make_weights(shape, plan.x_dtype)
        yield pack_row(shape, raw, packed, limits)


# The cost of a call


def call_cost(mode: str, pause: float, dtype: str, x_dtype: str, repeats: int = 400) -> Row:
    """The time of a call with one token and 384 x 1536, and the part that is not the kernel's.

    The kernel's time is the slope over d_ff of 384, 768 and 1536, because these calls differ in
    nothing else. With `pause` the caller works on something else for that long between two calls,
    and the pool's threads fall asleep.
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
