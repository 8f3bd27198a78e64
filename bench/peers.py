"""ffncore and other libraries (numpy, torch, JAX, OpenVINO, zentorch): the same work, in turn.

    python bench/peers.py [--shapes a,b] [--tokens 1,128] [--modes packed,train] [--peers a,b]
                          [--routing uniform,zipf] [--dtype bfloat16] [--threads N] [--rounds N]
                          [--python zentorch=PATH] [--json FILE]

Each peer runs in a process of its own, on the same CPUs. In each round every peer runs the case for
about 50 ms, one after the other, while the others are stopped, because the threads of some peers
spin for long after a call. The machine's limit is measured at the end of the round. So a
disturbance affects all peers alike; rounds in which somebody else worked on the cores do not count
if enough others are left. The printed numbers are medians: the time over ffncore's, and the share
of the limit. A peer that is not installed is left out, with a line that says how to install it.
Results are compared with ffncore's before any timing.

Modes are those of `python -m ffncore bench`: packed, raw, train. A peer that can prepare weights
does so in the mode packed. Mixtures of experts are shapes, too, and run with a given routing. Where
memory does not hold the weights of all peers, ffncore runs with as many peers at a time as fit.
What the peers run: peer_dense.py, peer_moe.py.
"""

import argparse
import json
import os
import sys
from contextlib import ExitStack
from dataclasses import asdict
from itertools import product
from pathlib import Path
from random import Random
from statistics import median

import peer_moe
from peer_dense import ENVIRONMENT, PEERS

from ffncore.bench.limits import LimitError, Limits, machine_facts
from ffncore.bench.measure import free_memory
from ffncore.bench.mixture_shapes import (
    MOE_TOKENS,
    ROUTINGS,
    MoEShape,
    find_shapes,
    make_routing,
    moe_cost,
)
from ffncore.bench.peers.worker import Worker, same
from ffncore.bench.shapes import MODES, TOKENS, cost
from ffncore.runtime.config import active_isa

LAYERS = Path(__file__).with_name("peer_dense.py")
SHAPES = ("minilm", "bert-base", "smollm2-135m", "llama-3.2-1b", "llama-3.1-8b", "falcon-7b")
ROUND_SECONDS = 0.05
MEMORY_SHARE = 0.8  # of the free memory, for the weights of a mixture
ENOUGH = 3  # quiet rounds of a peer; with fewer of them, all its rounds count
DTYPES = ("float32", "bfloat16", "float16")


def start(names, pythons, threads, stack):
    """The workers of the peers that are installed; prints a line for each other one. `stack` closes
    them.
    """
    workers = []
    for name in names:
        python = pythons.get(name, sys.executable)
        try:
            worker = Worker(
                name,
                threads,
                python=python,
                layers=LAYERS,
                environment=ENVIRONMENT.get(name),
                pin=True,
            )
        except OSError as error:
            print(f"{name}: {python} cannot be started: {error.strerror}")
            continue
        stack.callback(worker.close)
        workers.append(worker)
    present, versions = [], {}
    for worker in workers:
        hello = worker.read()
        if "version" in hello:
            present.append(worker)
            versions[worker.name] = hello["version"]
        else:
            absent = "absent" in hello
            why = hello["absent"] if absent else hello["error"]
            print(f"{worker.name}: {'not installed' if absent else 'cannot be started'}; {why}")
    return present, versions


def agree(answers, dtype="float32"):
    """Names of peers whose numbers are not ffncore's."""
    expected = answers["ffncore"]
    return [name for name, values in answers.items() if not same(values, expected, dtype)]


def groups(workers, shape, mode, dtype, free):
    """Groups of workers whose weights fit into memory at once; ffncore is the first of each."""
    if not isinstance(shape, MoEShape):
        return [workers]
    weight_bytes = shape.parameters * (4 if dtype == "float32" else 2)
    needs = {w.name: peer_moe.memory(w.name, mode, weight_bytes) for w in workers}
    found = []
    for worker in workers[1:]:
        if needs["ffncore"] + needs[worker.name] > MEMORY_SHARE * free:
            print(f"  {worker.name}: left out, not enough memory")
        elif found and sum(needs[w.name] for w in [*found[-1], worker]) <= MEMORY_SHARE * free:
            found[-1].append(worker)
        else:
            found.append([workers[0], worker])
    if not found and needs["ffncore"] <= MEMORY_SHARE * free:
        found = [workers[:1]]
    return found


