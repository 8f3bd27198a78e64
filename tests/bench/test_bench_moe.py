"""The bench of mixtures: shapes, routings, costs, options, rows. No time is asserted."""

import json
from contextlib import ExitStack
from types import SimpleNamespace

import numpy as np
import pytest
from support import BFLOAT16
from test_bench import arguments, in_tree, machine, tool

import ffncore as fc
from ffncore.bench import measure, mixture_shapes, mixtures, printing, shapes
from ffncore.bench import plan as plans
from ffncore.bench import rows as bench_rows
from ffncore.bench.limits import Limits
from ffncore.bench.peers import peer_layers
from ffncore.cli import bench as command

TINY = "16x24:silu:gated:bias:6/2"
PUBLISHED = {  # experts, top_k, d_model, d_ff
    "olmoe": (64, 8, 2048, 1024),
    "qwen3-30b-a3b": (128, 8, 2048, 768),
    "granite-1b": (32, 8, 1024, 512),
    "gpt-oss-20b": (32, 4, 2880, 2880),
    "deepseek-v3-slice": (32, 8, 7168, 2048),
}


def tiny(name=TINY):
    (shape,) = mixture_shapes.find_shapes(name)
    return shape


def test_shapes_are_the_published_ones():
    shapes = mixture_shapes.find_shapes("moe")
    assert {s.name: (s.n_experts, s.top_k, s.d, s.f) for s in shapes} == PUBLISHED
    assert all(s.gated for s in shapes)
    assert [s.name for s in shapes if s.bias] == ["gpt-oss-20b"]
    assert tiny("gpt-oss-20b").function == fc.Activation(
        "silu", alpha=1.702, limit=7.0, up_offset=1.0
    )
    assert tiny("olmoe").parameters == 64 * 3 * 2048 * 1024
    assert tiny("gpt-oss-20b").parameters == 32 * (3 * 2880 * 2880 + 3 * 2880)
    for shape in shapes:
        fc.route(np.zeros((1, shape.routed or shape.n_experts)), shape.top_k, **dict(shape.router))


def test_shapes_by_name():
    shape = tiny("10x40:gelu:6/3")
    assert (shape.d, shape.f, shape.activation, shape.gated) == (10, 40, "gelu", False)
    assert (shape.n_experts, shape.top_k) == (6, 3)
    assert shape.expert.parameters == 2 * 400
    assert not isinstance(tiny("10x40:gelu"), mixture_shapes.MoEShape)
    for wrong in ("10x40:6/7", "10x40:6/0", "10x40:x/2", "10x40:6/2:6/2", "10:6/2", "olmo"):
        with pytest.raises(ValueError, match="expected DxF"):
            mixture_shapes.find_shapes(wrong)


@pytest.mark.parametrize("kind", mixture_shapes.ROUTINGS)
def test_a_token_has_different_experts(kind):
    shape = tiny("8x8:40/5")
    for tokens in (1, 300):
        ids = mixture_shapes.make_ids(shape, tokens, kind)
        assert ids.shape == (tokens, 5)
        assert all(len(set(row)) == 5 for row in ids.tolist())
        assert np.array_equal(ids, mixture_shapes.make_ids(shape, tokens, kind))
        weights = mixture_shapes.make_routing(shape, tokens, kind).weights
        assert weights.dtype == np.float32
        np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
        assert (np.diff(weights, axis=1) <= 0).all()


def test_routings_are_what_they_are_called():
    shape = tiny("8x8:40/5")
    uniform, zipf, one = (
        np.sort(mixture_shapes.make_routing(shape, 4000, kind).counts)[::-1]
        for kind in mixture_shapes.ROUTINGS
    )
    assert uniform.sum() == zipf.sum() == one.sum() == 20000
    assert uniform[0] < 1.2 * uniform[-1]
    assert zipf[0] > 3000  # of at most 4000
    assert 5 * zipf[-1] < zipf[0]
    assert one.tolist() == [4000] * 5 + [0] * 35


