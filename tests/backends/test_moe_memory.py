"""The extra memory of a mixture is bounded for any T: no array [T, k, d] or [T, k, f] is made.

Here such arrays would have 64 and 128 MiB, and there would be several.
"""

import subprocess
import sys

import pytest

import ffncore as fc

# Runs in a process of its own; see test_memory.py.
SCRIPT = """
import sys
import numpy as np
import ffncore as fc

tokens, kind, save = int(sys.argv[1]), sys.argv[2], sys.argv[3]
d, f, n, k = 64, 128, 8, 4

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

def filled(*shape):
    return np.full(shape, 1e-2, np.float32)

arrays = dict(gate=filled(n, f, d), up=filled(n, f, d), down=filled(n, d, f))
w = fc.FFNWeights(**arrays)
weights = fc.pack(w) if kind == "packed" else w
x, y, grad_x = filled(tokens, d), filled(tokens, d), filled(tokens, d)
factors, grad_factors = filled(tokens, k), filled(tokens, k)
ids = np.arange(tokens * k, dtype=np.int32).reshape(tokens, k) * 5 % n
routing = fc.Routing(experts=ids, weights=factors)
out = {"x": grad_x, "routing_weights": grad_factors}
out |= {name: np.ones_like(a) for name, a in arrays.items()}
few = fc.Routing(experts=ids[:64], weights=factors[:64])
fc.moe_forward(x[:64], few, w, activation="silu")  # the pool's threads and their stacks
before = peak()
kept = 0
if kind in ("moe", "packed"):
    fc.moe(x, routing, weights, activation="silu", out=y)
else:
    _, saved = fc.moe_forward(x, routing, w, activation="silu", save=save, out=y)
    kept = saved.nbytes
    if kind == "backward":
        fc.moe_backward(y, saved, out=out)
print(peak() - before - kept, kept, fc.get_num_threads())
"""


@pytest.mark.parametrize(
    "kind, save",
    [
        *(("moe", "input"), ("packed", "input"), ("forward", "preactivations")),
        *(("backward", "preactivations"), ("backward", "input")),
    ],
)
def test_extra_memory_does_not_grow_with_the_tokens(kind, save):
    if fc.available_isas() == ("scalar",):
        pytest.skip("64k tokens take minutes in the scalar level")
    command = [sys.executable, "-c", SCRIPT, "65536", kind, save]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    taken, kept, threads = (int(word) for word in done.stdout.split())
    limit = (64 + 4 * threads) * 2**20
    assert taken <= limit, f"{taken / 2**20:.1f} MiB"
    assert (kept == 0) == (save == "input")
