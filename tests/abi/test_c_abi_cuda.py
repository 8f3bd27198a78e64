"""The C ABI of the CUDA part, emulated: its error texts, that nothing is written on an error, and
that a call uses the workspace that it asks for."""

import numpy as np
import pytest

import ffncore as fc
from ffncore.backends.cuda import library as cuda_library

D, F, T, N, K = 8, 12, 20, 3, 2


class Abi:
    """The arguments of a mixture and of a dense layer, in numpy's memory."""

    def __init__(self):
        self.cuda = cuda_library.cuda()
        self.lib, self.ffi = self.cuda.lib, self.cuda.ffi
        rng = np.random.default_rng(3)
        self.draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
        self.x, self.grad, self.y = self.draw(T, D), self.draw(T, D), np.full((T, D), 7, "f4")
        self.ids = rng.integers(-1, N, (T, K), dtype=np.int32)
        self.factors = self.draw(T, K)
        self.arrays = {"up": self.draw(N, F, D), "down": self.draw(N, D, F)}
        self.arrays["b_up"] = self.draw(N, F)
        self.call = self.cuda.struct("cuda_call", device=-1)

    def args(self, which, *, dense=False):
        arrays = {name: a[0] for name, a in self.arrays.items()} if dense else self.arrays
        args = self.cuda.struct(
            f"moe_{which}_args",
            x=self.cuda.matrix(self.x),
            experts=self.cuda.experts(arrays),
            activation=[self.ffi.sizeof("ffncore_activation"), 3, 0, *[0.0] * 5, 1.0, *[0.0] * 5],
        )
        args.activation.alpha = 1
        if which == "forward":
            args.y = self.cuda.matrix(self.y)
        else:
            args.grad_y = self.cuda.matrix(self.grad)
            args.grad_experts = self.cuda.gradients({}, dense)
        if not dense:
            args.expert_ids = self.cuda.address(self.ids, "int32_t *")
            args.routing_weights = self.cuda.matrix(self.factors)
        return args

    def run(self, which, args, spare=0):
        """The status of the call, with a workspace of the size that it asks for."""
        ask = getattr(self.lib, f"ffncore_cuda_{which}_workspace")
        nbytes = ask(args, self.call)
        assert nbytes >= 0, self.said()
        memory = np.full(nbytes + 512, 7, np.uint8)
        start = -memory.ctypes.data % 256
        self.call.workspace = self.cuda.address(memory[start:])
        self.call.workspace_bytes = nbytes + spare
        status = getattr(self.lib, f"ffncore_cuda_{which}")(args, self.call)
        assert (memory[start + nbytes :] == 7).all()
        return status

    def said(self):
        return self.ffi.string(self.lib.ffncore_cuda_last_error()).decode()

    def refused(self, which, args, sentence):
        before = self.y.copy()
        status = getattr(self.lib, f"ffncore_cuda_{which}")(args, self.call)
        assert status == self.lib.FFNCORE_INVALID_ARGUMENT
        assert sentence in self.said()
        assert getattr(self.lib, f"ffncore_cuda_{which}_workspace")(args, self.call) == -1
        np.testing.assert_array_equal(self.y, before)


@pytest.fixture
def abi(emulated_cuda, monkeypatch):
    monkeypatch.setattr(cuda_library, "LIBRARY", emulated_cuda)
    cuda_library.cuda.cache_clear()
    yield Abi()
    cuda_library.cuda.cache_clear()


def test_version_and_devices(abi):
    assert abi.ffi.string(abi.lib.ffncore_cuda_version()).decode() == fc.__version__
    count = abi.ffi.new("int32_t *")
    abi.cuda.check(abi.lib.ffncore_cuda_devices(count))
    assert count[0] == 1
    assert abi.lib.ffncore_cuda_devices(abi.ffi.NULL) == abi.lib.FFNCORE_INVALID_ARGUMENT


