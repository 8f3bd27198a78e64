"""The mixtures of experts that the bench runs, their routings, and the cost of a case.

A case is a shape, a number of tokens, a mode (shapes.py) and a routing:

    uniform      every choice of k experts is equally likely
    zipf         the i-th expert of a random order is drawn with a weight of 1 / i
    all-to-one   all tokens have the same k experts

The cost of a case:

    FLOPs and activations   those of the routed rows, as fc.cost counts them
    bytes                   the weights of the experts that have a token, once for each pass that
                            reads them; in training also the gradients of all experts, written once
Tests: tests/bench/test_bench_moe.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

import ffncore as fc

from ..arrays.shapes import Array
from .shapes import FORM, LARGEST_FOOTPRINT, Cost, Shape, find_shape

ROUTINGS = ("uniform", "zipf", "all-to-one")
MOE_TOKENS = (1, 4, 64, 512, 4096)


@dataclass(frozen=True)
class MoEShape(Shape):
    """A mixture; d, f and the other sizes are those of one expert."""

    n_experts: int = 1
    top_k: int = 1
    router: tuple[tuple[str, Any], ...] = ()  # options of fc.route
    routed: int = 0  # experts of the model's router, if the shape is a slice of them; else 0

    @property
    def parameters(self) -> int:
        """Matrices and biases of all experts."""
        return self.n_experts * self.expert.parameters

    @property
    def expert(self) -> Shape:
        return Shape(
            self.name, self.d, self.f, self.activation, self.gated, self.bias, self.options
        )


GPT_OSS = (("alpha", 1.702), ("limit", 7.0), ("up_offset", 1.0))
DEEPSEEK = (
    *(("score_fn", "sigmoid"), ("n_group", 8), ("topk_group", 4)),
    *(("norm_eps", 1e-20), ("routed_scaling_factor", 2.5)),
)
MOE_SHAPES = (
    MoEShape(
        *("olmoe", 2048, 1024, "silu", True),
        n_experts=64,
        top_k=8,
        router=(("norm_topk_prob", False),),
    ),
    MoEShape("qwen3-30b-a3b", 2048, 768, "silu", True, n_experts=128, top_k=8),
    MoEShape(
        *("granite-1b", 1024, 512, "silu", True),
        n_experts=32,
        top_k=8,
        router=(("score_fn", "softmax_topk"),),
    ),
    MoEShape(
        *("gpt-oss-20b", 2880, 2880, "silu", True, True, GPT_OSS),
        n_experts=32,
        top_k=4,
        router=(("score_fn", "softmax_topk"),),
    ),
    # 32 of the model's 256 experts; the time of the routing itself is for all 256.
    MoEShape(
        *("deepseek-v3-slice", 7168, 2048, "silu", True),
        n_experts=32,
        top_k=8,
        router=DEEPSEEK,
        routed=256,
    ),
)
GROUP = "moe"  # in --shapes: all of them


def find_shapes(name: str) -> list[Shape]:
    """The shapes that a name stands for: as find_shape, a mixture, all mixtures, or FORM:E/k."""
    if name == GROUP:
        return list(MOE_SHAPES)
    for shape in MOE_SHAPES:
        if shape.name == name:
            return [shape]
    words = name.split(":")
    ratio = [word for word in words if "/" in word]
    if not ratio:
        try:
            return [find_shape(name)]
        except ValueError as error:
            known = ", ".join(shape.name for shape in MOE_SHAPES)
            if ":" in name:
                raise
            raise ValueError(f"{error}, {known}, or {GROUP} for these five") from None
    experts, _, k = ratio[0].partition("/")
    if len(ratio) > 1 or not (experts.isdigit() and k.isdigit() and 1 <= int(k) <= int(experts)):
        raise ValueError(f"shape {name!r} is not known; expected {FORM}:E/k with k from 1 to E")
    block = find_shape(":".join(word for word in words if word != ratio[0]))
    return [
        MoEShape(
            name,
            block.d,
            block.f,
            block.activation,
            block.gated,
            block.bias,
            n_experts=int(experts),
            top_k=int(k),
        )
    ]


def make_ids(shape: MoEShape, tokens: int, kind: str) -> Array:
    """The experts of each token, [tokens, k] int32, all different; the same in every run."""
    rng = np.random.default_rng([tokens, shape.n_experts, ROUTINGS.index(kind)])
    order = rng.permutation(shape.n_experts)
    if kind == "all-to-one":
        return np.tile(order[: shape.top_k], (tokens, 1)).astype(np.int32)
    # The k largest of log(weight) + Gumbel noise are k draws without replacement.
    keys = rng.gumbel(size=(tokens, shape.n_experts))
    if kind == "zipf":
        keys -= np.log(np.arange(1, shape.n_experts + 1))
    return order[np.argsort(-keys, axis=1)[:, : shape.top_k]].astype(np.int32)


def make_routing(shape: MoEShape, tokens: int, kind: str, dtype: str = "float32") -> fc.Routing:
    """A routing whose weights add up to 1 for each token, in descending order."""
    ids = make_ids(shape, tokens, kind)
    weights = np.asarray(np.random.default_rng(tokens).exponential(size=ids.shape))
    weights = -np.sort(-weights, axis=1)
    weights /= weights.sum(axis=1, keepdims=True)
    return fc.Routing(experts=ids, weights=weights.astype(dtype), n_experts=shape.n_experts)


def moe_cost(shape: MoEShape, counts: Array, mode: str, itemsize: int) -> Cost:
    """The cost for `counts`, the number of rows of each expert."""
    layer: dict[str, Any] = {"d_model": shape.d, "d_ff": shape.f, "gated": shape.gated}
    rows, hit = int(counts.sum()), int(np.count_nonzero(counts))
    forward = fc.cost(rows, **layer)
    read = float(hit * shape.expert.parameters * itemsize)
    if mode != "train":
        return Cost(forward.flops, forward.activations, 0.0, read, min(read, LARGEST_FOOTPRINT))
    written = float(shape.parameters * itemsize)
    backward = fc.cost(rows, **layer, op="ffn_backward")
    return Cost(
        forward.flops + backward.flops,
        forward.activations,
        backward.activations,
        2 * read + written,
        min(read + written, LARGEST_FOOTPRINT),
    )
