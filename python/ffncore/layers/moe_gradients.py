"""The saved activations of fc.MoE, its gradients, and where the gradients are written to.

Gradients have the names of the fields of MoELayerGrads. The fields experts and shared hold the
arrays of an FFNWeights, whose names are "experts.up", "shared.down" and so on. needs=, out= and
MoE.parameters() use the same names.

Tests: tests/layers/test_moe_layer.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ..arrays.dtypes import FLOAT64
from ..arrays.overlap import check_apart, check_out
from ..arrays.scalars import check_names
from ..arrays.shapes import Array, MaybeArray
from ..encodings.tensor import QuantizedTensor
from ..functional.block import NORMS, BlockSaved
from ..norms.rows import NormGrads
from ..values.gradients import XieluGrads
from ..values.routing import Routing
from ..values.weights import FFNWeights
from .router import RouterSaved

# Fields of MoELayerGrads that hold FFNWeights, and those that hold the numbers of xielu.
NESTED = ("experts", "shared")
NUMBERS = ("activation", "shared_activation")
LATENT = ("latent_in", "b_latent_in", "latent_out", "b_latent_out")
# From fields that belong to the router to their names in RouterGrads.
ROUTER = {
    "router_weight": "weight",
    "router_bias": "bias",
    "per_expert_scale": "per_expert_scale",
    "router_input_scale": "input_scale",
}


@dataclass(frozen=True, eq=False, repr=False)
class MoELayerSaved:
    """The saved activations of MoE.forward, which MoE.backward needs.

    Its attributes routing and logits are also for the auxiliary losses. It refers to x and the
    arrays of the layer, which must not be changed before the backward pass.

    >>> layer = fc.MoE(experts, "silu", fc.Router(r, top_k=2))
    >>> y, saved = layer.forward(x)
    >>> loss = fc.load_balancing_loss(saved.logits, saved.routing)
    """

    layer: Any  # the fc.MoE of the forward pass
    x: Array
    routing: Routing  # of the caller or the router; null experts have numbers from n_experts on
    router: RouterSaved | None  # None: the caller passed the routing
    own_router_x: bool  # whether the caller passed router_x
    moe: Any  # the MoESaved of fc.moe_forward
    hidden: MaybeArray  # the output of the experts, if there is a latent_out
    null: MaybeArray  # [..., 1]: the sum of the weights of identity experts
    shared: Any  # the Saved of fc.ffn_forward
    shared_y: MaybeArray  # the output of shared, if there is a shared_gate
    gate: MaybeArray  # [..., 1]
    block: BlockSaved | None = None  # of the norms and the residual around the mixture

    @property
    def logits(self) -> MaybeArray:
        """The logits of the router, [..., n_experts]; None if the caller passed the routing."""
        return None if self.router is None else self.router.logits

    def __repr__(self) -> str:
        return f"MoELayerSaved(x={self.x.shape}, {self.routing!r})"


@dataclass(frozen=True, eq=False, repr=False)
class MoELayerGrads:
    """The gradients that MoE.backward returns.

    x                  [..., d_model], the whole gradient of x, including the router's part
    router_x           like router_x, if the caller passed it to forward
    routing_weights    [..., k], if the caller passed a routing to forward
    router_weight      [n_experts, d_model]
    router_bias        [n_experts]
    per_expert_scale   [n_experts]
    experts            FFNWeights whose arrays are the gradients of the experts' arrays
    activation         XieluGrads of the experts' activation
    latent_in          [latent, d_model]
    b_latent_in        [latent]
    latent_out         [d_model, latent]
    b_latent_out       [d_model]
    shared             FFNWeights whose arrays are the gradients of the shared expert's arrays
    shared_activation  XieluGrads of the shared expert's activation
    shared_gate        [d_model]
    output_bias        [d_model]
    router_input_scale  [d_model]
    norm               NormGrads of the norm before the layer
    post_norm          NormGrads of the norm of its output
    out_norm           NormGrads of the norm of the sum

    A gradient that does not exist or was not requested (needs=) is None.
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
    router_input_scale: MaybeArray = None
    norm: NormGrads | None = None
    post_norm: NormGrads | None = None
    out_norm: NormGrads | None = None

    def arrays(self) -> dict[str, Array]:
        """Return a dict from names to arrays: "x", "router_weight", "experts.up" and so on.

        Gradients that are None are left out.
        """
        found: dict[str, Array] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in (*NESTED, *NORMS) and value is not None:
                found.update(nested(field.name, value))
            elif isinstance(value, np.ndarray):
                found[field.name] = value
        return found

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}={a.shape}" for name, a in self.arrays().items())
        return f"MoELayerGrads({shapes})"


def nested(prefix: str, weights: FFNWeights | NormGrads) -> dict[str, Array]:
    """The arrays of weights or norms that have gradients, with the prefix before their names."""
    arrays = weights.arrays().items()
    return {f"{prefix}.{n}": a for n, a in arrays if not isinstance(a, QuantizedTensor)}


def part(prefix: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The entries whose name starts with the prefix, by the rest of it: "experts.up" -> "up"."""
    start = prefix + "."
    return {n.removeprefix(start): value for n, value in arrays.items() if n.startswith(start)}


def wanted_names(needs: object, exist: Iterable[str]) -> tuple[str, ...]:
    """The names in needs=, where "experts" and "shared" are replaced by those of their arrays."""
    names = tuple(exist)
    if needs is None:
        return names
    groups = [g for g in NESTED if any(n.startswith(g + ".") for n in names)]
    wanted: list[str] = []
    for name in check_names("needs", needs, (*names, *groups)):
        wanted += [n for n in names if n == name or (name in groups and n.startswith(name + "."))]
    return tuple(dict.fromkeys(wanted))


class Sink:
    """The destination of gradients: arrays of out=, which are filled or added to, or new ones."""

    def __init__(
        self,
        out: object,
        wanted: tuple[str, ...],
        shapes: Mapping[str, Array],
        inputs: Iterable[tuple[str, Array]],
        accumulate: bool,
    ) -> None:
        """shapes: for each gradient an array of its shape and dtype; inputs: arrays that out must
        not overlap.
        """
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
                    f"out.{name} is given, but needs is {wanted}; expected {name!r} in needs"
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
        """Write a gradient, which is rounded here, once: value is at least as wide as its dtype."""
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
        """Take over gradients of weights, which a kernel has already written to arrays of out=."""
        if grads.weights is not None:
            self.found[prefix] = grads.weights
        if grads.activation is not None:
            self.found[numbers] = grads.activation

    def kernel_out(self, prefix: str, numbers: str) -> dict[str, Any]:
        """The entries of out= for the function that computes these gradients."""
        found = part(prefix, self.given)
        return found | ({"activation": self.given[numbers]} if numbers in self.given else {})