def test_costs():
    shape = tiny("10x40:silu:gated:6/2")
    counts = np.array([3, 0, 9, 0, 0, 2])
    forward = mixture_shapes.moe_cost(shape, counts, "raw", 4)
    assert forward == mixture_shapes.moe_cost(shape, counts, "packed", 4)
    assert forward.flops == 6 * 14 * 400
    assert forward.forward_activations == 14 * 40
    assert forward.bytes == forward.footprint == 3 * 1200 * 4  # of the three that are hit
    train = mixture_shapes.moe_cost(shape, counts, "train", 2)
    assert train.flops == 3 * forward.flops
    assert train.backward_activations == 14 * 40
    assert train.bytes == (2 * 3 + 6) * 1200 * 2  # twice read; every expert's gradients
    assert train.footprint == (3 + 6) * 1200 * 2


def test_one_expert_costs_what_a_dense_layer_costs():
    dense = shapes.Shape("dense", 10, 40, "silu", gated=True, bias=True)
    shape = tiny("10x40:silu:gated:bias:1/1")
    for mode in shapes.MODES:
        assert mixture_shapes.moe_cost(shape, np.array([7]), mode, 4) == shapes.cost(
            dense, 7, mode, 4
        )


def test_the_buffer_of_the_bandwidth_has_an_end():
    shape = tiny("deepseek-v3-slice")
    cost = mixture_shapes.moe_cost(shape, np.full(32, 100), "train", 4)
    assert cost.footprint == shapes.LARGEST_FOOTPRINT < cost.bytes


def test_experts_are_different_and_of_the_right_size():
    shape = tiny("64x96:silu:gated:bias:9/2")
    weights = mixtures.make_experts(shape, "float16")
    assert weights.n_experts == 9
    assert sum(a.size for a in weights.arrays().values()) == shape.parameters
    assert {a.dtype.name for a in weights.arrays().values()} == {"float16"}
    assert 0.9 < np.std(weights.up.astype(np.float32)) * 64**0.5 < 1.1


def test_a_block_of_numbers_is_repeated(monkeypatch):
    monkeypatch.setattr(peer_layers, "BLOCK", 7)
    flat = peer_layers.tiled(1, (3, 5), "float32").reshape(-1)
    assert flat[:7].tolist() == flat[7:14].tolist()
    assert flat[14] == flat[0]
    assert len(set(flat[:7].tolist())) == 7


def test_plan():
    plan = plans.Plan(arguments("--shapes", "moe,minilm"))
    assert [shape.name for shape in plan.shapes] == [*PUBLISHED, "minilm"]
    assert plan.moe_tokens == [1, 4, 64, 512, 4096]
    assert plan.tokens == [1, 2, 4, 8, 16, 32, 64, 128, 512, 4096]
    assert plan.routings == mixture_shapes.ROUTINGS
    plan = plans.Plan(arguments("--shapes", "olmoe", "--tokens", "3", "--routing", "zipf"))
    assert (plan.moe_tokens, plan.routings) == ([3], ("zipf",))
    quick = plans.Plan(arguments("--quick"))
    assert not any(isinstance(shape, mixture_shapes.MoEShape) for shape in quick.shapes)


@pytest.mark.parametrize(
    "words", [("--routing", "even"), ("--shapes", "8x8:4/5"), ("--shapes", "8x8:gleu:4/2")]
)
def test_wrong_arguments(words, capsys):
    assert command.run(arguments(*words)) == 2
    assert capsys.readouterr().out.startswith("bench: ")


