"""The bench and its tools: arguments, arithmetic, output. No time is asserted."""

import argparse
import importlib.util
import json
import sys
from pathlib import Path

import pytest
from support import BFLOAT16

import ffncore as fc
from ffncore import _core
from ffncore.bench import measure, mixture_shapes, printing, shapes
from ffncore.bench import plan as plans
from ffncore.bench import rows as bench_rows
from ffncore.bench.limits import LimitError, Limits, machine_facts
from ffncore.cli import bench as command

BENCH = Path(__file__).parents[2] / "bench"
in_tree = pytest.mark.skipif(not (BENCH / "compare.py").exists(), reason="bench/ is not here")


def tool(name):
    """A script of bench/ as a module."""
    if str(BENCH) not in sys.path:
        sys.path.insert(0, str(BENCH))
    spec = importlib.util.spec_from_file_location(name, BENCH / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arguments(*words):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(words)


def machine(what, isa, dtype, _bytes, _seconds, threads):
    """A machine with round numbers: 3 GHz, two units, 100 GB/s, 1e9 elements/s."""
    lanes = {"avx512bf16": 16, "avx512": 16, "avx2": 8}[isa]
    lanes *= {"float64": 0.5, "bfloat16": 2 if isa == "avx512bf16" else 1}.get(dtype, 1)
    return {"fma": 3e9 * 2 * lanes * 2 * threads, "clock": 3e9, "read": 1e11}.get(what, 1e9)


def test_costs():
    plain = shapes.Shape("p", 10, 40, "gelu", bias=True)
    gated = shapes.Shape("g", 10, 40, "silu", gated=True)
    assert plain.parameters == 2 * 400 + 40 + 10
    assert gated.parameters == 3 * 400
    forward = shapes.cost(gated, 7, "packed", 4)
    assert forward.flops == 6 * 7 * 400
    assert forward.bytes == forward.footprint == 4 * 1200
    train = shapes.cost(gated, 7, "train", 4)
    assert train.flops == 3 * forward.flops
    assert train.bytes == 3 * forward.bytes
    assert train.backward_activations == 7 * 40


def test_shapes_by_name():
    assert shapes.find_shape("llama-3.1-8b").f == 14336
    shape = shapes.find_shape("1000x2744:gelu:gated")
    assert (shape.d, shape.f, shape.activation, shape.gated) == (1000, 2744, "gelu", True)
    for wrong in ("lama", "10x", "0x5", "x"):
        with pytest.raises(ValueError, match="expected DxF"):
            shapes.find_shape(wrong)


@pytest.mark.parametrize(
    "name, gated, bias, activation",
    [
        ("8x24", False, False, "silu"),
        ("8x24:plain", False, False, "silu"),
        ("8x24:swish:bias", False, True, "silu"),
        ("8x24:gated:gelu:bias", True, True, "gelu"),
    ],
)
def test_fields_of_a_shape(name, gated, bias, activation):
    shape = shapes.find_shape(name)
    assert (shape.gated, shape.bias, shape.activation) == (gated, bias, activation)


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("8x24:silu:yes", "shape '8x24:silu:yes' has the extra field 'yes'; expected DxF"),
        ("8x24:silu:gated:8", "has the extra field '8'; expected DxF"),
        ("8x24:gated:gated", "has the extra field 'gated'; expected DxF"),
        ("8x24:silu:", "has the extra field ''; expected DxF"),
        ("8x24:gated:plain", "is gated and plain; expected DxF"),
        ("8x24:yes", "shape '8x24:yes' is not DxF.*: activation 'yes' is not known"),
    ],
)
def test_unknown_and_extra_fields_are_errors(name, sentence):
    for find in (shapes.find_shape, mixture_shapes.find_shapes):
        with pytest.raises(ValueError, match=sentence):
            find(name)


