"""How a call is timed in turn with its limit, round by round.

Test: tests/bench/test_bench.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import ffncore as fc

from ..arrays.dtypes import as_dtype
from . import shapes
from .limits import Limits
from .shapes import LARGEST_FOOTPRINT, Cost, Shape

Row = dict[str, Any]
Call = Callable[[], object]
Timed = Callable[[int], float]  # a number of calls -> seconds of one

ROUND_SECONDS = 0.02  # longer than it takes to wake threads, shorter than changes of the clock
LIMIT_SECONDS = 0.004
MIN_ROUNDS, MAX_ROUNDS = 5, 25
PATIENCE = 4  # a case takes at most this many times its seconds to get MIN_ROUNDS quiet rounds
MEMORY_SHARE = 0.7  # of the free memory; a shape that needs more is left out
# In a call that takes this long, filling the caches is at most a hundredth of the time.
LONG_SECONDS = 0.5


def skipped_row(shape: Shape, wanted: float) -> Row:
    """For a shape that needs more bytes than there are."""
    reason = f"needs {wanted / 2**30:.1f} GiB"
    return {"kind": "skipped", "shape": shape.name, "gated": shape.gated, "reason": reason}


def pack_row(shape: Shape, weights: fc.FFNWeights, packed: fc.PackedWeights, limits: Limits) -> Row:
    """The time of packing into existing memory; the bytes are those that are read."""
    nbytes = sum(array.nbytes for array in weights.arrays().values())
    rounds = []
    for _ in range(MIN_ROUNDS):
        bandwidth = limits.measure("read", LIMIT_SECONDS, min(nbytes, LARGEST_FOOTPRINT))
        took = timed(lambda: fc.pack(weights, dtype=packed.dtype, out=packed), 1)
        rounds.append((nbytes / took, nbytes / took / bandwidth))
    rates, shares = (list(column) for column in zip(*rounds, strict=True))
    return {
        "kind": "pack",
        "shape": shape.name,
        **facts(shape, packed.dtype.name, limits),
        "source": weights.dtype.name,
        "bytes_per_second": median(rates),
        "share": median(shares),
        "best_share": max(shares),
    }


def measure_case(
    shape: Shape,
    tokens: int,
    mode: str,
    call: Call,
    dtype: str,
    limits: Limits,
    seconds: float,
    peers: Mapping[str, Timed] | None = None,
) -> Row:
    cost = shapes.cost(shape, tokens, mode, as_dtype("dtype", dtype).itemsize)
    return {
        "kind": "case",
        "shape": shape.name,
        **facts(shape, dtype, limits),
        "tokens": tokens,
        "mode": mode,
        **measure(cost, shape, call, limits, seconds, peers=peers),
    }


def measure(
    cost: Cost,
    shape: Shape,
    call: Call,
    limits: Limits,
    seconds: float,
    beside: Mapping[str, Call] | None = None,
    spare_long: bool = False,
    peers: Mapping[str, Timed] | None = None,
) -> Row:
    """The times of a case, and those of the calls beside it, which follow it in every round.

    spare_long  whether calls of more than LONG_SECONDS go without a warm-up
    peers       calls of other processes, which warm up by themselves
    """
    calls: dict[str, Timed] = {"": partial(timed, call)}
    calls |= {name: partial(timed, each) for name, each in (beside or {}).items()}
    repeats, warm = {}, {}
    for name, each in (calls | dict(peers or {})).items():
        each(1)
        once = each(1)
        repeats[name] = max(1, int(ROUND_SECONDS / max(once, 1e-9)))
        warm[name] = name in calls and not (spare_long and once >= LONG_SECONDS)
    calls |= dict(peers or {})
    # quiet, time, limit, bound; times of the calls beside it
    rounds: list[tuple[bool, float, float, str, list[float]]] = []
    start = time.perf_counter()
    quiet = limits.quiet()
    while True:
        limit, bound = limits.time(cost, shape.activation, shape.gated, LIMIT_SECONDS)
        took = []
        for name, each in calls.items():
            if warm[name]:
                each(1)  # the limit's buffer, or another call, has filled the caches
            took.append(each(repeats[name]))
        before, quiet = quiet, limits.quiet()
        rounds.append((before and quiet, took[0], limit, bound, took[1:]))
        passed, calm = time.perf_counter() - start, sum(r[0] for r in rounds)
        enough = (passed >= seconds and calm >= MIN_ROUNDS) or calm >= MAX_ROUNDS
        if len(rounds) >= MIN_ROUNDS and (enough or passed >= PATIENCE * seconds):
            break
    counted = [r for r in rounds if r[0]]
    if len(counted) < MIN_ROUNDS:
        counted = rounds
    _, times, limit_times, bounds, others = (list(c) for c in zip(*counted, strict=True))
    middle = median(times)
    row = {
        "seconds": middle,
        "best_seconds": min(times),
        "rounds": len(rounds),
        "quiet_rounds": calm,
        "gflops": cost.flops / middle / 1e9,
        "gbytes": cost.bytes / middle / 1e9,
        "flops": cost.flops,
        "bytes": cost.bytes,
        "bound": max(set(bounds), key=bounds.count),
        "limit_seconds": median(limit_times),
        "share": median(limit / t for limit, t in zip(limit_times, times, strict=True)),
        "best_share": min(limit_times) / min(times),
    }
    for name, column in zip(list(calls)[1:], zip(*others, strict=True), strict=False):
        row[f"{name}_seconds"] = median(column)
        row[f"of_{name}"] = median(t / own for t, own in zip(column, times, strict=True))
        if name in (peers or {}):
            row[f"{name}_share"] = median(
                limit / t for limit, t in zip(limit_times, column, strict=True)
            )
    if peers:
        row["against"] = list(peers)
    return row


def timed(call: Call, repeats: int) -> float:
    """Seconds per call."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def facts(shape: Shape, dtype: str, limits: Limits) -> Row:
    weight_bytes = shape.parameters * as_dtype("dtype", dtype).itemsize
    return {
        "d": shape.d,
        "f": shape.f,
        "activation": shape.activation,
        "gated": shape.gated,
        "bias": shape.bias,
        "dtype": dtype if dtype == limits.dtype else f"{dtype} under {limits.dtype}",
        "isa": limits.isa,
        "threads": limits.threads,
        "weight_bytes": weight_bytes,
        "bandwidth": limits.known("read", min(weight_bytes, LARGEST_FOOTPRINT)),
    }


def free_memory() -> float:
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
    except OSError:
        return float("inf")
    free = [line for line in lines if line.startswith("MemAvailable")]
    return 1024.0 * int(free[0].split()[1]) if free else float("inf")
