"""The bench of mixtures of experts: fc.moe, its training step, and the routing.

The rows are those of dense shapes, for each routing (mixture_shapes.py), with these fields in
addition:

    of_dense    from 512 tokens on: the time of a dense layer with as many FLOPs (one expert's
                weights and tokens * top_k tokens) over the time of the mixture
    of_uniform  from 512 tokens on: the time of the same case with uniform routing over the time

Both run in the same rounds as the case. A row of kind "routing" has the seconds of fc.route and
their share of the layer's time. Memory holds the weights of one shape at a time, and either packed
weights or gradients. Tests: tests/bench/test_bench_moe.py (no time is asserted there).
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

import numpy as np

import ffncore as fc

from ..arrays.dtypes import as_dtype
from ..arrays.memory import empty
from ..arrays.shapes import Array
from .cases import FRESH_BYTES, Case, plain, relative
from .limits import Limits
from .measure import (
    MEMORY_SHARE,
    MIN_ROUNDS,
    ROUND_SECONDS,
    Call,
    Row,
    facts,
    free_memory,
    measure,
    pack_row,
    skipped_row,
    timed,
)
from .mixture_shapes import MoEShape, make_routing, moe_cost
from .peers.peer_layers import normal, tiled
from .plan import Plan
from .shapes import LARGEST_FOOTPRINT

BESIDE_TOKENS = 512  # from here on matrix products take the time, and FLOPs can be compared


class MoECase:
    """The arrays of a case; what forward and train return is timed."""

    def __init__(
        self, shape: MoEShape, tokens: int, kind: str, x_dtype: str, weights: fc.FFNWeights
    ) -> None:
        self.shape, self.weights = shape, weights
        self.x, self.grad_y = (normal(seed, (tokens, shape.d), x_dtype) for seed in (1, 2))
        self.routing = make_routing(
            shape, tokens, kind, "float64" if x_dtype == "float64" else "float32"
        )

    def forward(self, weights: Any) -> Call:
        x, routing, activation = self.x, self.routing, self.shape.function
        y = np.empty_like(x) if x.nbytes >= FRESH_BYTES else None
        return lambda: fc.moe(x, routing, weights, activation=activation, out=y)

    def train(self, gradients: dict[str, Array]) -> Call:
        """gradients: arrays for those of the weights; the case has its own for x and routing."""
        x, grad_y, routing, activation = self.x, self.grad_y, self.routing, self.shape.function
        out = {
            "x": np.empty_like(x),
            "routing_weights": np.empty_like(routing.weights),
            **gradients,
        }
        y = np.empty_like(x)

        def step() -> None:
            _, saved = fc.moe_forward(x, routing, self.weights, activation=activation, out=y)
            fc.moe_backward(grad_y, saved, out=out)

        return step


def make_experts(shape: MoEShape, name: str) -> fc.FFNWeights:
    """Random weights; a block of numbers is repeated, which fills gigabytes quickly."""
    bias, gate = shape.bias, shape.gated
    e, d, f = shape.n_experts, shape.d, shape.f

    def matrix(seed: int, rows: int, columns: int) -> Any:
        return tiled(seed, (e, rows, columns), name)

    return fc.FFNWeights(
        gate=matrix(1, f, d) if gate else None,
        up=matrix(2, f, d),
        down=matrix(3, d, f),
        b_gate=normal(4, (e, f), name) if bias and gate else None,
        b_up=normal(5, (e, f), name) if bias else None,
        b_down=normal(6, (e, d), name) if bias else None,
    )


def one_expert(weights: fc.FFNWeights, e: int) -> fc.FFNWeights:
    return fc.FFNWeights(**{name: array[e] for name, array in weights.arrays().items()})


def moe_rows(shape: MoEShape, plan: Plan, limits: Limits) -> Iterator[Row]:
    wanted = memory(shape, plan.moe_tokens, plan.dtype, plan.x_dtype)
    if wanted > MEMORY_SHARE * free_memory():
        yield skipped_row(shape, wanted)
        return
    weights = make_experts(shape, plan.dtype)
    sizes = {"experts": shape.n_experts, "top_k": shape.top_k}
    known = {**facts(shape, plan.dtype, limits), **sizes}
    yield {"kind": "shape", "shape": shape.name, **known, **errors(shape, weights, plan.x_dtype)}
    layer: dict[int, float] = {}  # seconds of a forward pass, for the routing's share
    for mode in plan.modes:
        held: Any = weights
        if mode == "packed":
            held = fc.pack(weights)
        elif mode == "train":
            arrays = weights.arrays()
            held = {name: empty(a.shape, a.dtype) for name, a in arrays.items()}
        for tokens in plan.moe_tokens:
            for kind in plan.routings:
                row = _case_row(shape, tokens, kind, mode, weights, held, plan, limits)
                if mode != "train" and kind == "uniform":
                    layer.setdefault(tokens, row["seconds"])
                yield {**row, **known}
        if mode == "packed":
            yield {**pack_row(shape, weights, held, limits), **sizes}
        del held
    for tokens in plan.moe_tokens:
        yield route_row(shape, tokens, layer.get(tokens))


def memory(shape: MoEShape, tokens: list[int], dtype: str, x_dtype: str) -> float:
    """Most bytes: weights, packed weights or gradients, the bandwidth's buffer, activations."""
    weights = shape.parameters * as_dtype("dtype", dtype).itemsize
    token = (5 + (2 + 2 * shape.top_k)) * shape.d + 5 * shape.top_k * shape.f
    activations = max(tokens) * token * max(4, as_dtype("x_dtype", x_dtype).itemsize)
    return 2 * weights + min(2 * weights, LARGEST_FOOTPRINT) + activations