def test_limit_is_the_larger_term():
    limits = Limits("avx512", "float32", 2, machine)
    few = shapes.Cost(
        flops=384e6, forward_activations=0, backward_activations=0, bytes=1e9, footprint=1e9
    )
    assert limits.time(few, "silu", False) == (pytest.approx(0.01), "byte")
    many = shapes.Cost(
        flops=384e9, forward_activations=1e9, backward_activations=2e9, bytes=1e9, footprint=1e9
    )
    assert limits.time(many, "silu", False, 0.001) == (pytest.approx(1 + 1 + 2), "flop")


def test_peak_is_checked():
    result = Limits("avx2", "float64", 2, machine).check_peak()
    assert result["units"] == 2
    assert abs(result["deviation"]) < 1e-9
    for isa in ("avx2", "avx512bf16"):
        for dtype in ("float32", "float16", "bfloat16") if BFLOAT16 else ("float32", "float16"):
            assert Limits(isa, dtype, 2, machine).check_peak()["units"] == 2

    def off_by(factor):
        return lambda what, *rest: machine(what, *rest) * (factor if what == "fma" else 1)

    Limits("avx2", "float64", 2, off_by(1.02)).check_peak()
    assert Limits("avx2", "float64", 2, off_by(0.5)).check_peak()["units"] == 1
    for factor in (0.9, 1.1, 1000):  # 1000: a loop that was deleted
        with pytest.raises(LimitError, match="FMA peak"):
            Limits("avx2", "float64", 2, off_by(factor)).check_peak()
    with pytest.raises(LimitError, match="cannot be measured"):
        Limits("avx2", "float64", 2, lambda *_: -1.0).check_peak()


def test_native_measurements_answer():
    """The C++ loops run and give positive numbers; how large they are is the machine's business."""
    isa = fc.active_isa()
    for what, nbytes in (("fma", 0), ("clock", 0), ("read", 1 << 20), ("issue", 0)):
        if isa == "scalar" and "fma" not in fc.cpu_features() and what != "read":
            continue
        for dtype in ("float32", "float16", "bfloat16"):
            assert _core.measure(what, isa, dtype, nbytes, 0.003, 1) > 0
    for direction in ("forward", "backward"):
        for form in ("plain", "gated"):
            what = f"activation:silu:{direction}:{form}"
            assert _core.measure(what, isa, "float64", 0, 0.003, 2) > 0
    assert _core.measure("release", isa, "float32", 0, 0.0, 1) == 0


def test_machine_facts_are_json():
    facts = machine_facts("avx2", 2)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["ffncore"] == fc.__version__


def test_plan():
    plan = plans.Plan(arguments())
    assert len(plan.shapes) == 8
    assert plan.tokens == [1, 2, 4, 8, 16, 32, 64, 128, 512, 4096]
    assert plan.modes == ("packed", "raw", "train")
    quick = plans.Plan(arguments("--quick", "--tokens", "3,37", "--modes", "raw"))
    assert (quick.tokens, quick.modes) == ([3, 37], ("raw",))
    assert len(quick.shapes) < 8
    assert quick.parts == plans.PARTS
    assert plans.Plan(arguments("--shapes", "minilm")).parts == ("cases",)
    assert plans.Plan(arguments("--shapes", "minilm", "--parts", "calls")).parts == ("calls",)


@pytest.mark.parametrize(
    "words",
    [
        ("--shapes", "nothing"),
        ("--shapes", "8x8:gleu"),
        ("--tokens", "0"),
        ("--tokens", "x"),
        ("--modes", "fast"),
        ("--parts", "all"),
        ("--isa", "neon"),
        ("--threads", "0"),
        ("--x-dtype", "float32", "--dtype", "float64"),
    ],
)
def test_wrong_arguments(words, capsys):
    assert command.run(arguments(*words)) == 2
    assert capsys.readouterr().out.startswith("bench: ")