@pytest.mark.parametrize(
    "dtype, x_dtype",
    [("float32", "float32"), ("float64", "float64"), ("float16", "float32")]
    + [("bfloat16", "bfloat16") for _ in BFLOAT16],
)
def test_run_writes_rows(dtype, x_dtype, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        bench_rows, "Limits", lambda _isa, dtype, threads: Limits("avx2", dtype, threads, machine)
    )
    monkeypatch.setattr(mixtures, "BESIDE_TOKENS", 5)
    monkeypatch.setattr(measure, "ROUND_SECONDS", 1e-4)
    file = tmp_path / "out.jsonl"
    words = ("--shapes", TINY, "--tokens", "1,5", "--seconds", "0", "--parts", "cases")
    words += ("--dtype", dtype, "--json", str(file))
    words += ("--x-dtype", x_dtype) if x_dtype != dtype else ()
    assert command.run(arguments(*words)) == 0
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    kinds = [row["kind"] for row in rows]
    assert kinds == (
        ["machine", "peak", "shape"]
        + ["case"] * 6
        + ["pack"]
        + ["case"] * 12  # raw and train
        + ["routing"] * 2
    )
    shape = tiny()
    assert rows[2]["experts"] == 6
    assert rows[2]["error"] <= 3 * rows[2]["numpy_error"] + 1e-15
    cases = [row for row in rows if row["kind"] == "case"]
    assert [(r["mode"], r["tokens"], r["routing"]) for r in cases[:4]] == [
        ("packed", 1, "uniform"),
        ("packed", 1, "zipf"),
        ("packed", 1, "all-to-one"),
        ("packed", 5, "uniform"),
    ]
    for row in cases:
        counts = mixture_shapes.make_routing(shape, row["tokens"], row["routing"]).counts
        assert (row["rows"], row["hit"]) == (2 * row["tokens"], np.count_nonzero(counts))
        assert row["dtype"] == (dtype if x_dtype == dtype else f"{dtype} under {x_dtype}")
        assert row["gflops"] == pytest.approx(row["flops"] / row["seconds"] / 1e9, rel=1e-4)
        assert ("of_dense" in row) == (row["tokens"] == 5)
        assert ("of_uniform" in row) == (row["tokens"] == 5 and row["routing"] != "uniform")
    for row in rows[-2:]:
        assert row["layer_share"] == pytest.approx(row["seconds"] / row["layer_seconds"], rel=1e-4)
    printed = capsys.readouterr().out
    assert "6 experts, 2 per token" in printed
    assert len(printed.splitlines()) >= len(rows)


def test_the_case_beside_has_its_own_column():
    limits = Limits("avx2", "float32", 2, machine)
    shape, calls = tiny(), []
    cost = mixture_shapes.moe_cost(shape, np.array([1, 1, 0, 0, 0, 0]), "raw", 4)
    row = measure.measure(
        cost,
        shape,
        lambda: calls.append("own"),
        limits,
        0.0,
        {"dense": lambda: calls.append("dense")},
    )
    assert row["of_dense"] > 0
    assert row["dense_seconds"] > 0
    assert set(calls) == {"own", "dense"}
    assert "of_uniform" not in row


def test_a_mixture_too_large_is_left_out(capsys, monkeypatch):
    monkeypatch.setattr(
        bench_rows, "Limits", lambda _isa, dtype, threads: Limits("avx2", dtype, threads, machine)
    )
    monkeypatch.setattr(mixtures, "free_memory", lambda: 2.0**30)
    assert command.run(arguments("--shapes", "moe", "--tokens", "1", "--parts", "cases")) == 0
    assert capsys.readouterr().out.count("left out") == 5
    small = mixtures.memory(tiny("olmoe"), [1], "bfloat16", "bfloat16")
    assert small < mixtures.memory(tiny("olmoe"), [4096], "bfloat16", "bfloat16")


def test_routing_without_a_layer_has_a_line():
    row = mixtures.route_row(tiny("8x8:16/4"), 3, None)
    assert row["layer_share"] is None
    assert printing.describe(row).endswith(" ms")
    row = {**mixtures.route_row(tiny("deepseek-v3-slice"), 3, 1.0), "layer_share": 0.02}
    assert "8 of 256 experts" in printing.describe(row)
    assert "2.00 %" in printing.describe(row)


def test_options_of_the_activation_reach_every_call():
    shape = mixture_shapes.MoEShape(
        *("t", 16, 24, "silu", True, True, mixture_shapes.GPT_OSS), n_experts=4, top_k=2
    )
    words = ("--tokens", "512", "--seconds", "0", "--routing", "uniform")
    limits = Limits("avx2", "float32", 2, machine)
    rows = list(mixtures.moe_rows(shape, plans.Plan(arguments(*words)), limits))
    cases = [row for row in rows if row["kind"] == "case"]
    assert [row["mode"] for row in cases] == list(shapes.MODES)
    assert all(row["of_dense"] > 0 for row in cases)
    weights = mixtures.make_experts(shape, "float32")
    case = mixtures.MoECase(shape, 3, "uniform", "float32", weights)
    plain = fc.moe(case.x, case.routing, weights, activation="silu")
    assert np.abs(case.forward(weights)() - plain).max() > 0.1
    assert rows[0]["error"] < 1e-6


