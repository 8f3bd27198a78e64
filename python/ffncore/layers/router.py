"""fc.Router: a router's weights and how it chooses, in one hand.

    z       = logit_scale * (x W^T + b)               x [..., d], W [E, d]; x times jitter if given
    logits  = c tanh(z / c)                           c = logit_softcap
    routing = route(logits)                           fc.route with its options, or another router
    weights = routing.weights * per_expert_scale[experts]

Logits are float32, beside 16-bit x too, and float64 beside float64 x; they are computed in float64
(linear.py says why). Tests: tests/layers/test_router_layer.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays.dtypes import FLOAT32, FLOAT64, check_dtype
from ..arrays.shapes import Array, MaybeArray, as_array, check_rank, check_shape, check_width
from ..functional.routing import route as _route
from ..functional.routing import route_backward
from ..values.routing import Routing
from .linear import linear, linear_backward


@dataclass(frozen=True, eq=False, repr=False)
class RouterGrads:
    """Gradients of a router, each with the dtype of what it is a gradient of."""

    x: Array
    weight: Array
    bias: MaybeArray = None
    per_expert_scale: MaybeArray = None


@dataclass(frozen=True, eq=False, repr=False)
class RouterSaved:
    """What a router's forward pass keeps: references, the logits, and the routing made of them."""

    x: Array
    jitter: MaybeArray
    logits: Array
    scored: Routing  # before per_expert_scale
    routing: Routing


