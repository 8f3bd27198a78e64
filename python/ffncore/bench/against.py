"""Other libraries in comparison with ffncore: `python -m ffncore bench --against`.

Each runs the same layer in a process of its own (peers/), which is stopped while ffncore or the
machine's limit is measured. It runs once in every round (measure.py), and its numbers are compared
with ffncore's before any timing. Tests: tests/bench/test_against.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial

from .measure import Row, Timed
from .peers import peer_layers
from .peers.worker import Worker, same
from .shapes import Shape

NAMES = tuple(peer_layers.PEERS)


class PeerError(Exception):
    """A peer that cannot run, in one sentence."""


class Against:
    """The processes of the peers; close() ends them."""

    def __init__(self, names: Iterable[str], threads: int) -> None:
        self.threads = threads
        self.workers: list[Worker] = []
        self.versions: dict[str, str] = {}
        try:
            for name in names:
                self.workers.append(Worker(name, threads))
                hello = self.workers[-1].read()
                if "absent" in hello:
                    raise PeerError(
                        f"--against {name} needs a module that is not installed; "
                        f"{hello['absent']} brings it"
                    )
                if "version" not in hello:
                    raise PeerError(f"--against {name} cannot be started: {_why(hello)}")
                self.versions[name] = hello["version"]
        except BaseException:
            self.close()
            raise

    def facts(self) -> list[Row]:
        """A row for each peer; of numpy, the code that runs."""
        code = inspect.getsource(peer_layers.numpy_ffn)
        return [
            {
                "kind": "against",
                "peer": name,
                "version": version,
                "threads": self.threads,
                **({"code": code} if name == "numpy" else {}),
            }
            for name, version in self.versions.items()
        ]

    def calls(
        self, shape: Shape, tokens: int, mode: str, dtype: str, result: object
    ) -> dict[str, Timed]:
        """The peers' calls of a case, whose result ffncore has computed."""
        case = {"shape": asdict(shape), "tokens": tokens, "mode": mode, "dtype": dtype}
        calls: dict[str, Timed] = {}
        for worker in self.workers:
            answer = worker.ask(do="setup", **case)
            if "check" not in answer:
                raise PeerError(f"--against {worker.name} cannot run {shape.name}: {_why(answer)}")
            if not same(answer["check"], peer_layers.check(result), dtype):
                raise PeerError(
                    f"--against {worker.name} has other numbers than ffncore for {shape.name}, "
                    f"{mode}; expected the same up to rounding"
                )
            calls[worker.name] = partial(_seconds, worker)
        return calls

    def drop(self) -> None:
        """The peers forget their weights."""
        for worker in self.workers:
            worker.ask(do="drop")

    def close(self) -> None:
        for worker in self.workers:
            worker.close()


def _seconds(worker: Worker, repeats: int) -> float:
    answer = worker.ask(do="round", repeats=repeats)
    if "seconds" not in answer:
        raise PeerError(f"--against {worker.name} has failed: {_why(answer)}")
    return float(answer["seconds"])


def _why(answer: Row) -> str:
    return str(answer.get("error", answer))
