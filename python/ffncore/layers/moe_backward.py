"""The backward pass of fc.MoE: the parts of the layer, from the last to the first.

    r = combine dy, [..., d]                 d_output_bias = sum of dy over tokens
    routed = latent_out m + b, m = fc.moe    dm = r latent_out,  then fc.moe_backward
    null experts of weights w                dw = <r, x> in their slots,  dx += (sum of w) r
    gate * S, S = shared(x)                  dS = gate r,  dz = <r, S> gate (1 - gate)
      with gate = sigmoid(z)
    routing weights                          Router.backward

The gradient of x is the sum of its parts in this order: experts, null experts, shared, its gate,
router. Sums are rounded to the dtype of the gradient once, at the end. Tests:
tests/layers/test_moe_layer.py.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..arrays.dtypes import FLOAT32, FLOAT64, check_dtype, check_same_dtype, is_narrow
from ..arrays.linear import linear_backward, work_dtype
from ..arrays.shapes import Array, MaybeArray, as_array, check_shape
from ..functional.mixtures import moe_backward
from .moe_gradients import ROUTER, MoELayerGrads, MoELayerSaved, Sink, part, wanted_names
from .moe_parts import MoEParts


class Backward:
    """One call of MoE.backward: its checked arguments, and dx, to which each part adds."""

    def __init__(
        self,
        layer: MoEParts,
        grad_y: object,
        saved: MoELayerSaved,
        needs: object,
        out: object,
        accumulate: object,
        grad_logits: MaybeArray,
    ) -> None:
        if not isinstance(saved, MoELayerSaved):
            raise TypeError(
                f"saved is of type {type(saved).__name__}; expected the second result of forward"
            )
        self.layer, self.saved, self.grad_logits = layer, saved, grad_logits
        self.grad_y = as_array("grad_y", grad_y)
        check_same_dtype("grad_y", self.grad_y, check_dtype("x", saved.x), "saved.x")
        check_shape("grad_y", self.grad_y, saved.x.shape, "to match saved.x")
        if grad_logits is not None and saved.router is None:
            raise ValueError(
                "grad_logits is given, but forward got a routing; expected a forward pass with the "
                "layer's router"
            )
        self.work = work_dtype(saved.x)
        shapes = self._shapes()
        self.wanted = wanted_names(needs, (*shapes, *self._numbers(shapes)))
        inputs = [("grad_y", self.grad_y), ("x", saved.x), *layer.parameters().items()]
        self.accumulate = bool(accumulate)
        self.sink = Sink(out, self.wanted, shapes, inputs, self.accumulate)
        self.dx: MaybeArray = None

    def _shapes(self) -> dict[str, Array]:
        """For each gradient that exists, by name, an array of its shape and dtype."""
        saved, parameters = self.saved, self.layer.own_parameters()
        found = {"x": saved.x}
        if saved.router is None:
            found["routing_weights"] = saved.routing.weights
            parameters = {n: a for n, a in parameters.items() if n not in ROUTER}
        elif saved.own_router_x:
            found["router_x"] = saved.router.x
        return found | parameters

    def _numbers(self, shapes: Iterable[str]) -> Iterable[str]:
        """The names of the gradients of xielu's parameters, if its weights have gradients."""
        layer = self.layer
        names = dict.fromkeys(shapes)
        if layer.activation.name == "xielu" and part("experts", names):
            yield "activation"
        shared = layer.shared
        if shared is not None and shared.activation.name == "xielu" and part("shared", names):
            yield "shared_activation"

    def run(self) -> MoELayerGrads:
        layer, sink = self.layer, self.sink
        if "output_bias" in self.wanted:
            sink.put("output_bias", _over_tokens(self.grad_y))
        r = self.grad_y.astype(self.work, copy=False)
        if layer.combine != 1:
            r = r * r.dtype.type(layer.combine)
        grad_weights = self._experts(r)
        if layer.shared is not None:
            self._shared(r)
        self._router(grad_weights)
        if self.dx is not None:
            sink.put("x", self.dx)
        return MoELayerGrads(**sink.found)

    def _add_to_x(self, term: Array) -> None:
        if "x" in self.wanted:
            term = term.astype(self.work, copy=False)
            self.dx = term if self.dx is None else self.dx + term

    # ---- the parts

    def _routing_counts(self) -> bool:
        """Whether a requested gradient depends on that of the routing weights."""
        if self.saved.router is None:
            return "routing_weights" in self.wanted
        ends = {*ROUTER, "router_x"} | (set() if self.saved.own_router_x else {"x"})
        return bool(ends & set(self.wanted))

    def _experts(self, r: Array) -> MaybeArray:
        """Compute the gradients of the experts, and return that of the routing weights."""
        layer, saved, sink = self.layer, self.saved, self.sink
        grad = r
        if layer.latent_out is not None:
            assert saved.hidden is not None
            grad, dw, db = linear_backward(r, saved.hidden, layer.latent_out, self.work)
            sink.put("latent_out", dw)
            sink.put("b_latent_out", db)
        needs = [*part("experts", dict.fromkeys(self.wanted))]
        if "activation" in self.wanted:
            needs.append("activation")
        if {"x", "latent_in", "b_latent_in"} & set(self.wanted):
            needs.append("x")
        if self._routing_counts():
            needs.append("routing_weights")
        out = sink.kernel_out("experts", "activation")
        x = saved.moe.x
        if "x" in needs and is_narrow(x.dtype):
            out["x"] = np.zeros(x.shape, FLOAT32)  # rounded to 16 bits once, after all parts
        found = moe_backward(
            grad.astype(x.dtype, copy=False),
            saved.moe,
            needs=needs,
            out=out,
            accumulate=self.accumulate,
        )
        sink.take("experts", found, "activation")
        if found.x is not None:
            self._latent_in(found.x)
        grad_weights: MaybeArray = found.routing_weights
        if saved.null is not None:
            null = saved.null.astype(self.work) * r
            self._add_to_x(null)
            if grad_weights is not None:
                products = (r * saved.x.astype(self.work, copy=False)).sum(-1, keepdims=True)
                is_null = saved.routing.experts >= layer._first_null
                products = products.astype(grad_weights.dtype)
                grad_weights = np.where(is_null, products, grad_weights)
        return grad_weights

    def _latent_in(self, grad: Array) -> None:
        layer = self.layer
        if layer.latent_in is None:
            self._add_to_x(grad)
            return
        dx, dw, db = linear_backward(grad, self.saved.x, layer.latent_in, self.work)
        self._add_to_x(dx)
        self.sink.put("latent_in", dw)
        self.sink.put("b_latent_in", db)

    def _shared(self, r: Array) -> None:
        layer, saved, sink = self.layer, self.saved, self.sink
        assert layer.shared is not None
        grad = r
        if saved.gate is not None and saved.shared_y is not None:
            grad = r * saved.gate
        needs = [*part("shared", dict.fromkeys(self.wanted))]
        needs += ["activation"] if "shared_activation" in self.wanted else []
        needs += ["x"] if "x" in self.wanted else []
        out = sink.kernel_out("shared", "shared_activation")
        if "x" in needs and is_narrow(saved.x.dtype):
            out["x"] = np.zeros(saved.x.shape, FLOAT32)
        found = layer.shared.backward(
            grad.astype(saved.x.dtype, copy=False),
            saved.shared,
            needs=needs,
            out=out,
            accumulate=self.accumulate,
        )
        sink.take("shared", found, "shared_activation")
        if found.x is not None:
            self._add_to_x(found.x)
        if saved.gate is None or saved.shared_y is None or layer.shared_gate is None:
            return
        products = (r * saved.shared_y.astype(self.work, copy=False)).sum(-1, keepdims=True)
        g = saved.gate.astype(FLOAT64)
        dz = products * g * (1 - g)
        dx, dw, _ = linear_backward(dz, saved.x, layer.shared_gate[None], FLOAT64)
        self._add_to_x(dx)
        sink.put("shared_gate", dw[0])

    def _router(self, grad_weights: MaybeArray) -> None:
        saved, sink, router = self.saved, self.sink, self.layer.router
        if grad_weights is None:
            return
        if saved.router is None or router is None:
            sink.put("routing_weights", grad_weights)
            return
        found = router.wide_gradients(grad_weights, saved.router, self.grad_logits)
        for name, own in ROUTER.items():
            if own in found:
                sink.put(name, found[own])
        if saved.own_router_x:
            sink.put("router_x", found["x"])
        else:
            self._add_to_x(found["x"])


def _over_tokens(grad: Array) -> Array:
    rows: Array = grad.reshape(-1, grad.shape[-1]) if grad.size else np.zeros((1, grad.shape[-1]))
    return np.asarray(rows.sum(axis=0, dtype=FLOAT64))