@pytest.mark.parametrize(
    "dtype, x_dtype",
    [("float32", "float32"), ("float16", "float16"), ("float16", "float32")]
    + [("bfloat16", "bfloat16") for _ in BFLOAT16],
)
def test_run_writes_rows(dtype, x_dtype, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        bench_rows, "Limits", lambda _isa, dtype, threads: Limits("avx2", dtype, threads, machine)
    )
    monkeypatch.setattr(measure, "ROUND_SECONDS", 1e-4)
    file = tmp_path / "out.jsonl"
    words = ("--shapes", "8x24:silu:gated,odd", "--tokens", "1,3", "--seconds", "0")
    words += ("--dtype", dtype, "--parts", "cases", "--json", str(file))
    words += ("--x-dtype", "float32") if x_dtype != dtype else ()
    assert command.run(arguments(*words)) == 0
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert [row["kind"] for row in rows[:3]] == ["machine", "peak", "shape"]
    cases = [row for row in rows if row["kind"] == "case"]
    assert [(r["shape"], r["mode"], r["tokens"]) for r in cases[:3]] == [
        ("8x24:silu:gated", "packed", 1),
        ("8x24:silu:gated", "packed", 3),
        ("8x24:silu:gated", "raw", 1),
    ]
    assert len(cases) == 2 * 3 * 2
    packs = [row for row in rows if row["kind"] == "pack"]
    assert [(r["shape"], r["source"]) for r in packs] == [
        (name, x_dtype) for name in ("8x24:silu:gated", "odd")
    ]
    for row in packs:
        assert row["share"] == pytest.approx(row["bytes_per_second"] / 1e11, rel=1e-4)
    for row in cases:
        assert row["dtype"] == (dtype if x_dtype == dtype else f"{dtype} under {x_dtype}")
        assert row["gflops"] == pytest.approx(row["flops"] / row["seconds"] / 1e9, rel=1e-4)
        assert row["rounds"] >= 5
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= len(rows)
    forms = [
        word for line in lines if line[:8].strip() in shapes.MODES for word in line.split()[1:2]
    ]
    assert forms == ["gated"] * 6 * 2  # of both shapes


def test_only_quiet_rounds_count():
    """Every second look at the issue rate finds a neighbour; then eight looks find none."""
    looks = iter([1e9] * 3 + [1e9, 5e8] * 3 + [1e9] * 100)

    def shared(what, *rest):
        return next(looks) if what == "issue" else machine(what, *rest)

    limits = Limits("avx2", "float32", 2, shared)
    assert [limits.quiet() for _ in range(9)] == [True, True, True, *[True, False] * 3]
    looks = iter([1e9, 5e8] * 2 + [1e9] * 100)
    shape = shapes.find_shape("8x24")
    row = bench_rows.measure_case(shape, 1, "raw", lambda: None, "float32", limits, 1e-9)
    assert (row["rounds"], row["quiet_rounds"]) == (5, 1)  # patience is at its end
    row = bench_rows.measure_case(shape, 1, "raw", lambda: None, "float32", limits, 0.05)
    assert row["quiet_rounds"] >= 5


def test_a_wrong_peak_fails_the_run(capsys, monkeypatch):
    def deleted(what, *rest):
        return machine(what, *rest) * (1000 if what == "fma" else 1)

    monkeypatch.setattr(
        bench_rows, "Limits", lambda _isa, dtype, threads: Limits("avx2", dtype, threads, deleted)
    )
    assert command.run(arguments("--quick")) == 1
    assert "bench: FMA peak" in capsys.readouterr().out


def test_every_kind_of_row_has_a_line():
    row = bench_rows.call_cost("packed", 0.0, "float16", "float32", repeats=3)
    assert "back to back" in printing.describe(row)
    limits = Limits("avx2", "float32", 1, machine)
    assert "takes 1.00 times as long" in printing.describe(
        bench_rows._activation_row("silu", True, limits)
    )
    assert "left out" in printing.describe(
        {"kind": "skipped", "shape": "s", "gated": True, "reason": "r"}
    )


def case(shape="s", share=0.9, tokens=1):
    common = {"dtype": "float32", "isa": "avx2", "threads": 2, "share": share}
    sizes = {"shape": shape, "d": 4, "f": 8, "tokens": tokens, "mode": "packed"}
    return {"kind": "case", **sizes, **common}


