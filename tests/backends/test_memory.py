"""Extra memory beyond inputs, outputs and saved activations: 64 MiB plus 4 MiB per thread."""

# ruff: noqa: ARG001 (a test names the fixtures that it runs under)

import itertools
import subprocess
import sys

import pytest

import ffncore as fc
from ffncore.reference.sums import PARTIAL_SUM

# Runs in a process of its own: VmHWM is the largest memory that a process ever had. All arguments
# of the call are made and touched before, so that the increase is the memory of the call itself.
SCRIPT = """
import sys
import numpy as np
import ffncore as fc

tokens, kind, save = int(sys.argv[1]), sys.argv[2], sys.argv[3]
d, f = 128, 512

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

def filled(*shape):
    return np.full(shape, 1e-2, np.float32)

arrays = dict(gate=filled(f, d), up=filled(f, d), down=filled(d, f))
w = fc.FFNWeights(**arrays)
p = fc.pack(w)
x, y, grad_x = filled(tokens, d), filled(tokens, d), filled(tokens, d)
out = {"x": grad_x, **{name: np.ones_like(a) for name, a in arrays.items()}}
fc.ffn_forward(x[:64], w, activation="silu")  # the pool's threads and their stacks
before = peak()
kept = 0
if kind == "ffn":
    fc.ffn(x, w, activation="silu", out=y)
elif kind == "packed":
    fc.ffn(x, p, activation="silu", out=y)
else:
    _, saved = fc.ffn_forward(x, w, activation="silu", save=save, out=y)
    kept = saved.nbytes
    if kind == "backward":
        fc.ffn_backward(y, saved, out=out)
print(peak() - before - kept, kept, fc.get_num_threads())
"""


def extra(tokens, kind, save="input"):
    command = [sys.executable, "-c", SCRIPT, str(tokens), kind, save]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return tuple(int(word) for word in done.stdout.split()[:3])


@pytest.mark.parametrize(
    "kind, save",
    [
        *(("ffn", "input"), ("packed", "input")),
        *(("forward", "preactivations"), ("forward", "input")),
        *(("backward", "preactivations"), ("backward", "input")),
    ],
)
def test_extra_memory_does_not_grow_with_the_tokens(kind, save):
    if fc.available_isas() == ("scalar",):
        pytest.skip("64k tokens take minutes in the scalar level")
    for tokens in (1024, 65536):
        taken, kept, threads = extra(tokens, kind, save)
        assert taken <= (64 + 4 * threads) * 2**20, f"{tokens} tokens take {taken / 2**20:.1f} MiB"
        # save="input" keeps no array of T x d_ff, which alone would take 128 MiB here.
        assert (kept == 0) == (save == "input")


SHAPES = (  # d, f
    *((1, 1), (8, 8), (1, 1_000_000), (384, 1536)),
    *((4096, 14336), (8192, 28672), (12288, 49152), (18432, 73728)),
)
CALLS = (
    *({"op": "ffn"}, {"op": "ffn", "packed": True}, {"op": "ffn_forward"}),
    *(
        {"op": "ffn_backward", "save": save, **options}
        for save in ("preactivations", "input")
        for options in (
            *({}, {"packed": True}, {"needs": ("x",)}, {"needs": ("up", "down")}),
            *({"activation": "xielu"}, {"activation": "xielu", "needs": ("activation",)}),
        )
    ),
)


@pytest.mark.parametrize(
    "threads", [1, 64]
)  # memory that threads share is tightest for one thread, workspace for many
def test_the_plan_stays_within_the_promise(threads, isa, dtype, gated):
    limit = (64 + 4 * threads) * 2**20
    # More tokens are more chunks, with the same scratch, and wide layers take long to count.
    few, many = (1, 16, 1000), (PARTIAL_SUM + 513, 2**20)
    with fc.num_threads(threads):
        for (d, f), tokens, call in itertools.product(SHAPES, few + many, CALLS):
            largest = 384 * 1536 if tokens == 2**20 else 12288 * 49152
            if tokens in many and (threads > 1 or d * f > largest):
                continue
            plan = fc.cost(tokens, d_model=d, d_ff=f, gated=gated, dtype=dtype, **call)
            allowed = limit
            if dtype.itemsize == 2 and call["op"] == "ffn_backward":
                # Sums over tokens in float32: dx of all tokens, with a partial sum beside where it
                # has several, or the weights' gradients.
                sums = 1 if f <= PARTIAL_SUM else 2
                allowed += 4 * min(sums * (tokens + 63) * d, (3 if gated else 2) * (d + 1) * f)
            assert plan.extra_bytes <= allowed, (tokens, d, f, call, plan)


def test_few_tokens_take_little(isa, dtype, gated):
    # Sums over tokens run in blocks of 512, but 16 tokens are not held as 512.
    for save in ("preactivations", "input"):
        call = {"d_model": 384, "d_ff": 1536, "gated": gated, "dtype": dtype, "save": save}
        few, many = (fc.cost(t, op="ffn_backward", **call).token_chunk for t in (16, 512))
        assert few <= 64 < many