def run_case(workers, shape, tokens, mode, dtype, limits, rounds, kind=None):
    """A row for each peer; kind: the routing of a mixture."""
    answers, able = {}, []
    case = {"shape": asdict(shape), "tokens": tokens, "mode": mode, "dtype": dtype}
    itemsize = 4 if dtype == "float32" else 2
    facts = {}
    if kind is None:
        work = cost(shape, tokens, mode, itemsize)
    else:
        routing = make_routing(shape, tokens, kind)
        case.update(ids=routing.experts.tolist(), factors=routing.weights.tolist())
        work = moe_cost(shape, routing.counts, mode, itemsize)
        facts = {"routing": kind, "experts": shape.n_experts, "top_k": shape.top_k}
        facts["hit"] = int((routing.counts > 0).sum())
    for worker in workers:
        reply = worker.ask(do="setup", **case)
        if "check" in reply:
            answers[worker.name] = reply["check"]
            able.append(worker)
        else:
            print(f"  {worker.name}: {reply['error']}")
    if "ffncore" not in answers:
        return []
    for name in agree(answers, dtype):
        print(f"  {name}: left out, its results are not those of ffncore")
        able = [worker for worker in able if worker.name != name]
    for worker in able:
        seconds = worker.ask(do="round", repeats=1)["seconds"]
        worker.repeats = max(1, int(ROUND_SECONDS / max(seconds, 1e-9)))
    times = {worker.name: [] for worker in able}  # of rounds: (quiet, seconds, limit)
    for number in range(rounds):
        # In another order each time, so that no peer always runs after the same other one.
        for worker in Random(number).sample(able, len(able)):
            before = limits.quiet()
            seconds = worker.ask(do="round", repeats=worker.repeats)["seconds"]
            times[worker.name].append([before and limits.quiet(), seconds, 0.0])
        limit = limits.time(work, shape.activation, shape.gated, 0.01)[0]
        for took in times.values():
            took[-1][2] = limit
    rows = []
    quiet = {name: [r for r in took if r[0]] for name, took in times.items()}
    counted = {n: quiet[n] if len(quiet[n]) >= ENOUGH else took for n, took in times.items()}
    medians = {name: median(r[1] for r in took) for name, took in counted.items()}
    for name, seconds in medians.items():
        rows.append(
            {
                "kind": "peer",
                "peer": name,
                "shape": shape.name,
                "d": shape.d,
                "f": shape.f,
                "tokens": tokens,
                "mode": mode,
                "dtype": dtype,
                **facts,
                "threads": limits.threads,
                "seconds": seconds,
                "gflops": work.flops / seconds / 1e9,
                "ratio": seconds / medians["ffncore"],
                "share": median(limit / took for _, took, limit in counted[name]),
                "rounds": rounds,
                "quiet_rounds": len(quiet[name]),
            }
        )
    return rows


def peers_of(shape):
    return peer_moe.PEERS if isinstance(shape, MoEShape) else PEERS


def run_shape(workers, shape, mode, args, limits):
    """The rows of all numbers of tokens and routings; those of ffncore come once."""
    mixture = isinstance(shape, MoEShape)
    tokens = args.tokens or (MOE_TOKENS if mixture else TOKENS)
    kinds = args.routing if mixture else [None]
    workers = [worker for worker in workers if worker.name in peers_of(shape)]
    seen = set()
    for group in groups(workers, shape, mode, args.dtype, free_memory()):
        for count, kind in product(tokens, kinds):
            print(f"{shape.name}, {count} tokens, {mode}{', ' + kind if kind else ''}", flush=True)
            rows = run_case(group, shape, count, mode, args.dtype, limits, args.rounds, kind)
            for row in rows:
                if row["peer"] != "ffncore" or (count, kind) not in seen:
                    yield row
            if rows:
                seen.add((count, kind))
        if mixture:
            for worker in group:
                worker.ask(do="drop")


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--shapes", default=",".join(SHAPES))
    add("--tokens", metavar="NUMBERS", help="(default: those of python -m ffncore bench)")
    add("--modes", default="packed,train", help=f"of {', '.join(MODES)}")
    add("--routing", default=ROUTINGS[0], help=f"of mixtures; of {', '.join(ROUTINGS)}")
    add("--peers", metavar="PEERS", help="(default: all that have one of the shapes)")
    add("--dtype", default="float32", choices=DTYPES)
    add("--threads", type=int, default=len(os.sched_getaffinity(0)))
    add("--rounds", type=int, default=9)
    add(
        "--python",
        action="append",
        default=[],
        metavar="PEER=PATH",
        help="the interpreter of a peer",
    )
    add("--json", type=Path, metavar="FILE", help="append every result as a JSON line")
    args = parser.parse_args(argv)
    try:
        args.shapes = [shape for name in args.shapes.split(",") for shape in find_shapes(name)]
        args.tokens = [int(word) for word in args.tokens.split(",")] if args.tokens else None
    except ValueError as error:
        parser.error(str(error))
    args.modes = args.modes.split(",")
    args.routing = args.routing.split(",")
    able = list(dict.fromkeys(name for shape in args.shapes for name in peers_of(shape)))
    args.peers = args.peers.split(",") if args.peers else able
    for word, known in (
        [(w, {**PEERS, **peer_moe.PEERS}) for w in args.peers]
        + [(w, MODES) for w in args.modes]
        + [(w, ROUTINGS) for w in args.routing]
    ):
        if word not in known:
            parser.error(f"{word!r} is not known; expected some of {', '.join(known)}")
    if "ffncore" not in args.peers:
        args.peers.insert(0, "ffncore")
    args.python = dict(word.split("=", 1) for word in args.python)
    return args


def main(argv=None):
    args = parse(argv)
    limits = Limits(active_isa(), args.dtype, args.threads)
    with ExitStack() as stack:
        workers, versions = start(args.peers, args.python, args.threads, stack)
        file = stack.enter_context(args.json.open("a", encoding="utf-8")) if args.json else None

        def keep(row):
            if file is not None:
                print(json.dumps(row), file=file, flush=True)

        try:
            peak = limits.check_peak()
        except LimitError as error:
            print(f"peers: {error}")
            return 1
        keep({**machine_facts(limits.isa, args.threads), "versions": versions})
        keep({"kind": "peak", "isa": limits.isa, "dtype": args.dtype, **peak})
        for shape, mode in product(args.shapes, args.modes):
            for row in run_shape(workers, shape, mode, args, limits):
                keep(row)
                print(
                    f"  {row['peer']:>14} {1e3 * row['seconds']:10.4f} ms {row['gflops']:7.1f} "
                    f"GFLOP/s  {row['share']:.2f} of limit  {row['ratio']:6.2f} x ffncore's time",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
