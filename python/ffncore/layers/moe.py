"""fc.MoE: a layer object of experts, router and what models put around them.

    routing = router(x)                                          or given
    routed  = fc.moe(x, routing, experts)                        experts see x, or
              latent_out fc.moe(latent_in x, ...)                live in a latent size
              + sum of the weights of identity experts times x
    y       = combine (routed + gate shared(x)) + output_bias    gate = sigmoid(<x, shared_gate>)

x, y [..., d]. Experts and the shared block are kernels; the rest is plain numpy: the router and the
gate in float64, rounded to float32, latent projections and sums in float32, all of it in float64
beside float64 x. Which model has what: models/mixture_families.py.

Tests: tests/layers/test_moe_layer.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..arrays.dtypes import FLOAT64, check_dtype, check_same_dtype
from ..arrays.overlap import check_apart, check_out
from ..arrays.shapes import Array, MaybeArray, as_array, check_width
from ..functional.mixtures import moe, moe_forward
from ..values.packed import pack, weights_inputs
from ..values.routing import Routing
from ..values.weights import FFNWeights
from .linear import linear, work_dtype
from .moe_backward import Backward
from .moe_gradients import LATENT, MoELayerGrads, MoELayerSaved
from .moe_parts import MoEParts


class MoE(MoEParts):
    """A mixture of experts with its router.

    experts     FFNWeights with a leading E, or packed ones
    activation  a name or an fc.Activation
    router      fc.Router of E + n_null_experts logits; None: each call brings its routing
    shared      fc.FFN that sees every token; shared_gate [d]: times sigmoid(<x, shared_gate>)
    combine     multiplies the sum of both
    latent_in   [l, d], latent_out [d, l], biases b_latent_in [l], b_latent_out [d]: the experts are
                of size l; router and shared see x
    output_bias [d], added at the end
    n_null_experts, null_experts   expert numbers from E on are "identity": they contribute their
                weight times x; or "skip": nothing
    apply_router_weight_on_input   as for fc.moe

    shared has the experts' dtype; beside experts of float64 all arrays are float64, beside others
    float32 or 16 bits. ValueError and TypeError for what does not fit.

    >>> layer = fc.MoE(experts, "silu", fc.Router(weight, top_k=8))
    >>> y = layer(x)
    >>> y, saved = layer.forward(x)
    >>> grads = layer.backward(grad_y, saved)  # grads.x, grads.router_weight, grads.experts.up
    """

    def packed(self) -> MoE:
        """The same layer with packed weights: faster to run often, without gradients of those."""
        experts = self.experts
        return MoE(
            pack(experts) if isinstance(experts, FFNWeights) else experts,
            self.activation,
            self.router,
            shared=None if self.shared is None else self.shared.packed(),
            combine=self.combine,
            **{name: getattr(self, name) for name in (*LATENT, "shared_gate", "output_bias")},
            n_null_experts=self.n_null_experts,
            null_experts=self.null_experts,
            apply_router_weight_on_input=self.apply_router_weight_on_input,
            name=self.name,
        )

    # ---- forward

    def __call__(
        self,
        x: Array,
        *,
        return_routing: bool = False,
        router_x: MaybeArray = None,
        jitter: MaybeArray = None,
        experts: MaybeArray = None,
        routing: Routing | None = None,
        out: MaybeArray = None,
    ) -> Any:
        """y [..., d] of x [..., d], or (y, routing); the other arguments are those of forward."""
        y, saved = self._run(x, None, router_x, jitter, experts, routing, out)
        return (y, saved.routing) if return_routing else y

    def forward(
        self,
        x: Array,
        *,
        save: str = "preactivations",
        router_x: MaybeArray = None,
        jitter: MaybeArray = None,
        experts: MaybeArray = None,
        routing: Routing | None = None,
        out: MaybeArray = None,
    ) -> tuple[Array, MoELayerSaved]:
        """y and what the backward pass needs (its .routing and .logits are for losses, too).

        save      as for moe_forward
        router_x  [..., d of the router]: what the router reads instead of x
        jitter    what the router's input is multiplied by: an array that broadcasts to it
        experts   [..., k], chosen already; the router gives them their weights (fc.route)
        routing   instead of the router's
        """
        return self._run(x, save, router_x, jitter, experts, routing, out)

    def _run(
        self,
        x: Array,
        save: str | None,
        router_x: MaybeArray,
        jitter: MaybeArray,
        experts: MaybeArray,
        routing: Routing | None,
        out: MaybeArray,
    ) -> tuple[Array, MoELayerSaved]:
        tokens = as_array("x", x)
        check_same_dtype("x", tokens, self.dtype, "the experts", or_float32=True)
        if self.latent_in is None:
            check_width(tokens, "experts.up", self.experts._up_shape)
        else:
            check_width(tokens, "latent_in", self.latent_in.shape)
        if out is not None:
            out = check_out("out", out, tokens.shape, tokens.dtype, "to match x")
            apart = router_x if isinstance(router_x, np.ndarray) else None
            check_apart("out", out, [("x", tokens), ("router_x", apart)])
            check_apart("out", out, self.parameters().items())
            check_apart("out", out, weights_inputs(self.experts))
        kept = None
        if routing is None:
            routing, kept = self._route(tokens, router_x, jitter, experts)
        elif any(a is not None for a in (router_x, jitter, experts)):
            raise ValueError("routing is given beside router_x, jitter or experts; expected one")

        work = work_dtype(tokens)
        given = tokens
        if self.latent_in is not None:
            given = linear(tokens, self.latent_in, self.b_latent_in, work).astype(tokens.dtype)
        inner, null = self._without_null(routing)
        plain = self.latent_in is None and self.shared is None and null is None
        plain = plain and self.combine == 1 and self.output_bias is None
        options: dict[str, Any] = {
            "activation": self.activation,
            "apply_router_weight_on_input": self.apply_router_weight_on_input,
            "out": out if plain else None,
        }
        moe_saved = None
        if save is None:
            hidden = moe(given, inner, self.experts, **options)
        else:
            hidden, moe_saved = moe_forward(given, inner, self.experts, save=save, **options)
        y, shared_saved, shared_y, gate = hidden, None, None, None
        if not plain:
            total = hidden.astype(work, copy=False)
            if self.latent_out is not None:
                total = linear(hidden, self.latent_out, self.b_latent_out, work)
            if null is not None:
                total = total + null.astype(work) * tokens.astype(work, copy=False)
            if self.shared is not None:
                if save is None:
                    shared_y = self.shared(tokens)
                else:
                    shared_y, shared_saved = self.shared.forward(tokens, save=save)
                gate = self._gate(tokens, work)
                term = shared_y.astype(work, copy=False)
                total = total + (term if gate is None else gate * term)
            y = self._finish(total, tokens, out)
        return y, MoELayerSaved(
            layer=self,
            x=tokens,
            routing=routing,
            router=kept,
            own_router_x=router_x is not None,
            moe=moe_saved,
            hidden=None if self.latent_out is None else hidden,
            null=null,
            shared=shared_saved,
            shared_y=None if gate is None else shared_y,
            gate=gate,
        )

    def _route(
        self, x: Array, router_x: MaybeArray, jitter: MaybeArray, experts: MaybeArray
    ) -> tuple[Routing, Any]:
        if self.router is None:
            raise ValueError("the layer has no router; expected routing=")
        given = x if router_x is None else as_array("router_x", router_x)
        check_same_dtype("router_x", given, check_dtype("x", x), "x")
        if given.shape[:-1] != x.shape[:-1]:
            raise ValueError(
                f"router_x has shape {given.shape}; expected {(*x.shape[:-1], 'd')} to match x"
            )
        return self.router.forward(given, jitter=jitter, experts=experts)

    def _without_null(self, routing: Routing) -> tuple[Routing, MaybeArray]:
        """The routing of the experts that compute, and the weight [..., 1] that x itself has."""
        if not self.n_null_experts:
            return routing, None
        is_null = routing.experts >= self.n_experts
        inner = Routing(
            experts=np.where(is_null, np.int32(-1), routing.experts),
            weights=routing.weights,
            n_experts=self.n_experts,
        )
        if self.null_experts == "skip":
            return inner, None
        return inner, np.where(is_null, routing.weights, 0).sum(axis=-1, keepdims=True)

    def _gate(self, x: Array, work: np.dtype[Any]) -> MaybeArray:
        if self.shared_gate is None:
            return None
        z = linear(x, self.shared_gate[None], None, FLOAT64)
        with np.errstate(over="ignore"):
            return np.asarray(1 / (1 + np.exp(-z)), work)

    def _finish(self, total: Array, x: Array, out: MaybeArray) -> Array:
        if self.combine != 1:
            total = total * total.dtype.type(self.combine)
        if self.output_bias is not None:
            total = total + self.output_bias.astype(total.dtype)
        with np.errstate(over="ignore"):
            if out is None:
                return total.astype(x.dtype, copy=False)
            out[...] = total
            return out

    # ---- backward

    def backward(
        self,
        grad_y: Array,
        saved: MoELayerSaved,
        *,
        needs: Iterable[str] | None = None,
        out: MoELayerGrads | Mapping[str, Any] | None = None,
        accumulate: bool = False,
        grad_logits: MaybeArray = None,
    ) -> MoELayerGrads:
        """Gradients of everything, from that of y.

        needs        names: "x", "router_x", "routing_weights", "activation", "shared_activation",
                     those of parameters(), or "experts" and "shared" for all of theirs
        out          arrays to fill: MoELayerGrads, or a mapping of such names
        accumulate   add into out instead
        grad_logits  [..., E], added to the gradient of saved.logits: of a load-balancing loss
        """
        return Backward(self, grad_y, saved, needs, out, accumulate, grad_logits).run()
