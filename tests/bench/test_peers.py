"""Other libraries in processes of their own: the layers, the protocol, and bench/peers.py."""

import os
import sys
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from test_bench import in_tree, tool

import ffncore as fc
from ffncore.bench import shapes
from ffncore.bench.peers import peer_layers, process
from ffncore.bench.peers.worker import AGREE, Worker, same

TINY = shapes.Shape("tiny", 8, 16, "gelu", bias=True)


def ours(w, x, grad_y, spec):
    """y, and in training the gradients of x and up; of ffncore."""
    weights = fc.FFNWeights(**w)
    y, saved = fc.ffn_forward(x, weights, activation=spec["activation"])
    if spec["mode"] != "train":
        return y
    grads = fc.ffn_backward(grad_y, saved)
    return y, grads.x, grads.weights.up


@pytest.mark.parametrize("gated, bias", [(False, True), (True, False), (True, True)])
@pytest.mark.parametrize("activation", peer_layers.ACTIVATIONS)
def test_numpy_does_the_same_work(activation, gated, bias):
    shape = asdict(shapes.Shape("s", 24, 56, activation, gated, bias))
    for dtype, mode in (("float32", "packed"), ("float64", "train")):
        w, (x, grad_y) = peer_layers.weights(shape, dtype), peer_layers.inputs(shape, dtype, 5)
        spec = {**shape, "mode": mode, "threads": 1}
        result = peer_layers.numpy_peer(w, x, grad_y, spec)()
        found, expected = (peer_layers.check(r) for r in (result, ours(w, x, grad_y, spec)))
        reach = 2e-6 * np.abs(expected).max()  # the polynomial of numpy's erf
        np.testing.assert_allclose(found, expected, rtol=0, atol=reach)
        first = result[0] if isinstance(result, tuple) else result
        assert first.dtype == dtype


def test_numpy_has_every_activation_without_parameters():
    assert {fc.Activation(name).name for name in peer_layers.ACTIVATIONS} == {
        *("identity", "relu", "relu2", "gelu", "gelu_tanh", "quick_gelu", "silu", "sigmoid"),
        *("tanh", "mish", "hardswish", "leaky_relu"),
    }


@pytest.mark.parametrize(
    "changes, dtype, sentence",
    [
        ({"activation": "xielu"}, "float32", "the numpy layer has no xielu; it has identity"),
        ({"options": [["alpha", 2.0]]}, "float32", "has no gelu with options"),
        ({}, "float16", "numpy multiplies 16-bit matrices one number at a time"),
    ],
)
def test_layers_say_what_they_cannot(changes, dtype, sentence):
    shape = asdict(TINY)
    w, (x, grad_y) = peer_layers.weights(shape, dtype), peer_layers.inputs(shape, dtype, 1)
    with pytest.raises(ValueError, match=sentence):
        peer_layers.numpy_peer(w, x, grad_y, {**shape, "mode": "raw", "threads": 1, **changes})


def test_a_peer_answers_questions():
    """As in its process: setup, round, drop."""
    peer = process.Peer("numpy", 1, peer_layers)
    case = {"shape": asdict(TINY), "tokens": 3, "mode": "train", "dtype": "float32"}
    assert len(peer.setup(case)["check"]) == 3 * 8
    kept = peer.weights
    assert peer.setup({**case, "tokens": 5})["check"]
    assert peer.weights is kept  # of the same shape and dtype
    assert peer.round(2)["seconds"] > 0
    assert peer.drop() == {}
    assert peer.weights is None


def test_layers_of_a_path(tmp_path):
    """Afterwards no file beside process.py or beside the layers hides a module of a library."""
    (tmp_path / "some_layers.py").write_text("VALUE = 3\n", "utf-8")
    before = list(sys.path)
    try:
        sys.path.insert(0, str(Path(process.__file__).parent))  # as an interpreter does
        assert process._layers(tmp_path / "some_layers.py").VALUE == 3
        assert sys.path == before
    finally:
        sys.path[:] = before
        del sys.modules["some_layers"]