class Router:
    """Logits and the choice of experts.

    weight            [E, d]; bias [E], per_expert_scale [E]. All are float64 beside float64 x, and
                      float32 or 16 bits, each for itself, beside others
    logit_scale       multiplies x W^T + b
    logit_softcap     c: c tanh(logits / c)
    route             logits -> Routing, with a backward pass in fc.route_backward: fc.route
                      (default), fc.sparsemixer, fc.switch_capacity or your own on top of them
    options           of route: top_k and others of fc.route, jitter_eps, capacity, ...; an
                      e_score_correction_bias narrower than the logits is widened, which is exact

    ValueError and TypeError for arrays and options that do not fit, raised here, before a call.

    >>> router = fc.Router(weight, top_k=8, score_fn="sigmoid", e_score_correction_bias=bias)
    >>> routing = router(x)
    """

    def __init__(
        self,
        weight: Array,
        *,
        bias: MaybeArray = None,
        logit_scale: float = 1.0,
        logit_softcap: float | None = None,
        per_expert_scale: MaybeArray = None,
        route: Callable[..., Routing] | None = None,
        **options: Any,
    ) -> None:
        self.weight = as_array("router.weight", weight)
        dtype = check_dtype("router.weight", self.weight)
        check_rank("router.weight", self.weight, 2, "[n_experts, d_model]")
        for name, value in (("bias", bias), ("per_expert_scale", per_expert_scale)):
            if value is not None:
                label = f"router.{name}"
                value = as_array(label, value)
                check_precision(label, value, dtype, "router.weight")
                reason = f"to match router.weight {self.weight.shape}"
                check_shape(label, value, self.weight.shape[:1], reason)
        if logit_softcap is not None and not logit_softcap > 0:
            raise ValueError(f"logit_softcap is {logit_softcap}; expected a number above 0")
        self.bias = bias
        self.per_expert_scale = per_expert_scale
        self.logit_scale = float(logit_scale)
        self.logit_softcap = None if logit_softcap is None else float(logit_softcap)
        self.route = _route if route is None else route
        self.options = options
        if route is None and "top_k" not in options:
            raise TypeError(
                "top_k is missing; expected how many experts each token goes to, as in "
                "fc.Router(weight, top_k=2)"
            )
        # Options that do not fit raise now, not at the first token.
        self._routed(np.zeros((1, self.n_experts), FLOAT64 if dtype is FLOAT64 else FLOAT32))

    @property
    def n_experts(self) -> int:
        """Experts that have a logit."""
        return int(self.weight.shape[0])

    @property
    def d_model(self) -> int:
        """Size of a row of the router's input."""
        return int(self.weight.shape[1])

    def parameters(self) -> dict[str, Array]:
        """The arrays that have gradients, by name."""
        named = {n: getattr(self, n) for n in ("weight", "bias", "per_expert_scale")}
        return {name: array for name, array in named.items() if array is not None}

    def __call__(
        self, x: Array, *, jitter: MaybeArray = None, experts: MaybeArray = None
    ) -> Routing:
        """Arguments as for forward."""
        return self.forward(x, jitter=jitter, experts=experts)[0]

    def logits(self, x: Array, *, jitter: MaybeArray = None) -> Array:
        """[..., E] of x [..., d]: float64 beside float64 x, else float32."""
        given = as_array("x", x)
        dtype = check_dtype("x", given)
        check_precision("router.weight", self.weight, dtype, "x")
        check_width(given, "router.weight", self.weight.shape)
        z = linear(_jittered(given, jitter), self.weight, self.bias, FLOAT64)
        z *= self.logit_scale
        if self.logit_softcap is not None:
            z = self.logit_softcap * np.tanh(z / self.logit_softcap)
        with np.errstate(over="ignore"):
            return z if dtype is FLOAT64 else z.astype(FLOAT32)

    def forward(
        self, x: Array, *, jitter: MaybeArray = None, experts: MaybeArray = None
    ) -> tuple[Routing, RouterSaved]:
        """The routing of x [..., d], and what the backward pass needs.

        jitter   what x is multiplied by first: an array that broadcasts to x
        experts  [..., k], chosen already, as for fc.route: only weights are computed
        """
        logits = self.logits(x, jitter=jitter)
        scored = self._routed(logits, **({} if experts is None else {"experts": experts}))
        routing = scored
        if self.per_expert_scale is not None:
            factors = _of_experts(self.per_expert_scale, scored).astype(scored.weights.dtype)
            routing = Routing(
                experts=scored.experts,
                weights=scored.weights * factors,
                n_experts=self.n_experts,
            )
        return routing, RouterSaved(x, jitter, logits, scored, routing)

    def backward(
        self, grad_weights: Array, saved: RouterSaved, *, grad_logits: MaybeArray = None
    ) -> RouterGrads:
        """Gradients from those of routing.weights [..., k].

        grad_logits  [..., E], added to the gradient of the logits: that of a load-balancing loss
        """
        wide = self.wide_gradients(grad_weights, saved, grad_logits)
        like = {"x": saved.x, **self.parameters()}
        return RouterGrads(**{name: a.astype(like[name].dtype) for name, a in wide.items()})

    def wide_gradients(
        self, grad_weights: Array, saved: RouterSaved, grad_logits: MaybeArray
    ) -> dict[str, Array]:
        """Those of backward in float64, by name, for sums that are rounded later."""
        scored, grads = saved.scored, {}
        grad = grad_weights
        if self.per_expert_scale is not None:
            ids = scored.experts
            there = ids >= 0
            products = grad_weights.astype(FLOAT64) * scored.weights
            grads["per_expert_scale"] = np.bincount(
                ids[there], weights=products[there], minlength=self.n_experts
            )
            grad = grad_weights * _of_experts(self.per_expert_scale, scored)
            grad = grad.astype(scored.weights.dtype)
        dz = route_backward(grad, scored).astype(FLOAT64)
        if grad_logits is not None:
            check_shape("grad_logits", grad_logits, dz.shape, "to match the logits")
            dz += grad_logits
        if self.logit_softcap is not None:
            dz *= 1 - np.square(saved.logits.astype(FLOAT64) / self.logit_softcap)
        dz *= self.logit_scale
        given = _jittered(saved.x, saved.jitter)
        grads["x"], grads["weight"], db = linear_backward(dz, given, self.weight, FLOAT64)
        if saved.jitter is not None:
            grads["x"] *= saved.jitter
        if self.bias is not None:
            grads["bias"] = db
        return grads

    def _routed(self, logits: Array, **more: Any) -> Routing:
        options = {**self.options, **more}
        name = "e_score_correction_bias"
        if options.get(name) is not None:
            bias = as_array(name, options[name])
            if check_dtype(name, bias).itemsize < logits.dtype.itemsize:
                options[name] = bias.astype(logits.dtype)
        return self.route(logits, **options)

    def __repr__(self) -> str:
        told = {
            "logit_scale": self.logit_scale if self.logit_scale != 1 else None,
            "logit_softcap": self.logit_softcap,
            "route": None if self.route is _route else getattr(self.route, "__name__", "own"),
            **{n: v for n, v in self.options.items() if not isinstance(v, np.ndarray)},
        }
        words = [f"{name}={value!r}" for name, value in told.items() if value is not None]
        return f"Router({', '.join([f'{self.d_model} -> {self.n_experts}', *words])})"


def check_precision(name: str, array: Array, beside: np.dtype[Any], other: str) -> None:
    """What numpy computes with may be 16 bits or float32 beside each other: widening is exact."""
    dtype = check_dtype(name, array)
    if (dtype is FLOAT64) != (beside is FLOAT64):
        expected = "float64" if beside is FLOAT64 else "float32 or 16 bits"
        raise TypeError(f"{name} has dtype {dtype.name}; expected {expected} to match {other}")


def _jittered(x: Array, jitter: MaybeArray) -> Array:
    """In float64 where there is jitter: the product is exact enough not to count as a rounding."""
    if jitter is None:
        return x
    factors = as_array("jitter", jitter)
    try:
        shape = np.broadcast_shapes(factors.shape, x.shape)
    except ValueError:
        shape = None
    if shape != x.shape:
        raise ValueError(f"jitter has shape {factors.shape}; expected one that fits x {x.shape}")
    return x.astype(FLOAT64) * factors


def _of_experts(scale: Array, routing: Routing) -> Array:
    """[..., k]; that of expert 0 where there is none, whose weight counts for nothing."""
    factors: Array = scale[np.maximum(routing.experts, 0)]
    return factors
