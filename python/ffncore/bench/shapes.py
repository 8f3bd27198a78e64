"""The shapes of real layers that the bench runs, and the cost of a case.

A case is a shape, a number of tokens and a mode:

    packed   a forward pass with packed weights
    raw      a forward pass with weights that are not packed
    train    a forward and a backward pass with weights that are not packed, and all gradients

The cost of a case:

    FLOPs and activations   as fc.cost counts them
    bytes                   weights and biases, once for each pass that reads them; in training also
                            the gradients, written once

Mixtures of experts: mixture_shapes.py.

Tests: tests/bench/test_bench.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ffncore as fc

MODES = ("packed", "raw", "train")
# Beyond all caches the bandwidth does not depend on the size of the buffer, which takes memory.
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
        """What activation= takes: the name, if there are no options."""
        options: dict[str, Any] = dict(self.options)
        return fc.Activation(self.activation, **options) if options else self.activation

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
    """What every implementation of a case has to compute and move."""

    flops: float
    forward_activations: float  # elements of h
    backward_activations: float
    bytes: float  # moved
    footprint: float  # distinct bytes, which decide from which cache or memory they come


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
# Not part of the default run: sizes that are no multiples of a vector.
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