@in_tree
def test_compare_tells_routings_apart(tmp_path, capsys):
    compare = tool("compare")
    sizes = {"shape": "s", "d": 4, "f": 8, "tokens": 1, "mode": "raw", "share": 0.9}
    row = {"kind": "case", **sizes, "dtype": "float32", "isa": "avx2", "threads": 2}
    rows = [row, {**row, "routing": "zipf"}, {**row, "routing": "uniform"}]
    for name, some in (("old", rows), ("new", rows[:2])):
        (tmp_path / name).write_text("\n".join(map(json.dumps, some)), "utf-8")
    assert compare.main([str(tmp_path / "old"), str(tmp_path / "old")]) == 0
    assert compare.main([str(tmp_path / "old"), str(tmp_path / "new")]) == 1
    assert "uniform" in capsys.readouterr().out


@in_tree
def test_pictures_leave_mixtures_out(tmp_path):
    file = tmp_path / "rows"
    rows = [{"kind": "case", "shape": "a"}, {"kind": "case", "shape": "b", "experts": 4}]
    file.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    assert tool("plot").read(file) == {"case": rows[:1]}


def peer_shape(activation="silu", options=(), **changes):
    sizes = {"d": 24, "f": 40, "n_experts": 6, "top_k": 2}
    form = {"gated": True, "bias": bool(options)}
    return {**sizes, **form, "activation": activation, "options": options, **changes}


@in_tree
@pytest.mark.parametrize("options", [(), mixture_shapes.GPT_OSS])
def test_peers_do_the_same_work(options):
    """The loop over experts against ours; the other peers where installed (bench/peers.py)."""
    peer_moe = tool("peer_moe")
    assert options in ((), tuple(peer_moe.GPT_OSS.items()))
    shape = peer_shape(options=options)
    weights, (x, grad_y) = peer_moe.weights(shape), peer_moe.inputs(shape, "float32", 9)
    routing = mixture_shapes.make_routing(tiny("24x40:5/2"), 9, "zipf")  # expert 5 is never hit
    for mode, results in (("packed", 1), ("raw", 1), ("train", 5)):
        spec = {**shape, "mode": mode, "threads": 1}
        spec |= {"ids": routing.experts, "factors": routing.weights}
        ours, theirs = (
            peer_moe.check(build(weights, x, grad_y, spec)())
            for build in (peer_moe.ffncore_peer, peer_moe.numpy_peer)
        )
        assert len(ours) == len(theirs) == results
        for own, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(other, own, rtol=0, atol=1e-5 * np.abs(own).max())


@in_tree
def test_halves_are_views_of_one_array():
    peer_moe = tool("peer_moe")
    array = np.arange(2 * 6 * 3).reshape(2, 6, 3)
    gate, up = peer_moe.halves(array, peer_shape())
    assert np.array_equal(np.concatenate([gate, up], axis=1), array)
    gate, up = peer_moe.halves(array, peer_shape(options=mixture_shapes.GPT_OSS))
    assert np.array_equal(gate[:, 1], array[:, 2])
    assert np.array_equal(up[:, 1], array[:, 3])
    assert np.shares_memory(up, array)
    assert peer_moe.halves(array, peer_shape(gated=False)) == (None, array)