@pytest.mark.parametrize("tokens", [T, 3])
@pytest.mark.parametrize("dense", [True, False])
def test_forward(abi, dense, tokens):
    abi.x, abi.y, abi.ids, abi.factors = (a[:tokens] for a in (abi.x, abi.y, abi.ids, abi.factors))
    abi.cuda.check(abi.run("forward", abi.args("forward", dense=dense)))
    w = fc.FFNWeights(**abi.arrays)
    if dense:
        expected = fc.ffn(abi.x, w.expert(0), activation="gelu")
    else:
        routing = fc.Routing(experts=abi.ids, weights=abi.factors)
        expected = fc.moe(abi.x, routing, w, activation="gelu")
    np.testing.assert_allclose(abi.y, expected, atol=2e-5)


def test_backward_without_gradients(abi):
    """Every gradient may be absent."""
    abi.cuda.check(abi.run("backward", abi.args("backward")))
    abi.cuda.check(abi.run("backward", abi.args("backward", dense=True)))


def test_one_path(abi):
    """Few tokens take a path with less workspace, unless batch_invariant asks for one path."""
    abi.x, abi.y = abi.x[:2], abi.y[:2]
    abi.ids, abi.factors = abi.ids[:2], abi.factors[:2]
    args = abi.args("forward")
    few = abi.lib.ffncore_cuda_forward_workspace(args, abi.call)
    abi.call.batch_invariant = 1
    assert abi.lib.ffncore_cuda_forward_workspace(args, abi.call) > few


@pytest.mark.parametrize("which", ["forward", "backward"])
def test_workspace_is_checked(abi, which):
    args = abi.args(which)
    assert abi.run(which, args, spare=-1) == abi.lib.FFNCORE_INVALID_ARGUMENT
    assert "call.workspace has" in abi.said()
    abi.call.workspace += 8
    abi.call.workspace_bytes += 1024
    run = getattr(abi.lib, f"ffncore_cuda_{which}")
    assert run(args, abi.call) == abi.lib.FFNCORE_INVALID_ARGUMENT
    assert "at a multiple of 256" in abi.said()


CHANGES = [
    ("size", 3, "args.size is 3; expected sizeof"),
    ("x.cols", 9, "x has shape (20, 9); expected (T, 8) to match weights.up"),
    ("x.dtype", 1, "x has dtype float64; expected float32, bfloat16 or float16 on a GPU"),
    ("x.dtype", 2, "weights.up has dtype float32; expected bfloat16 to match x"),
    ("x.rows", -1, "expected (T, 8)"),
    ("experts.count", 0, "experts.count is 0; expected from 1 to 65535"),
    ("experts.count", 70000, "experts.count is 70000; expected from 1 to 65535"),
    ("experts.size", 0, "experts.size is 0"),
    ("experts.first.size", 0, "weights.size is 0"),
    ("experts.first.up.rows", 0, "weights.up has shape (0, 8); expected at least (1, 1)"),
    ("experts.first.down.cols", 13, "weights.down has shape (8, 13); expected (8, 12)"),
    ("experts.first.down.dtype", 2, "weights.down has dtype bfloat16; expected float32"),
    ("experts.first.up.col_stride", 5, "weights.up has strides (8, 5); expected one of them"),
    ("experts.first.b_up.length", 5, "weights.b_up has length 5; expected 12"),
    ("experts.first.b_up.dtype", 3, "weights.b_up has dtype float16; expected float32"),
    ("routing_weights.cols", 0, "routing_weights has 0 columns and expert_ids is given"),
    ("routing_weights.rows", 3, "routing_weights has shape (3, 2); expected (20, 2)"),
    ("routing_weights.dtype", 2, "routing_weights has dtype bfloat16; expected float32"),
    ("activation.kind", 1000, "activation.kind is 1000; expected 0 to"),
    ("activation.limit", 0, None),
    ("activation.clamp", 1, "limit, up_offset and up_softcap belong to gated blocks"),
    ("activation.gate_softcap", -1, "expected no negative number"),
]


@pytest.mark.parametrize("which", ["forward", "backward"])
@pytest.mark.parametrize("path, value, sentence", CHANGES, ids=lambda v: str(v)[:30])
def test_refused(abi, which, path, value, sentence):
    args = abi.args(which)
    *owner, name = path.split(".")
    into = args
    for part in owner:
        into = getattr(into, part)
    setattr(into, name, value)
    if sentence is None:
        abi.cuda.check(abi.run(which, args))
    else:
        abi.refused(which, args, sentence)


