"""How fast few tokens go through packed weights on this machine, in two minutes.

    python bench/few_tokens.py [--dtype float32] [--isa avx2] [--threads 2]

Few tokens wait for the weights, so how a thread reads them decides (csrc/core/streams.h). For five
layers, in the caches and beyond them, each row has the share of the machine's limit, the fastest of
numpy and torch (where it is installed) with its time over ffncore's, and the times of other ways of
reading over that of ffncore's own choice:

    1, 8 KB   one packed panel at a time, prefetched 8 KB ahead
    1         one packed panel at a time, without software prefetching
    2, 4, 8   so many panels side by side, without prefetching
    4, 2 KB   four panels side by side, each prefetched 2 KB ahead

Above 1, ffncore's own choice is faster. A machine whose columns have numbers below 1 wants another
row in the table of csrc/core/streams.cpp.
"""

import argparse
from contextlib import closing
from functools import partial
from importlib.util import find_spec

import ffncore as fc
from ffncore import _core
from ffncore.bench import cases, measure, shapes
from ffncore.bench.against import Against
from ffncore.bench.limits import Limits, machine_facts

SHAPES = ("minilm", "smollm2-135m", "bert-base", "2048x4096:silu:gated", "llama-3.2-1b")
TOKENS = (1, 2, 3, 4, 8)
# Panels side by side, and bytes ahead.
WAYS = {
    "1, 8 KB": (1, 8192),
    "1": (1, 0),
    "2": (2, 0),
    "4": (4, 0),
    "8": (8, 0),
    "4, 2 KB": (4, 2048),
}
SECONDS = 2.0  # for each row


def read_in(way, call):
    """One call with that way of reading."""
    _core.debug_streams(*way)
    call()
    _core.debug_streams()


def run(dtype, threads, print_line=print):
    limits = Limits(fc.active_isa(), dtype, threads)
    print_line("{cpu}, {isa}, {threads} threads".format(**machine_facts(limits.isa, threads)))
    print_line(f"{'layer':>22} {'tokens':>6} {'GB/s':>6} {'share':>6} {'best peer':>12}   ", *WAYS)
    # numpy multiplies 16-bit matrices one number at a time.
    names = ["numpy"] if dtype in ("float32", "float64") else []
    names += ["torch"] if find_spec("torch") else []
    with closing(Against(names, threads)) as against:
        for name in SHAPES:
            shape = shapes.find_shape(name)
            weights = cases.make_weights(shape, dtype)
            packed = fc.pack(weights)
            for tokens in TOKENS:
                case = cases.Case(shape, tokens, dtype, weights)
                call = case.forward(packed)
                row = measure.measure(
                    shapes.cost(shape, tokens, "packed", weights.dtype.itemsize),
                    shape,
                    call,
                    limits,
                    SECONDS,
                    beside={way: partial(read_in, WAYS[way], call) for way in WAYS},
                    peers=against.calls(shape, tokens, "packed", dtype, call()),
                )
                others = "  ".join(f"{row[f'of_{way}']:{max(len(way), 4)}.2f}" for way in WAYS)
                ratio, best = min(
                    ((row[f"of_{peer}"], peer) for peer in names), default=(0, "none")
                )
                print_line(
                    f"{name:>22} {tokens:>6} {row['gbytes']:6.1f} {row['share']:6.2f} "
                    f"{ratio:6.2f} {best:>5}    {others}"
                )
            against.drop()
    limits.release()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64", "bfloat16"])
    parser.add_argument("--isa", metavar="NAME", help="default: the one that ffncore would use")
    parser.add_argument("--threads", type=int, default=fc.get_num_threads(), metavar="N")
    args = parser.parse_args(argv)
    with fc.using_isa(args.isa), fc.num_threads(args.threads):
        run(args.dtype, args.threads)


if __name__ == "__main__":
    main()
