"""The parts of fc.MoE, its constructor and their checks.

MoE in moe.py adds the forward and backward pass, and its docstring describes the arguments. With d
for d_model and l for the size of the experts, which is d without latent_in:

    experts                [E, f, l], [E, l, f] and so on      router        [E + null experts, d]
    latent_in, latent_out  [l, d], [d, l]                      shared        a layer of size d
    b_latent_in, ..._out   [l], [d]                            shared_gate, output_bias    [d]

Tests: tests/layers/test_moe_layer.py, tests/layers/test_moe_layer_errors.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..arrays.dtypes import FLOAT32, FLOAT64
from ..arrays.scalars import integer, number
from ..arrays.shapes import Array, MaybeArray, as_array, check_rank, check_shape
from ..functional.block import Surroundings, surroundings
from ..norms.norm import Norm
from ..values.activation import Activation, as_activation
from ..values.packed import PackedWeights, check_weights
from ..values.weights import FFNWeights
from .around import Around
from .ffn import FFN
from .moe_gradients import LATENT, ROUTER, nested
from .router import Router, check_precision

_NULL = ("identity", "skip")


class MoEParts:
    """The parts of a mixture of experts; see MoE, which inherits this constructor."""

    # Also of pickles from versions without these attributes.
    expert_ids: tuple[int, ...] | None = None
    around: Around | None = None
    parts: Surroundings = Surroundings()
    residual: bool = False

    def __init__(
        self,
        experts: FFNWeights | PackedWeights,
        activation: str | Activation,
        router: Router | None,
        *,
        shared: FFN | None = None,
        shared_gate: MaybeArray = None,
        combine: float = 1.0,
        latent_in: MaybeArray = None,
        latent_out: MaybeArray = None,
        b_latent_in: MaybeArray = None,
        b_latent_out: MaybeArray = None,
        output_bias: MaybeArray = None,
        n_null_experts: int = 0,
        null_experts: str = "identity",
        apply_router_weight_on_input: bool = False,
        name: str = "",
        expert_ids: Sequence[int] | None = None,
        around: Around | None = None,
        norm: Norm | None = None,
        post_norm: Norm | None = None,
        out_norm: Norm | None = None,
        residual: bool = False,
        residual_multiplier: float = 1.0,
    ) -> None:
        self.experts = check_weights(experts)
        if self.experts.n_experts is None:
            raise ValueError(
                "experts are weights of a single layer; expected weights with a leading dimension "
                "n_experts"
            )
        self.activation = as_activation(activation)
        if router is not None and not isinstance(router, Router):
            raise TypeError(
                f"router is of type {type(router).__name__}; expected fc.Router(weight, top_k=...) "
                f"with weight [n_experts, d_model], or None"
            )
        self.router, self.shared = router, shared
        self.combine = number("combine", combine, FLOAT64 if self.dtype is FLOAT64 else FLOAT32)
        self.latent_in, self.latent_out = latent_in, latent_out
        self.b_latent_in, self.b_latent_out = b_latent_in, b_latent_out
        self.shared_gate, self.output_bias = shared_gate, output_bias
        self.n_null_experts = integer("n_null_experts", n_null_experts)
        self.null_experts = null_experts
        self.apply_router_weight_on_input = bool(apply_router_weight_on_input)
        self.name = name
        self.expert_ids = None if expert_ids is None else tuple(map(int, expert_ids))
        self.around = around
        self._check()
        self.parts, self.residual = surroundings(
            self.d_model, self.dtype, residual, residual_multiplier, norm, post_norm, out_norm
        )

    def _check(self) -> None:
        if (self.latent_in is None) != (self.latent_out is None):
            raise ValueError("one of latent_in and latent_out is given; expected both or neither")
        latent = self.experts.d_model
        if self.latent_out is not None:
            check_rank(
                "latent_out", as_array("latent_out", self.latent_out), 2, "[d_model, latent]"
            )
        d = self.d_model
        shapes: dict[str, tuple[int, ...]] = {"latent_in": (latent, d), "latent_out": (d, latent)}
        shapes |= {"b_latent_in": (latent,), "b_latent_out": (d,)}
        shapes |= {"shared_gate": (d,), "output_bias": (d,)}
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array is None:
                continue
            array = as_array(name, array)
            check_precision(name, array, self.dtype, "the experts")
            check_shape(name, array, shape, f"to match d_model {d} and the experts")
            if name.startswith("b_latent") and self.latent_in is None:
                raise ValueError(f"{name} is given and latent_in is None; expected latent_in too")
        if self.shared_gate is not None and self.shared is None:
            raise ValueError("shared_gate is given and shared is None; expected shared too")
        if self.shared is not None and self.shared.d_model != d:
            raise ValueError(f"shared has d_model {self.shared.d_model}; expected {d}")
        if self.shared is not None and not self.shared.alone:
            raise ValueError(
                "shared has norms or a residual; expected a layer without, as those of the mixture "
                "stand around both"
            )
        if self.shared is not None and not self._fits(self.shared):
            raise TypeError(
                f"shared has dtype {self.shared.dtype.name}; expected {self.dtype.name} "
                f"to match the experts"
            )
        if self.router is not None:
            check_precision("router.weight", self.router.weight, self.dtype, "the experts")
        if self.null_experts not in _NULL:
            raise ValueError(f"null_experts is {self.null_experts!r}; expected one of {_NULL}")
        if self.n_null_experts < 0:
            raise ValueError(f"n_null_experts is {self.n_null_experts}; expected at least 0")
        total = self.n_experts + self.n_null_experts
        if self.expert_ids is not None:
            self._check_ids(self.expert_ids)
            return
        if self.router is not None and self.router.n_experts != total:
            parts, hint = "", ""
            if self.n_null_experts:
                parts = f": {self.n_experts} experts and {self.n_null_experts} null experts"
            if self.router.weight.shape == (d, total):
                hint = " (transposed? pass the router's weight.T)"
            raise ValueError(
                f"router has {self.router.n_experts} experts; expected {total}{parts}{hint}"
            )

    def _check_ids(self, ids: tuple[int, ...]) -> None:
        if len(ids) != self.n_experts:
            raise ValueError(f"expert_ids has {len(ids)} numbers; expected {self.n_experts}")
        if self.router is None:
            raise ValueError("expert_ids is given and router is None; expected a router, too")
        most = self.router.n_experts - self.n_null_experts
        if any(not 0 <= e < most for e in ids) or len(set(ids)) != len(ids):
            raise ValueError(
                f"expert_ids is {ids}; expected different numbers from 0 to {most - 1}"
            )

    def _fits(self, shared: FFN) -> bool:
        """Whether shared takes the same x: quantised weights take float32 and 16 bits."""
        layers = self.experts, shared.weights
        if any(w.quantized for w in layers):
            return FLOAT64 not in (w.dtype for w in layers)
        return shared.dtype == self.dtype

    # ---- properties

    @property
    def d_model(self) -> int:
        """The last dimension of x and y."""
        return self.experts.d_model if self.latent_out is None else int(self.latent_out.shape[0])

    @property
    def d_ff(self) -> int:
        """The number of hidden units of each expert."""
        return self.experts.d_ff

    @property
    def n_experts(self) -> int:
        """The number of experts that have weights, without the null experts."""
        return int(self.experts.n_experts or 0)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the experts' matrices."""
        return self.experts.dtype

    @property
    def _first_null(self) -> int:
        """The number of the first null expert in a routing."""
        if self.expert_ids is not None and self.router is not None:
            return self.router.n_experts - self.n_null_experts
        return self.n_experts

    def parameters(self) -> dict[str, Array]:
        """Return a dict from names to the arrays that have gradients.

        The names are those of MoELayerGrads, such as "router_weight" and "experts.up". Packed
        weights have no gradients, and are left out.
        """
        return self.own_parameters() | self.parts.parameters()

    def own_parameters(self) -> dict[str, Array]:
        """Return parameters() without the norms around the mixture."""
        found: dict[str, Array] = {}
        if self.router is not None:
            own = self.router.parameters()
            found = {name: own[key] for name, key in ROUTER.items() if key in own}
        if isinstance(self.experts, FFNWeights):
            found |= nested("experts", self.experts)
        if self.shared is not None and isinstance(self.shared.weights, FFNWeights):
            found |= nested("shared", self.shared.weights)
        for name in (*LATENT, "shared_gate", "output_bias"):
            if getattr(self, name) is not None:
                found[name] = getattr(self, name)
        return found

    def __repr__(self) -> str:
        parts = [
            f"{self.n_experts} experts, {self.d_model} -> {self.d_ff} -> {self.d_model}",
            self.activation.name,
            "gated" if self.experts.gated else "plain",
            self.dtype.name,
        ]
        if self.latent_in is not None:
            parts.append(f"latent {self.experts.d_model}")
        if self.n_null_experts:
            parts.append(f"{self.n_null_experts} {self.null_experts}")
        if self.shared is not None:
            parts.append(f"shared {self.shared.d_ff}")
        if self.expert_ids is not None:
            parts.append(f"of {self._first_null}")
        if isinstance(self.experts, PackedWeights):
            parts.append("packed")
        return f"MoE({self.name}{': ' if self.name else ''}{', '.join(parts)})"