@in_tree
@pytest.mark.parametrize(
    "new, status",
    [
        ([case(share=0.87), case(tokens=2)], 0),
        ([case(share=0.8), case(tokens=2)], 1),
        ([case()], 1),
        ([case(), case(tokens=2), case(tokens=3)], 0),
    ],
)
def test_compare(new, status, tmp_path):
    compare = tool("compare")
    old = [{"kind": "machine"}, case(), case(tokens=2)]
    for name, rows in (("old", old), ("new", new)):
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)), "utf-8")
    assert compare.main([str(tmp_path / "old"), str(tmp_path / "new")]) == status


@in_tree
def test_compare_of_no_results(tmp_path, capsys):
    compare = tool("compare")
    (tmp_path / "a").write_text("{}\n", "utf-8")
    assert compare.main([str(tmp_path / "a"), str(tmp_path / "a")]) == 2
    assert compare.main([str(tmp_path / "b"), str(tmp_path / "b")]) == 2
    assert "compare: " in capsys.readouterr().err


def peer(name, ratio, mode="packed", dtype="float32"):
    sizes = {"shape": "minilm", "d": 384, "f": 1536, "tokens": 128, "mode": mode, "dtype": dtype}
    speed = {"gflops": 300.0, "ratio": ratio, "share": 0.9, "seconds": 1e-3}
    speed |= {"rounds": 9, "quiet_rounds": 2}
    return {"kind": "peer", "peer": name, **sizes, **speed}


@in_tree
def test_table_between_markers():
    plot = tool("plot")
    rows = {
        "machine": [{"cpu": "CPU", "isa": "avx2", "threads": 2, "versions": {"numpy": "2"}}],
        "peer": [
            *(peer("ffncore", 1.0), peer("numpy", 2.5), peer("torch", 1.5)),
            *(peer("ffncore", 1.0, "train"), peer("ffncore", 1.0, dtype="bfloat16")),
        ],
    }
    text = plot.table(rows)
    line = "| minilm (384 x 1536) | inference | 128 | 300 | 0.90 |"
    assert f"{line} 1.50 x (torch) | 300 | 0.90 | - |" in text
    assert "| training | 128 | 300 | 0.90 | - | - | - | - |" in text
    short = plot.table(rows, only=[("minilm", "train", 128), ("other", "packed", 1)])
    assert "| minilm (384 x 1536) | training | 128 | 300 | 0.90 | - | - | - | - |" in short
    assert len(short.splitlines()) == 5
    assert "In 6 of ffncore's 27 rounds nobody else worked on the cores" in text
    readme = f"before\n{plot.BEGIN}\nold\n{plot.END}\nafter\n"
    once = plot.insert(readme, text)
    assert once == plot.insert(once, text)
    assert once.startswith("before\n")
    assert once.endswith("after\n")
    assert "old" not in once
    with pytest.raises(ValueError, match="the README has no"):
        plot.insert("nothing", text)


@in_tree
def test_pictures_of_any_token_counts(tmp_path, capsys):
    """They go where --out says, and to no file of the project."""
    pytest.importorskip("matplotlib")
    plot = tool("plot")
    machine = {"kind": "machine", "cpu": "CPU", "isa": "avx2", "threads": 2, "ffncore": "1"}
    rows = [machine, peer("ffncore", 1.0), peer("numpy", 2.5)]
    for row, tokens in zip(rows[1:], (3, 37), strict=True):
        row["tokens"] = tokens
    peers = tmp_path / "peers.jsonl"
    peers.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    out = tmp_path / "out"
    arguments = ["--bench", str(tmp_path / "none"), "--peers", str(peers), "--out", str(out)]
    assert plot.main(arguments) == 0
    assert sorted(path.name for path in out.iterdir()) == ["share.png", "speed.md"]
    assert "| 3 | 300 |" in (out / "speed.md").read_text("utf-8")
    assert plot.main(["--bench", str(tmp_path / "none"), "--peers", str(tmp_path / "none")]) == 2
    assert "expected one of them" in capsys.readouterr().err
