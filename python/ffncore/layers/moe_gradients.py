"""What fc.MoE keeps for its backward pass, and the gradients that it gives.

Gradients have names: those of MoELayerGrads' fields, where experts and shared stand for the arrays
of an FFNWeights ("experts.up", "shared.down"). MoE.parameters() has the same names.

Tests: tests/layers/test_moe_layer.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ..arrays.dtypes import FLOAT64
from ..arrays.overlap import check_apart, check_out
from ..arrays.shapes import Array, MaybeArray
from ..arrays.words import check_names
from ..values.gradients import XieluGrads
from ..values.routing import Routing
from ..values.weights import FFNWeights
from .router import RouterSaved

# Of the fields below: gradients of weights, and numbers of xielu.
NESTED = ("experts", "shared")
NUMBERS = ("activation", "shared_activation")
LATENT = ("latent_in", "b_latent_in", "latent_out", "b_latent_out")
# Those of the router: their names there.
ROUTER = {"router_weight": "weight", "router_bias": "bias", "per_expert_scale": "per_expert_scale"}


@dataclass(frozen=True, eq=False, repr=False)
class MoELayerSaved:
    """References and intermediate results. x and the layer's arrays must not change in between."""

    layer: Any  # the fc.MoE whose forward pass it was
    x: Array
    routing: Routing  # as given or routed: null experts as E and above
    router: RouterSaved | None  # None: the routing was given
    own_router_x: bool  # the router read another array than x
    moe: Any  # of fc.moe_forward
    hidden: MaybeArray  # output of the experts, where latent_out reads it
    null: MaybeArray  # [..., 1]: sum of the weights of identity experts
    shared: Any  # of fc.ffn_forward
    shared_y: MaybeArray  # where a gate multiplies it
    gate: MaybeArray  # [..., 1]

    @property
    def logits(self) -> MaybeArray:
        """[..., E], those of the router; None where the routing was given."""
        return None if self.router is None else self.router.logits

    def __repr__(self) -> str:
        return f"MoELayerSaved(x={self.x.shape}, {self.routing!r})"


@dataclass(frozen=True, eq=False, repr=False)
class MoELayerGrads:
    """Gradients of a layer; None is what is not there or was not asked for.

    experts and shared are FFNWeights that mirror the weights; activation and shared_activation hold
    xielu's two parameters. router_x is there where the router's input was given apart from x,
    routing_weights where the routing was.
    """

    x: MaybeArray = None
    router_x: MaybeArray = None
    routing_weights: MaybeArray = None
    router_weight: MaybeArray = None
    router_bias: MaybeArray = None
    per_expert_scale: MaybeArray = None
    experts: FFNWeights | None = None
    activation: XieluGrads | None = None
    latent_in: MaybeArray = None
    b_latent_in: MaybeArray = None
    latent_out: MaybeArray = None
    b_latent_out: MaybeArray = None
    shared: FFNWeights | None = None
    shared_activation: XieluGrads | None = None
    shared_gate: MaybeArray = None
    output_bias: MaybeArray = None

    def arrays(self) -> dict[str, Array]:
        """The arrays that exist, by name: x, router_weight, experts.up, shared.up, ..."""
        found: dict[str, Array] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in NESTED and value is not None:
                found.update(nested(field.name, value))
            elif isinstance(value, np.ndarray):
                found[field.name] = value
        return found

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}={a.shape}" for name, a in self.arrays().items())
        return f"MoELayerGrads({shapes})"


def nested(prefix: str, weights: FFNWeights) -> dict[str, Array]:
    return {f"{prefix}.{name}": array for name, array in weights.arrays().items()}


def part(prefix: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """experts.up of arrays -> up"""
    start = prefix + "."
    return {n.removeprefix(start): value for n, value in arrays.items() if n.startswith(start)}


def wanted_names(needs: object, exist: Iterable[str]) -> tuple[str, ...]:
    """What needs= asks for; "experts" and "shared" stand for all of theirs."""
    names = tuple(exist)
    if needs is None:
        return names
    groups = [g for g in NESTED if any(n.startswith(g + ".") for n in names)]
    wanted: list[str] = []
    for name in check_names("needs", needs, (*names, *groups)):
        wanted += [n for n in names if n == name or (name in groups and n.startswith(name + "."))]
    return tuple(dict.fromkeys(wanted))


class Sink:
    """Where gradients go: arrays of out=, filled or added into, or new ones."""

    def __init__(
        self,
        out: object,
        wanted: tuple[str, ...],
        shapes: Mapping[str, Array],
        inputs: Iterable[tuple[str, Array]],
        accumulate: bool,
    ) -> None:
        """shapes: an array of each gradient's shape and dtype; inputs: what out must not overlap"""
        if accumulate and out is None:
            raise ValueError("accumulate is True and out is None; expected arrays to add into")
        entries: dict[str, Any] = {}
        if isinstance(out, MoELayerGrads):
            entries = {**out.arrays(), **{n: getattr(out, n) for n in NUMBERS}}
        elif isinstance(out, Mapping):
            entries = dict(out)
            check_names("out", entries, wanted)
        elif out is not None:
            raise TypeError(
                f"out is of type {type(out).__name__}; expected MoELayerGrads or a mapping"
            )
        self.accumulate = accumulate
        self.given: dict[str, Any] = {}
        taken = list(inputs)
        for name, array in entries.items():
            if array is None:
                continue
            if name not in wanted:
                raise ValueError(
                    f"out.{name} is given, but needs is {wanted}; expected {name!r} in it"
                )
            if name not in NUMBERS:
                like = shapes[name]
                array = check_out(
                    f"out.{name}",
                    array,
                    like.shape,
                    like.dtype,
                    f"to match {name}",
                    or_float32=True,
                )
                check_apart(f"out.{name}", array, taken)
                taken.append((f"out.{name}", array))
            self.given[name] = array
        self.found: dict[str, Any] = {}
        self._shapes, self._wanted = shapes, wanted

    def put(self, name: str, value: Array) -> None:
        """A gradient in a type at least as wide as its own, rounded here, once."""
        if name not in self._wanted:
            return
        target = self.given.get(name)
        if target is None:
            self.found[name] = value.astype(self._shapes[name].dtype, copy=False)
            return
        if self.accumulate:
            value = value + target.astype(np.result_type(value, FLOAT64))
        with np.errstate(over="ignore"):
            target[...] = value
        self.found[name] = target

    def take(self, prefix: str, grads: Any, numbers: str) -> None:
        """Gradients of weights that a kernel has written to the arrays of `given` already."""
        if grads.weights is not None:
            self.found[prefix] = grads.weights
        if grads.activation is not None:
            self.found[numbers] = grads.activation

    def kernel_out(self, prefix: str, numbers: str) -> dict[str, Any]:
        """out= of the kernel that computes them."""
        found = part(prefix, self.given)
        return found | ({"activation": self.given[numbers]} if numbers in self.given else {})
