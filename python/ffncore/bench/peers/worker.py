"""The parent's side of a peer's process (process.py): questions and answers.

A signal stops the process between two questions, because the threads of some libraries spin for
long after a call, and would use the cores that the next call needs.
Tests: tests/bench/test_peers.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LAYERS = Path(__file__).with_name("peer_layers.py")
THREAD_VARIABLES = (
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "FFNCORE_NUM_THREADS"),
    *("NPROC", "NUMEXPR_NUM_THREADS"),
)
# Results that are further apart, relative to the largest, are not the same work. In 16 bits some
# peers round between every two steps; numpy's gelu has an error of 1.5e-7.
AGREE = {"float64": 1e-5, "float32": 1e-3, "bfloat16": 6e-2, "float16": 1e-2}


class Worker:
    """A peer's process."""

    def __init__(
        self,
        name: str,
        threads: int,
        *,
        python: str = sys.executable,
        layers: Path = LAYERS,
        environment: Mapping[str, str] | None = None,
        pin: bool = False,
    ) -> None:
        self.name, self.repeats = name, 1
        process = Path(__file__).with_name("process.py")
        variables = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))}
        command = [python, str(process), name, str(threads), str(layers), *["pin"] * pin]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**variables, **(environment or {})},
        )

    def read(self) -> dict[str, Any]:
        """The next answer; the first one has the "version", or says that the peer is "absent"."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "the process has ended"}
        return answer

    def ask(self, **message: Any) -> dict[str, Any]:
        self.process.send_signal(signal.SIGCONT)
        try:
            print(json.dumps(message), file=self.process.stdin, flush=True)
            return self.read()
        except BrokenPipeError:
            return {"error": "the process has ended"}
        finally:
            self.process.send_signal(signal.SIGSTOP)

    def close(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, and a question is not sent yet
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def same(values: Any, expected: Any, dtype: str) -> bool:
    """Whether the numbers of two checks are those of the same work; a list for each result has a
    scale for each.
    """
    if isinstance(values[0], list):
        return all(same(v, e, dtype) for v, e in zip(values, expected, strict=True))
    reach = AGREE[dtype] * max(abs(v) for v in expected)
    return all(abs(a - b) <= reach for a, b in zip(values, expected, strict=True))
