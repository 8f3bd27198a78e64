"""The shapes of real layers that the benchmarks run, and what a case costs.

A case is (shape, tokens, mode). Modes: "packed" and "raw" are one forward pass with packed or raw
weights; "train" is a forward and a backward pass with raw weights, every gradient computed.
Mixtures of experts: mixture_shapes.py.

    FLOPs and activations   as fc.cost counts them
    bytes                   the weights, biases too, once per pass that needs them; gradients
                            written once

Tests: tests/bench/test_bench.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ffncore as fc

MODES = ("packed", "raw", "train")
# Far beyond any cache the bandwidth no longer depends on the buffer, which takes memory itself.
LARGEST_FOOTPRINT = 2**31


@dataclass(frozen=True)
class Shape:
    name: str
    d: int
    f: int
    activation: str
    gated: bool = False
    bias: bool = False
    options: tuple[tuple[str, float], ...] = ()  # of the activation

    @property
    def function(self) -> str | fc.Activation:
        """A plain name where that says all, as most callers write it."""
        options: dict[str, Any] = dict(self.options)
        return fc.Activation(self.activation, **options) if options else self.activation

    @property
    def form(self) -> str:
        return "gated" if self.gated else "plain"

    @property
    def matrices(self) -> int:
        return 3 if self.gated else 2

    @property
    def parameters(self) -> int:
        """Matrices and biases of one layer."""
        biases = self.d + (self.matrices - 1) * self.f if self.bias else 0
        return self.matrices * self.d * self.f + biases


@dataclass(frozen=True)
class Cost:
    """What no implementation of a case can avoid."""

    flops: float
    forward_activations: float  # elements of h
    backward_activations: float
    bytes: float  # moved
    footprint: float  # distinct bytes: decides from which cache or memory they come


def cost(shape: Shape, tokens: int, mode: str, itemsize: int) -> Cost:
    layer: dict[str, Any] = {"d_model": shape.d, "d_ff": shape.f, "gated": shape.gated}
    forward = fc.cost(tokens, **layer)
    weights = float(shape.parameters * itemsize)
    if mode == "train":
        backward = fc.cost(tokens, **layer, op="ffn_backward")
        flops = forward.flops + backward.flops
        return Cost(flops, forward.activations, backward.activations, 3 * weights, 2 * weights)
    return Cost(forward.flops, forward.activations, 0.0, weights, weights)


SHAPES = (
    Shape("minilm", 384, 1536, "gelu", bias=True),
    Shape("bert-base", 768, 3072, "gelu", bias=True),
    Shape("smollm2-135m", 576, 1536, "silu", gated=True),
    Shape("modernbert-large", 1024, 2624, "gelu", gated=True),
    Shape("gemma-3-1b", 1152, 6912, "gelu_tanh", gated=True),
    Shape("llama-3.2-1b", 2048, 8192, "silu", gated=True),
    Shape("llama-3.1-8b", 4096, 14336, "silu", gated=True),
    Shape("falcon-7b", 4544, 18176, "gelu"),
)
# Not part of the default run: sizes that are a multiple of nothing.
ODD_SHAPES = (Shape("odd", 1000, 2744, "silu", gated=True),)

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 512, 4096)
QUICK_SHAPES = ("minilm", "bert-base", "smollm2-135m", "llama-3.2-1b")
QUICK_TOKENS = (1, 16, 128, 512)


FORM = "DxF[:activation][:gated or plain][:bias]"


def find_shape(name: str) -> Shape:
    """By name, or as FORM says, such as 1000x2744:silu:gated; without "gated" it is plain."""
    for shape in SHAPES + ODD_SHAPES:
        if shape.name == name:
            return shape
    size, *words = name.split(":")
    d, _, f = size.partition("x")
    if not (d.isdigit() and f.isdigit() and int(d) and int(f)):
        known = ", ".join(shape.name for shape in SHAPES + ODD_SHAPES)
        raise ValueError(f"shape {name!r} is not known; expected {FORM} or one of {known}")
    flags = [word for word in words if word in ("gated", "plain", "bias")]
    others = [word for word in words if word not in flags]
    extra = others[1:] or [word for word in flags if flags.count(word) > 1]
    if extra:
        raise ValueError(f"shape {name!r} has the extra field {extra[0]!r}; expected {FORM}")
    if {"gated", "plain"} <= set(flags):
        raise ValueError(f"shape {name!r} is gated and plain; expected {FORM}")
    try:
        kind = fc.Activation(others[0] if others else "silu").name
    except ValueError as error:
        raise ValueError(f"shape {name!r} is not {FORM}: {error}") from None
    return Shape(name, int(d), int(f), kind, "gated" in flags, "bias" in flags)
