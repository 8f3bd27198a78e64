"""The measured limits of the machine, and the shortest time that a case could take.

    limit = max(FLOPs / FMA peak + activations / their rate in L1,  bytes / read bandwidth)

All threads work together. The bandwidth is that of a buffer as large as the data of the case, so
weights that fit into a cache are compared with the speed of that cache. The loops are in
csrc/bench/measure.cpp.

A limit changes with the clock, which on a shared machine happens within milliseconds. So limit and
case are measured in turn, round by round, and the share is the median of their ratios. Somebody
else's work on the other hardware thread of a core is worse: it takes issue slots and cache, and no
limit shows it. quiet() finds the rounds in which the cores did not issue at their full rate.
Test: tests/bench/test_bench.py.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from .. import _core
from ..arrays.dtypes import as_dtype
from .shapes import Cost

Measure = Callable[[str, str, str, int, float, int], float]

# Bits of a vector: the peak has to be clock x lanes x units x 2.
WIDTH = {"avx512bf16": 512, "avx512": 512, "avx2": 256}
TOLERANCE = 0.03
# Below this share of the best issue rate somebody else works on the core, who takes about half.
QUIET = 0.85
# A term below this share of the other one is not measured again in every round.
DOMINATED = 0.5


class LimitError(Exception):
    """A measured limit that cannot be right."""


class Limits:
    """The limits for an instruction set, a dtype and a number of threads, each measured once."""

    def __init__(self, isa: str, dtype: str, threads: int, measure: Measure | None = None) -> None:
        self.isa, self.dtype, self.threads = isa, dtype, threads
        self._measure: Measure = measure if measure is not None else _core.measure
        self._known: dict[tuple[str, int], float] = {}
        self._issue = 0.0

    def measure(self, what: str, seconds: float, nbytes: int = 0) -> float:
        value = self._measure(what, self.isa, self.dtype, nbytes, seconds, self.threads)
        if value < 0:
            raise LimitError(f"{what} cannot be measured for {self.isa} {self.dtype}")
        return value

    def quiet(self) -> bool:
        """Whether all cores issue at nearly the best rate seen so far; it takes 0.3 ms."""
        rate = self._measure("issue", self.isa, self.dtype, 0, 0.0, self.threads)
        self._issue = max(self._issue, rate)
        return rate >= QUIET * self._issue or rate < 0

    def known(self, what: str, nbytes: int = 0, seconds: float = 0.05) -> float:
        """A measurement that is kept for the run."""
        key = (what, nbytes)
        if key not in self._known:
            self._known[key] = self.measure(what, seconds, nbytes)
        return self._known[key]

    def check_peak(self, rounds: int = 5, attempts: int = 6) -> dict[str, float]:
        """The FMA peak; LimitError if it is more than 3 % away from clock x lanes x units x 2.

        Other work on the same cores lowers the peak, so a failed attempt is repeated. A loop that
        the compiler has deleted fails in every attempt.
        """
        # 16 bits are computed in float32, except by VDPBF16PS, which multiplies pairs.
        by_pairs = self.isa == "avx512bf16" and self.dtype == "bfloat16"
        itemsize = 2 if by_pairs else max(4, as_dtype("dtype", self.dtype).itemsize)
        lanes = max(1, WIDTH.get(self.isa, 0) // (8 * itemsize))
        per_unit = 2.0 * lanes * self.threads
        for _ in range(attempts):
            pairs = [
                (self.measure("fma", 0.01), self.measure("clock", 0.01)) for _ in range(rounds)
            ]
            ratio = median(peak / (clock * per_unit) for peak, clock in pairs)
            units = min((1, 2, 3, 4), key=lambda n: abs(ratio / n - 1))
            peak, clock = (median(column) for column in zip(*pairs, strict=True))
            deviation = ratio / units - 1
            if abs(deviation) <= TOLERANCE:
                self._known["fma", 0] = peak
                return {"fma": peak, "clock": clock, "units": units, "deviation": deviation}
        raise LimitError(
            f"FMA peak {peak / 1e9:.1f} GFLOP/s ({self.isa}, {self.dtype}) is "
            f"{100 * deviation:+.1f} % away from {self.threads} threads x {units} units x {lanes} "
            f"lanes x 2 x {clock / 1e9:.2f} GHz; at most {100 * TOLERANCE:.0f} % are allowed"
        )

    def activation(self, kind: str, direction: str, gated: bool) -> float:
        """Elements per second of h = act(gate) * up if gated, else of h = act(up)."""
        form = "gated" if gated else "plain"
        return self.known(f"activation:{kind}:{direction}:{form}", seconds=0.03)

    def activation_seconds(self, cost: Cost, kind: str, gated: bool) -> float:
        seconds = cost.forward_activations / self.activation(kind, "forward", gated)
        if cost.backward_activations:
            seconds += cost.backward_activations / self.activation(kind, "backward", gated)
        return seconds

    def time(self, cost: Cost, kind: str, gated: bool, seconds: float = 0.0) -> tuple[float, str]:
        """The limit in seconds, and "flop" or "byte"; with seconds > 0 it is measured again."""
        footprint = int(cost.footprint)
        activations = self.activation_seconds(cost, kind, gated)
        flop = cost.flops / self.known("fma") + activations
        byte = cost.bytes / self.known("read", footprint)
        if seconds > 0:
            rough = flop, byte
            if rough[0] >= DOMINATED * rough[1]:
                flop = cost.flops / self.measure("fma", seconds) + activations
            if rough[1] >= DOMINATED * rough[0]:
                byte = cost.bytes / self.measure("read", seconds, footprint)
        return (flop, "flop") if flop >= byte else (byte, "byte")

    def release(self) -> None:
        """Frees the buffer of the bandwidth."""
        self._measure("release", self.isa, self.dtype, 0, 0.0, 1)


def machine_facts(isa: str, threads: int) -> dict[str, Any]:
    """The machine and the versions that a result belongs to."""
    return {
        "kind": "machine",
        "cpu": _cpu_model(),
        "features": _core.cpu_features(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "caches": {f"L{n}": _cache(n) for n in (1, 2, 3)},
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "unknown",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "ffncore": _core.__version__,
        "build": _core.build_info(),
        "isa": isa,
        "threads": threads,
    }


def _cpu_model() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _cache(level: int) -> str:
    """The size of a core's cache; of L1, the data cache."""
    for folder in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        if _read(folder / "level") == str(level) and _read(folder / "type") != "Instruction":
            return _read(folder / "size")
    return "unknown"


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text("utf-8").strip()
    except OSError:
        return ""
