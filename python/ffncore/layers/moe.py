"""fc.MoE: an object of experts, a router, and the other parts that released models have.

    routing = router(x)                                          or passed by the caller
    routed  = fc.moe(x, routing, experts)                        without a latent size
              latent_out fc.moe(latent_in x, routing, experts)   with one
              + (sum of the weights of identity experts) * x
    y       = combine (routed + gate * shared(x)) + output_bias  gate = sigmoid(<x, shared_gate>)

x and y are [..., d]. Experts and the shared expert run in the kernels. The rest is numpy: router
and gate in float64, rounded to float32; latent projections and sums in float32. With float64 x all
of it is float64. models/families says which model has which parts.

The constructor and its checks are in moe_parts.py, the backward pass in moe_backward.py. Tests:
tests/layers/test_moe_layer.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..arrays.dtypes import FLOAT64, check_dtype, check_same_dtype
from ..arrays.linear import linear, work_dtype
from ..arrays.overlap import check_apart, check_out
from ..arrays.shapes import Array, MaybeArray, as_array, check_width
from ..functional.block import backward as block_backward
from ..functional.block import forward as block_forward
from ..functional.block import nested as nested_norms
from ..functional.mixtures import moe, moe_forward
from ..values.arguments import check_x_dtype
from ..values.packed import weights_inputs
from ..values.packing.pack import pack
from ..values.routing import Routing
from ..values.weights import FFNWeights
from .moe_backward import Backward
from .moe_gradients import LATENT, NUMBERS, MoELayerGrads, MoELayerSaved
from .moe_parts import MoEParts


class MoE(MoEParts):
    """A mixture of experts as an object: experts, a router, and the other parts of models.

    experts         FFNWeights of experts, or the same packed
    activation      of the experts: a name, or an Activation with options
    router          an fc.Router of n_experts + n_null_experts logits; None: each call has to pass
                    a routing
    shared          an fc.FFN that computes every token, and whose output is added; None: none
    shared_gate     [d_model], multiplies the output of shared by sigmoid(<x, shared_gate>)
    combine         a number that multiplies the sum of experts and shared
    latent_in       [latent, d_model], makes the input of the experts, whose d_model is then latent;
                    router and shared still read x
    latent_out      [d_model, latent], projects the output of the experts
    b_latent_in     [latent], the bias of latent_in
    b_latent_out    [d_model], the bias of latent_out
    output_bias     [d_model], added at the end
    n_null_experts  the number of null experts, which have no weights: their numbers are n_experts
                    and above
    null_experts    "identity": a null expert returns x; "skip": it returns 0
    apply_router_weight_on_input  as for fc.moe
    name            a text that print shows, such as the name of the layer in a checkpoint
    expert_ids      the numbers that these experts have in the router, if it has more experts than
                    the layer, as in expert parallelism: slots of other experts contribute nothing.
                    None: all of the router's experts
    around          an Around, what the model computes around the layer; the layer does not compute
                    it
    norm, post_norm, out_norm, residual, residual_multiplier
                    what the layer computes around itself, as for fc.FFN; the router reads the
                    result of norm

    shared has the dtype of the experts. With float64 experts all other arrays are float64, too;
    with any others each of them may be float32, bfloat16 or float16. The arguments are attributes.

    Raises ValueError and TypeError for arguments that do not fit each other.

    See also: fc.moe, fc.Router, fc.load.

    >>> layer = fc.MoE(experts, "silu", fc.Router(r, top_k=2))
    >>> y = layer(x)
    >>> y, saved = layer.forward(x)
    >>> grads = layer.backward(grad_y, saved)  # grads.x, grads.router_weight, grads.experts.up
    """

    def packed(self) -> MoE:
        """Return this layer with packed weights (fc.pack): faster, but without their gradients."""
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
            expert_ids=self.expert_ids,
            around=self.around,
            residual=self.residual,
            **self.parts.options(),
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
        """Compute the layer: return y [..., d_model], or (y, routing) with return_routing.

        The other arguments are those of forward.
        """
        y, saved = self._block(
            x, None, out, router_x=router_x, jitter=jitter, experts=experts, routing=routing
        )
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
        """Compute the layer, and save what backward needs.

        x         [..., d_model], with the dtype of the experts, or float32 with 16-bit experts
        save      "preactivations" or "input", as for fc.moe_forward
        router_x  [..., d_model of the router], the input of the router; None: x
        jitter    an array that broadcasts to the input of the router, and multiplies it; None: no
                  factor
        experts   [..., k], experts that are chosen already: the router computes their weights.
                  None: the router chooses them
        routing   a Routing that takes the place of the router; None: the router is called
        out       an array like x to write y to; None: a new array

        Returns y [..., d_model] and a MoELayerSaved, whose routing and logits are also the
        arguments of the auxiliary losses. x and the arrays of the layer must not be changed before
        the backward pass.

        Raises ValueError for shapes, values and arguments that exclude each other; TypeError for
        types and dtypes.
        """
        return self._block(
            x, save, out, router_x=router_x, jitter=jitter, experts=experts, routing=routing
        )

    def _block(
        self, x: Array, save: str | None, out: MaybeArray, **choice: Any
    ) -> tuple[Array, MoELayerSaved]:
        """The mixture, and the norms and residual around it. choice: for _run."""
        if not self.residual and not self.parts.norms():
            return self._run(x, save, out, **choice)

        def layer(rows: Array) -> tuple[Array, MoELayerSaved]:
            return self._run(rows, save, None, **choice)

        y, block = block_forward(x, self.parts, x if self.residual else None, layer, out)
        return y, replace(block.layer, block=block)

    def _run(
        self,
        x: Array,
        save: str | None,
        out: MaybeArray,
        *,
        router_x: MaybeArray,
        jitter: MaybeArray,
        experts: MaybeArray,
        routing: Routing | None,
    ) -> tuple[Array, MoELayerSaved]:
        tokens = as_array("x", x)
        check_x_dtype(tokens, self.experts, "the experts")
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
            raise ValueError(
                "routing is given together with router_x, jitter or experts; expected routing alone"
            )

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
        """The routing without null experts and experts that are not here, and the sum of the
        weights of null experts, [..., 1], for "identity".
        """
        if not self.n_null_experts and self.expert_ids is None:
            return routing, None
        is_null = routing.experts >= self._first_null
        if self.expert_ids is None:
            own = np.where(is_null, np.int32(-1), routing.experts)
        else:
            # The last place is that of slots without an expert, which have -1.
            place = np.full(self._first_null + self.n_null_experts + 1, -1, np.int32)
            place[list(self.expert_ids)] = np.arange(self.n_experts, dtype=np.int32)
            own = place[routing.experts]
        # Slots without an expert may have any weight, which has no effect.
        inner = Routing(experts=own, weights=routing.weights, n_experts=self.n_experts)
        if self.null_experts == "skip" or not self.n_null_experts:
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
        """Compute the gradients of x, the router and all parts of the layer.

        grad_y       [..., d_model], with the shape and dtype of y
        saved        the MoELayerSaved that forward returned
        needs        names of the gradients to compute: "x", "router_x" and "routing_weights" (if
                     the caller passed router_x or routing), "activation" and "shared_activation"
                     (of xielu), and those of parameters(); "experts" and "shared" stand for all of
                     their arrays. None: all that exist
        out          arrays to write the gradients to: a MoELayerGrads, or a mapping from names of
                     needs to arrays. None: new arrays
        accumulate   if true, add the gradients to the values in out
        grad_logits  [..., n_experts], added to the gradient of saved.logits, such as that of a
                     load-balancing loss; None: nothing is added

        Returns a MoELayerGrads. Its x is the whole gradient, including the router's part.

        Raises ValueError for shapes, names and arrays that overlap; TypeError for types and dtypes.
        """

        def layer(
            grad: Array, needs: Any = None, out: Any = None, accumulate: bool = False
        ) -> MoELayerGrads:
            return Backward(self, grad, saved, needs, out, accumulate, grad_logits).run()

        block = getattr(saved, "block", None)
        if block is None:
            return layer(grad_y, needs, out, accumulate)
        given: Any = out
        if isinstance(out, MoELayerGrads):
            given = out.arrays() | {n: getattr(out, n) for n in NUMBERS}
        grads, found = block_backward(
            grad_y, block, layer, needs, given, accumulate, own_residual=True
        )
        made: MoELayerGrads = replace(grads, x=found.get("x"), **nested_norms(found))
        return made