def test_refused_pointers(abi):
    args = abi.args("forward")
    args.experts.first.packed = args.x.data
    abi.refused("forward", args, "weights are packed; expected matrices on a GPU")
    args = abi.args("forward")
    args.expert_ids = abi.ffi.NULL
    abi.refused("forward", args, "expert_ids is NULL; expected both (a mixture) or none")
    args = abi.args("forward")
    args.y.data = abi.ffi.NULL
    abi.refused("forward", args, "y is absent; expected shape (20, 8)")
    args = abi.args("forward", dense=True)
    args.experts.count = 2
    abi.refused("forward", args, "experts.count is 2 without expert_ids; expected 1")
    args = abi.args("backward")
    args.grad_experts = abi.cuda.gradients({"gate": abi.arrays["up"]}, False)
    abi.refused("backward", args, "a gradient of gate or b_gate is asked for")
    null = abi.ffi.NULL
    assert abi.lib.ffncore_cuda_forward(null, abi.call) == abi.lib.FFNCORE_INVALID_ARGUMENT
    assert abi.said() == "args is NULL"
    assert abi.lib.ffncore_cuda_route(null, abi.call) == abi.lib.FFNCORE_INVALID_ARGUMENT
    args = abi.args("forward")
    assert abi.lib.ffncore_cuda_forward(args, null) == abi.lib.FFNCORE_INVALID_ARGUMENT
    assert abi.said() == "call is NULL"
    abi.call.size = 0
    abi.refused("forward", args, "call.size is 0; expected sizeof")


def test_saved_bytes(abi):
    saved = abi.lib.ffncore_cuda_saved_bytes
    assert saved(abi.lib.FFNCORE_FLOAT32, 3, 5, 1) == 3 * 5 * 2 * 4
    assert saved(abi.lib.FFNCORE_BFLOAT16, 3, 5, 0) == 3 * 5 * 2
    assert saved(abi.lib.FFNCORE_FLOAT64, 3, 5, 0) == -1
    assert saved(abi.lib.FFNCORE_FLOAT32, -1, 5, 0) == -1


ROUTER_CHANGES = [
    ("router.size", 1, "router.size is 1"),
    ("router.score_fn", 4, "router.score_fn is 4; expected 0 to 3"),
    ("router.n_group", 5, "router.n_group is 5; expected a divisor of 12 experts"),
    ("router.topk_group", 2, "router.topk_group is 2; expected 1 to 1"),
    ("router.norm_eps", -1, "expected no negative number"),
    ("router.group_score", 2, "router.group_score is 2; expected 0 or 1"),
    ("router.routed_scaling_factor", float("inf"), "expected a finite number"),
    ("logits.dtype", 1, "logits has dtype float64; expected float32"),
    ("logits.cols", 0, "expected (T, E), E from 1"),
    ("weights.cols", 13, "k is 13; expected at most 12 experts"),
    ("weights.rows", 2, "weights has shape (2, 2); expected (20, 2)"),
]


@pytest.mark.parametrize("path, value, sentence", ROUTER_CHANGES, ids=lambda v: str(v)[:30])
def test_route_refuses(abi, path, value, sentence):
    ids, weights = np.full((T, K), 7, np.int32), np.full((T, K), 7, np.float32)
    args = abi.cuda.struct(
        "route_args",
        logits=abi.cuda.matrix(abi.draw(T, 12)),
        experts=abi.cuda.address(ids, "int32_t *"),
        expert_stride=K,
        weights=abi.cuda.matrix(weights),
    )
    args.router.size = abi.ffi.sizeof("ffncore_router")
    args.router.n_group = args.router.topk_group = 1
    args.router.routed_scaling_factor = 1
    owner, name = path.split(".")
    setattr(getattr(args, owner), name, value)
    assert abi.lib.ffncore_cuda_route(args, abi.call) == abi.lib.FFNCORE_INVALID_ARGUMENT
    assert sentence in abi.said()
    assert (ids == 7).all()
    assert (weights == 7).all()
