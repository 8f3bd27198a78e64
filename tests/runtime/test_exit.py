"""The process exits with status 0 even if daemon threads are inside calls of the compiled core.

A daemon thread cannot get the GIL back when the interpreter exits; csrc/bindings/gil.h says what it
does then. CALLS has an entry for every function that releases the GIL, and a test compares it with
the source of the bindings.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

BINDINGS = Path(__file__).parents[2] / "csrc" / "bindings"

# The calls that a thread repeats, by their names in _core. Each takes about 1 ms.
CALLS = {
    "ffn_forward": "fc.ffn(x, w, activation='silu')",
    "ffn_backward": "fc.ffn_backward(x, saved)",
    "activation_forward": "fc.activation(big, activation='gelu')",
    "activation_backward": "fc.activation_backward(big, big, activation='gelu')",
    "moe_forward": "fc.moe(x, routing, experts, activation='silu')",
    "moe_backward": "fc.moe_backward(x, moe_saved)",
    "route": "fc.route(big, 8)",
    "route_backward": "fc.route_backward(big_routing.weights, big_routing)",
    "norm_forward": "fc.rms_norm(big, gain)",
    "norm_backward": "fc.rms_norm_backward(big, big, gain)",
    "pack": "fc.pack(w)",
    "pack_coded": "fc.pack(quantised)",
    "unpack": "packed.unpack()",
    "clear_workspace": "fc.clear_workspace()",
    "measure": "_core.measure('fma', _core.isa(), 'float32', 0, 0.001, 1)",
}

SETUP = """
import os, sys, threading, time
import numpy as np
import ffncore as fc
from ffncore import _core
r = np.random.default_rng(0)
f = lambda *shape: r.normal(size=shape).astype("f4")
x, big = f(64, 256), f(2048, 256)
w = fc.FFNWeights(up=f(1024, 256), gate=f(1024, 256), down=f(256, 1024))
experts = fc.FFNWeights(up=f(4, 256, 256), gate=f(4, 256, 256), down=f(4, 256, 256))
gain, quantised = f(256), fc.quantize(w, "q8_0")
packed, saved = fc.pack(w), fc.ffn_forward(x, w, activation="silu")[1]
routing, big_routing = fc.route(f(64, 4), 2), fc.route(big, 8)
moe_saved = fc.moe_forward(x, routing, experts, activation="silu")[1]
started = threading.Semaphore(0)
def repeat(call):
    call()
    started.release()
    while True:
        call()
def start(*calls):
    for call in calls:
        threading.Thread(target=repeat, args=(call,), daemon=True).start()
    for _ in calls:
        assert started.acquire(timeout=60)
"""


def run(script, *, threads="2"):
    done = subprocess.run(
        [sys.executable, "-c", SETUP + script],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PYTHONPATH": ":".join(filter(None, sys.path)), "FFNCORE_NUM_THREADS": threads},
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def test_every_call_that_lets_go_of_the_lock_is_tried():
    """The functions of the bindings whose body has run(...) or without_gil(...)."""
    source = "".join(path.read_text() for path in sorted(BINDINGS.glob("*.cpp")))
    functions = re.split(r"\n(?=\S[^\n]*\()", source)
    inside = {
        re.search(r"(\w+)\(", body)[1]
        for body in functions
        if re.search(r"\b(run|without_gil)\(\[", body) and "PYBIND11_MODULE" not in body
    }
    module = source[source.index("PYBIND11_MODULE") :]
    for part in module.split("m.def(")[1:]:
        if re.search(r"\b(run|without_gil)\(\[", part):
            inside.add(re.search(r'"(\w+)"', part)[1])
    assert inside == set(CALLS)
    assert "gil_scoped_release" not in re.sub(r"//.*", "", source)


@pytest.mark.parametrize("name", CALLS)
def test_daemon_thread(name):
    # Three threads, so that at the exit one of them is inside the core or waits for the GIL.
    call = f"lambda: {CALLS[name]}"
    run(f"start({call}, {call}, {call})\ntime.sleep(0.05)")


@pytest.mark.parametrize("threads", ["1", "2", "7"])
def test_all_at_once(threads):
    calls = ", ".join(f"lambda: {call}" for call in CALLS.values())
    run(f"start({calls})\ntime.sleep(0.1)", threads=threads)


@pytest.mark.parametrize("end", ["os._exit(0)", "sys.exit(0)", "raise SystemExit"])
def test_ends(end):
    run(f"start(lambda: {CALLS['ffn_forward']})\ntime.sleep(0.05)\n{end}")


def test_thread_that_exit_waits_for():
    """A thread that is not a daemon: the interpreter joins it, and its result is complete."""
    script = """
def once():
    y = fc.ffn(x, w, activation="silu")
    assert np.array_equal(y, fc.ffn(x, w, activation="silu"))
    print("done")
threading.Thread(target=once).start()
"""
    assert run(script) == "done\n"


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="there is no fork")
def test_fork_while_a_thread_computes():
    """Both parent and child exit normally; the child has a thread pool of its own."""
    script = f"""
import warnings
warnings.simplefilter("ignore")  # Python warns of fork beside threads
start(lambda: {CALLS["ffn_forward"]}, lambda: {CALLS["moe_forward"]})
child = os.fork()
fc.ffn(x, w, activation="silu")
if child == 0:
    start(lambda: {CALLS["ffn_backward"]})
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    run(script)


def test_subinterpreter():
    """A subinterpreter is refused, by numpy if it is new enough, else by the module."""
    module = "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
    pytest.importorskip(module)
    script = f"""
import {module} as interpreters
start(lambda: {CALLS["ffn_forward"]})
other = interpreters.create()
try:
    code = "import sys, warnings; warnings.simplefilter('ignore'); sys.path[:] = " + repr(sys.path)
    failed = interpreters.run_string(other, code + "; import ffncore")
except Exception as error:
    failed = error
print(failed)
interpreters.destroy(other)
"""
    printed = run(script)
    assert "ImportError" in printed
    own = "ffncore is imported in a subinterpreter; expected the main interpreter"
    assert own in printed or "numpy" in printed or "more than once per process" in printed