@in_tree
def test_peers_say_what_they_cannot():
    peer_moe = tool("peer_moe")
    for shape in (peer_shape("gelu"), peer_shape(gated=False), peer_shape(options=[("alpha", 2)])):
        with pytest.raises(ValueError, match="no peer but ffncore"):
            peer_moe.known_activation(shape)
    with pytest.raises(ValueError, match="16-bit"):
        peer_moe.numpy_peer({}, np.zeros((1, 2), np.float16), None, peer_shape())
    x = np.zeros((1, 2), np.float32)
    with pytest.raises(ValueError, match="no backward pass"):
        peer_moe.vllm_peer({}, x, None, peer_shape(mode="train"))
    with pytest.raises(ValueError, match="neither biases"):
        peer_moe.kt_kernel_peer({}, x, None, peer_shape(options=mixture_shapes.GPT_OSS))
    with pytest.raises(ValueError, match="in bfloat16 alone"):
        peer_moe.kt_kernel_peer({}, x, None, peer_shape(mode="packed"))
    half = SimpleNamespace(dtype=SimpleNamespace(name="bfloat16"))
    with pytest.raises(ValueError, match="multiples of 32"):
        peer_moe.kt_kernel_peer({}, half, None, peer_shape(mode="packed"))


@in_tree
def test_peers_arguments(capsys):
    peers, peer_moe = tool("peers"), tool("peer_moe")
    args = peers.parse(["--shapes", "moe", "--routing", "zipf,all-to-one"])
    assert args.peers == list(peer_moe.PEERS)
    assert args.routing == ["zipf", "all-to-one"]
    assert [shape.name for shape in args.shapes] == list(PUBLISHED)
    assert peers.parse(["--shapes", "minilm"]).peers == list(tool("peer_dense").PEERS)
    both = peers.parse(["--shapes", "minilm,olmoe"]).peers
    assert set(both) == {*peer_moe.PEERS, *tool("peer_dense").PEERS}
    for wrong in (["--routing", "even"], ["--shapes", "olmoe", "--peers", "trnsformers"]):
        with pytest.raises(SystemExit):
            peers.parse(wrong)
        assert "not known" in capsys.readouterr().err


@in_tree
def test_every_result_has_its_own_scale():
    peers = tool("peers")
    ours = [[1.0, 2.0], [1e4, 2e4]]
    answers = {"ffncore": ours, "a": [[1.0, 2.0001], [1e4, 2e4]], "b": [[1.1, 2.0], [1e4, 2e4]]}
    assert peers.agree(answers) == ["b"]


@in_tree
def test_groups_hold_what_memory_holds(capsys):
    peers = tool("peers")
    workers = [SimpleNamespace(name=n) for n in ("ffncore", "numpy", "transformers", "zentorch")]
    shape = tiny("1024x1024:silu:gated:64/2")
    weights = shape.parameters * 4

    def names(mode, free):
        found = peers.groups(workers, shape, mode, "float32", free * weights / peers.MEMORY_SHARE)
        return [[worker.name for worker in group] for group in found]

    everyone = [worker.name for worker in workers]
    assert names("packed", 100) == [everyone]
    assert names("packed", 4) == [everyone[:3], ["ffncore", "zentorch"]]
    assert names("train", 5) == [["ffncore", "numpy"], ["ffncore", "zentorch"]]
    assert "transformers: left out, not enough memory" in capsys.readouterr().out
    assert names("train", 1) == []
    dense = shapes.find_shape("minilm")
    assert peers.groups(workers, dense, "train", "float32", 0) == [workers]


@in_tree
def test_a_worker_runs_a_mixture(monkeypatch):
    """From the message to the row, with ffncore and numpy as processes of their own."""
    peers = tool("peers")
    monkeypatch.setattr(peers, "ROUND_SECONDS", 1e-4)
    limits = Limits("avx2", "float32", 1, machine)
    args = peers.parse(["--shapes", TINY, "--tokens", "3", "--routing", "zipf", "--rounds", "1"])
    with ExitStack() as stack:
        workers, _ = peers.start(["ffncore", "numpy"], {}, 1, stack)
        rows = list(peers.run_shape(workers, tiny("16x24:silu:gated:6/2"), "train", args, limits))
    assert [row["peer"] for row in rows] == ["ffncore", "numpy"]
    for row in rows:
        assert (row["routing"], row["experts"], row["top_k"]) == ("zipf", 6, 2)
        assert row["hit"] >= 2
        assert row["seconds"] > 0
