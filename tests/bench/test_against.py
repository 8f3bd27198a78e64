"""`python -m ffncore bench --against`: other libraries beside ffncore. No time is asserted."""

import json
from contextlib import closing

import pytest
from test_bench import arguments, machine

from ffncore.bench import against, measure, printing, shapes
from ffncore.bench import plan as plans
from ffncore.bench import rows as bench_rows
from ffncore.bench.cases import Case, make_weights
from ffncore.bench.limits import Limits
from ffncore.bench.peers import peer_layers
from ffncore.cli import bench as command


@pytest.fixture
def known_machine(monkeypatch):
    monkeypatch.setattr(
        bench_rows, "Limits", lambda _isa, dtype, threads: Limits("avx2", dtype, threads, machine)
    )
    monkeypatch.setattr(measure, "ROUND_SECONDS", 1e-4)


@pytest.mark.usefixtures("known_machine")
def test_rows_have_the_ratio(tmp_path, capsys):
    file = tmp_path / "out.jsonl"
    words = ("--shapes", "8x24:silu:gated", "--tokens", "1,3", "--seconds", "0", "--threads", "1")
    words += ("--against", "numpy", "--json", str(file))
    assert command.run(arguments(*words)) == 0
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    (told,) = [row for row in rows if row["kind"] == "against"]
    assert (told["peer"], told["threads"]) == ("numpy", 1)
    cases = [row for row in rows if row["kind"] == "case"]
    assert [(row["mode"], row["tokens"]) for row in cases] == [
        (mode, tokens) for mode in shapes.MODES for tokens in (1, 3)
    ]
    for row in cases:
        assert row["against"] == ["numpy"]
        assert row["numpy_seconds"] > 0
        assert row["of_numpy"] > 0
        assert row["numpy_share"] > 0
    assert {row["kind"] for row in rows} == {"machine", "peak", "against", "shape", "case", "pack"}
    printed = capsys.readouterr().out
    assert 'h = act(linear(x, w["gate"], w["b_gate"])) * up' in printed  # the code that runs
    assert "numpy takes" in printed
    line = next(line for line in printed.splitlines() if line.startswith("  packed"))
    assert f"{cases[0]['of_numpy']:.2f} x" in line


@pytest.mark.parametrize(
    "words, sentence",
    [
        (("--against", "nympy"), "--against has 'nympy'; expected some of numpy, torch"),
        (("--against", "numpy", "--dtype", "float16"), "expected float32 or float64 with"),
        (("--against", "numpy", "--shapes", "minilm,olmoe"), "--shapes has olmoe; expected dense"),
        (
            ("--against", "torch", "--dtype", "float16", "--x-dtype", "float32"),
            "--x-dtype is float32; expected float16 with --against",
        ),
    ],
)
def test_wrong_arguments(words, sentence, capsys):
    assert command.run(arguments(*words)) == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("bench: ")
    assert sentence in line


@pytest.mark.usefixtures("known_machine")
def test_what_a_peer_cannot_do_ends_the_run(capsys):
    words = ("--shapes", "8x8:xielu", "--tokens", "1", "--seconds", "0", "--against", "numpy")
    assert command.run(arguments(*words)) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("bench: --against numpy cannot run 8x8:xielu: the numpy layer has no")


class Asked:
    """A worker that is no process."""

    def __init__(self, name, hello, answers=()):
        self.name, self.hello, self.answers, self.closed = name, hello, iter(answers), False

    def read(self):
        return self.hello

    def ask(self, **_message):
        return next(self.answers)

    def close(self):
        self.closed = True


def peers_with(monkeypatch, hello, *answers):
    worker = Asked("torch", hello, answers)
    monkeypatch.setattr(against, "Worker", lambda _name, _threads: worker)
    return worker


@pytest.mark.parametrize(
    "hello, sentence",
    [
        ({"absent": "pip install torch"}, "not installed; pip install torch brings it"),
        ({"error": "the process has ended"}, "cannot be started: the process has ended"),
    ],
)
def test_an_absent_peer(monkeypatch, hello, sentence):
    worker = peers_with(monkeypatch, hello)
    with pytest.raises(against.PeerError, match=sentence):
        against.Against(["torch"], 1)
    assert worker.closed


def test_other_numbers_are_not_timed(monkeypatch):
    shape = shapes.find_shape("8x8")
    result = Case(shape, 2, "float32", make_weights(shape, "float32")).x
    check = peer_layers.check(result)
    wrong = [check[0] + 1, *check[1:]]
    answers = ({"check": check}, {"seconds": 2.0}, {"error": "no memory"}, {"check": wrong})
    peers_with(monkeypatch, {"version": "1"}, *answers)
    with closing(against.Against(["torch"], 1)) as peers:
        assert [row["version"] for row in peers.facts()] == ["1"]
        assert printing.describe(peers.facts()[0]).startswith("torch 1, 1 thread, in a process")
        calls = peers.calls(shape, 2, "raw", "float32", result)
        assert calls["torch"](1) == 2.0
        with pytest.raises(against.PeerError, match="has failed: no memory"):
            calls["torch"](1)
        with pytest.raises(against.PeerError, match="other numbers than ffncore for 8x8, raw"):
            peers.calls(shape, 2, "raw", "float32", result)


@pytest.mark.usefixtures("known_machine")
def test_memory_counts_the_peers(monkeypatch, capsys):
    """A shape that fits alone and not beside a peer is left out."""
    shape = shapes.find_shape("64x512")
    alone = shape.parameters * 4 * 3 + (5 * 64 + 2 * 512) * 4
    monkeypatch.setattr(bench_rows, "free_memory", lambda: 1.05 * alone / bench_rows.MEMORY_SHARE)
    words = ("--shapes", "64x512", "--tokens", "1", "--seconds", "0", "--modes", "raw")
    assert command.run(arguments(*words)) == 0
    assert "left out" not in capsys.readouterr().out
    assert command.run(arguments(*words, "--against", "numpy")) == 0
    assert "64x512, plain: left out, needs" in capsys.readouterr().out


def test_plan():
    assert plans.Plan(arguments()).against == ()
    assert plans.Plan(arguments("--against", "numpy,numpy")).against == ("numpy",)