def _case_row(
    shape: MoEShape,
    tokens: int,
    kind: str,
    mode: str,
    weights: fc.FFNWeights,
    held: Any,
    plan: Plan,
    limits: Limits,
) -> Row:
    def call_of(kind: str) -> tuple[MoECase, Call]:
        case = MoECase(shape, tokens, kind, plan.x_dtype, weights)
        return case, case.train(held) if mode == "train" else case.forward(held)

    case, call = call_of(kind)
    counts = case.routing.counts
    beside: dict[str, Call] = {}
    if tokens >= BESIDE_TOKENS:
        beside["dense"] = _dense_call(shape, tokens, mode, weights, plan.x_dtype)
        if kind != "uniform":
            beside["uniform"] = call_of("uniform")[1]
    cost = moe_cost(shape, counts, mode, as_dtype("dtype", plan.dtype).itemsize)
    return {
        "kind": "case",
        "shape": shape.name,
        "tokens": tokens,
        "mode": mode,
        "routing": kind,
        "rows": int(counts.sum()),
        "hit": int(np.count_nonzero(counts)),
        "largest": int(counts.max()),
        **measure(cost, shape, call, limits, plan.seconds, beside, spare_long=True),
    }


def _dense_call(
    shape: MoEShape, tokens: int, mode: str, weights: fc.FFNWeights, x_dtype: str
) -> Call:
    """A dense layer with as many FLOPs."""
    expert = one_expert(weights, 0)
    case = Case(shape.expert, tokens * shape.top_k, x_dtype, expert)
    if mode == "train":
        return case.train(case.gradients())
    return case.forward(fc.pack(expert) if mode == "packed" else expert)


def errors(shape: MoEShape, weights: fc.FFNWeights, x_dtype: str, tokens: int = 2) -> Row:
    """As for dense shapes, but expert by expert: float64 copies of all would not fit in memory."""
    case = MoECase(shape, tokens, "uniform", x_dtype, weights)
    x, routing, act = case.x, case.routing, shape.function
    wide: Any = np.float64 if x.dtype.itemsize == 2 else x.dtype.type
    exact, rough = np.zeros(x.shape), np.zeros(x.shape, wide)
    for t, s in np.ndindex(routing.experts.shape):
        expert, factor = one_expert(weights, int(routing.experts[t, s])), routing.weights[t, s]
        exact[t] += float(factor) * fc.reference.ffn(x[t], expert, activation=act)
        # Four rows, as for dense shapes, because numpy sums a single row in another order.
        rough[t] += wide(factor) * plain(np.repeat(x[t : t + 1], 4, axis=0), expert, act)[0]
    return {
        "error": relative(case.forward(weights)(), exact),
        "numpy_error": relative(rough.astype(x.dtype), exact),
    }


def route_row(shape: MoEShape, tokens: int, layer_seconds: float | None) -> Row:
    """The time of fc.route. Logits are float32, as routers have them with any dtype of x."""
    n = shape.routed or shape.n_experts
    logits = normal(3, (tokens, n), "float32")
    options = dict(shape.router)
    if options.get("score_fn") == "sigmoid":
        options["e_score_correction_bias"] = normal(4, (n,), "float32", 0.01)

    def call() -> object:
        return fc.route(logits, shape.top_k, **options)

    call()
    repeats = max(1, int(ROUND_SECONDS / max(timed(call, 1), 1e-9)))
    seconds = median(timed(call, repeats) for _ in range(MIN_ROUNDS))
    return {
        "kind": "routing",
        "shape": shape.name,
        "tokens": tokens,
        "experts": n,
        "top_k": shape.top_k,
        "seconds": seconds,
        "layer_seconds": layer_seconds,
        "layer_share": None if layer_seconds is None else seconds / layer_seconds,
    }
