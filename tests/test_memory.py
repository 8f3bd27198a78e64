"""Extra memory: 64 MiB plus 4 MiB a thread beyond inputs, outputs, saved tensors, for any T."""

import subprocess
import sys

import pytest

import ffncore as fc

# Runs alone in a process: VmHWM is the largest memory that it ever had. All that a call may have is
# made and touched before, so that what is added is what the call takes for itself.
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
        # save="input" keeps nothing of T x d_ff: that alone would be 128 MiB here.
        assert (kept == 0) == (save == "input")


def test_the_plan_says_what_it_will_take():
    limit = (64 + 4 * fc.get_num_threads()) * 2**20
    for tokens in (1, 16, 128, 1024, 65536, 2**20):
        for d, f in ((384, 1536), (4096, 14336), (8192, 28672)):
            for op in ("ffn", "ffn_forward", "ffn_backward"):
                for save in ("preactivations", "input"):
                    plan = fc.cost(tokens, d_model=d, d_ff=f, op=op, save=save)
                    assert plan.extra_bytes <= limit, (tokens, d, f, op, save, plan)