def test_numbers_of_the_same_work():
    assert same([1.0, 2.0001], [1.0, 2.0], "float32")
    assert not same([1.0, 2.1], [1.0, 2.0], "float32")
    assert not same([1.0, float("nan")], [1.0, 2.0], "float32")
    assert same([[1.0], [1e4]], [[1.0], [1.0001e4]], "float32")
    assert not same([[1.1], [1e4]], [[1.0], [1e4]], "float32")  # every result has its own scale
    assert set(AGREE) == {"float32", "float64", "bfloat16", "float16"}


def test_a_worker_stands_still_until_it_is_asked():
    with closing(Worker("numpy", 1, pin=True)) as worker:
        assert worker.read()["version"] == np.__version__
        case = {"shape": asdict(TINY), "tokens": 3, "mode": "packed", "dtype": "float32"}
        assert "check" in worker.ask(do="setup", **case)
        stat = Path(f"/proc/{worker.process.pid}/stat")
        until = time.monotonic() + 10
        while stat.read_text("utf-8").rpartition(")")[2].split()[0] != "T":
            assert time.monotonic() < until
        assert len(os.sched_getaffinity(worker.process.pid)) == 1
        assert worker.ask(do="round", repeats=1)["seconds"] > 0
        case["shape"]["activation"] = "xielu"
        assert "has no xielu" in worker.ask(do="setup", **case)["error"]
        assert "TypeError" in worker.ask(do="round", repeats=1)["error"]  # nothing is set up
    assert worker.process.returncode == 0


# ---- bench/peers.py


@in_tree
@pytest.mark.parametrize("mode", shapes.MODES)
def test_dense_peers_do_the_same_work(mode):
    dense = tool("peer_dense")
    shape = asdict(shapes.Shape("s", 24, 56, "silu", True))
    w, (x, grad_y) = dense.weights(shape), dense.inputs(shape, "float32", 5)
    spec = {**shape, "mode": mode, "threads": 1}
    results = [dense.check(dense.PEERS[n][1](w, x, grad_y, spec)()) for n in ("ffncore", "numpy")]
    assert same(results[1], results[0], "float32")


@in_tree
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("gated", [False, True])
def test_openvino_does_the_same_work(gated, dtype):
    pytest.importorskip("openvino")
    pytest.importorskip("ml_dtypes")
    dense = tool("peer_dense")
    shape = asdict(shapes.Shape("s", 24, 56, "gelu", gated))
    w, (x, grad_y) = dense.weights(shape, dtype), dense.inputs(shape, dtype, 5)
    spec = {**shape, "mode": "packed", "threads": 1}
    ours, theirs = (
        dense.check(dense.PEERS[n][1](w, x, grad_y, spec)()) for n in ("ffncore", "openvino")
    )
    assert same(theirs, ours, dtype)


@in_tree
def test_every_peer_has_its_place():
    assert tool("peers")  # which imports the others
    dense, moe = sys.modules["peer_dense"], sys.modules["peer_moe"]
    assert set(tool("plot").PEERS) == set(dense.PEERS)
    assert {*dense.PEERS, *moe.PEERS} <= set(dense.INSTALL)
    assert dense.table({"n_experts": 4}) is moe
    assert dense.table({}) is dense
    assert dense.module_of("kt-kernel") == "kt_kernel"


@in_tree
def test_arguments_of_the_tool(capsys):
    peers = tool("peers")
    args = peers.parse(["--peers", "numpy", "--tokens", "1,2", "--python", "zentorch=/x/python"])
    assert args.peers == ["ffncore", "numpy"]
    assert args.modes == ["packed", "train"]
    assert args.python == {"zentorch": "/x/python"}
    for wrong in (["--peers", "nympy"], ["--modes", "infer"], ["--shapes", "8x8:silu:yes"]):
        with pytest.raises(SystemExit):
            peers.parse(wrong)
        assert wrong[1].rpartition(":")[2] in capsys.readouterr().err


@in_tree
def test_peers_that_disagree_are_found():
    agree = tool("peers").agree
    assert agree({"ffncore": [1.0, 2.0], "a": [1.0, 2.0001], "b": [1.0, 2.1]}) == ["b"]


def test_a_worker_that_has_ended_can_be_closed():
    worker = Worker("numpy", 1)
    worker.read()
    worker.process.kill()
    worker.process.wait()
    assert worker.ask(do="setup") == {"error": "the process has ended"}
    worker.close()
    assert worker.process.stdin.closed
