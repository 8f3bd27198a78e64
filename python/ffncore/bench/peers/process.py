"""One peer in a process of its own: it builds a case, runs rounds of it, and tells the seconds.

Started by worker.py as `python process.py NAME THREADS LAYERS [pin]`, perhaps with an interpreter
that has no ffncore, so this file imports none of it. LAYERS is a file that says what a peer runs,
such as peer_layers.py. `pin` keeps the process on as many CPUs as it has threads. The process reads
JSON lines and answers each with one:

    {"do": "setup", "shape": {...}, "tokens": T, "mode": "packed" | "raw" | "train", "dtype": name}
                                                                             -> {"check": [...]}
    {"do": "round", "repeats": n}                                            -> {"seconds": of one}
    {"do": "drop"}  forgets the weights                                      -> {}
    {"do": "quit"}

A setup of a mixture also has "ids" and "factors", the experts and routing weights [T, k]. What
cannot be done is answered with {"error": sentence}. Tests: tests/bench/test_peers.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    """A stopped process would outlive a parent that was killed."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _layers(path: Path) -> Any:
    """The module at a path; later no file of these folders may hide a module of a library."""
    folder = str(Path(__file__).parent)
    others = [entry for entry in sys.path if entry != folder]
    sys.path[:] = [str(path.parent), folder, *others]
    try:
        return importlib.import_module(path.stem)
    finally:
        sys.path[:] = others


class Peer:
    """The case that is set up."""

    def __init__(self, name: str, threads: int, layers: Any) -> None:
        self.name, self.threads, self.layers = name, threads, layers
        self.drop()

    def drop(self) -> dict[str, Any]:
        self.wanted: Any = None
        self.weights: Any = None
        self.call: Any = None
        gc.collect()
        return {}

    def setup(self, message: dict[str, Any]) -> dict[str, Any]:
        shape = message["shape"]
        table, wanted = self.layers.table(shape), (shape, message["dtype"])
        self.call = None
        if self.wanted != wanted:
            self.drop()
            self.wanted, self.weights = wanted, table.weights(*wanted)
        spec = {**shape, "mode": message["mode"], "threads": self.threads}
        if "ids" in message:
            import numpy as np

            spec["ids"] = np.array(message["ids"], np.int32)
            spec["factors"] = np.array(message["factors"], np.float32)
        x, grad_y = table.inputs(*wanted, message["tokens"])
        self.call = table.PEERS[self.name][1](self.weights, x, grad_y, spec)
        return {"check": table.check(self.call())}

    def round(self, repeats: int) -> dict[str, Any]:
        self.call()  # the others have taken the caches
        start = time.perf_counter()
        for _ in range(repeats):
            self.call()
        return {"seconds": (time.perf_counter() - start) / repeats}


def main() -> None:
    name, threads, path = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    _end_with_parent()
    if "pin" in sys.argv[4:] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the peers print is not an answer

    def answer(**fields: Any) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    layers = _layers(path)
    try:
        module = importlib.import_module(layers.module_of(name))
    except ImportError:
        answer(absent=layers.INSTALL[name])
        return
    answer(version=str(getattr(module, "__version__", "")))
    peer = Peer(name, threads, layers)
    for line in sys.stdin:
        message = json.loads(line)
        try:
            if message["do"] == "setup":
                answer(**peer.setup(message))
            elif message["do"] == "round":
                answer(**peer.round(message["repeats"]))
            elif message["do"] == "drop":
                answer(**peer.drop())
            else:
                return
        except Exception as error:  # whatever a peer raises is the parent's to report
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            answer(error=f"{kind}{error}".strip().splitlines()[0])


if __name__ == "__main__":
    main()
