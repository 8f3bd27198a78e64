"""fc.Router: an object that holds the weights and the options of a router.

    u       = x / sqrt(mean x^2 + eps) * input_scale  with input_norm_eps, else x; x * jitter first
    z       = logit_scale * (u W^T + b)               x [..., d], W [E, d]
    logits  = c tanh(z / c)                           c = logit_softcap
    routing = route(logits)                           fc.route with options, or another router
    weights = routing.weights * per_expert_scale[experts]

Logits are float64 if x is float64, else float32, also with 16-bit x. They are computed in float64;
arrays/linear.py says why. Tests: tests/layers/test_router_layer.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays.dtypes import FLOAT32, FLOAT64, check_dtype
from ..arrays.linear import linear, linear_backward
from ..arrays.scalars import number
from ..arrays.shapes import Array, MaybeArray, as_array, check_rank, check_shape, check_width
from ..functional.routing import route as _route
from ..functional.routing import route_backward
from ..values.routing import Routing


@dataclass(frozen=True, eq=False, repr=False)
class RouterGrads:
    """The gradients that Router.backward returns.

    x                 [..., d_model]
    weight            [n_experts, d_model]
    bias              [n_experts]; None if the router has no bias
    per_expert_scale  [n_experts]; None if the router has none
    input_scale       [d_model]; None if the router has none

    Each has the dtype of the array that it belongs to.
    """

    x: Array
    weight: Array
    bias: MaybeArray = None
    per_expert_scale: MaybeArray = None
    input_scale: MaybeArray = None


@dataclass(frozen=True, eq=False, repr=False)
class RouterSaved:
    """What a router's forward pass keeps: its arguments, the logits, and the routings."""

    x: Array
    jitter: MaybeArray
    logits: Array
    scored: Routing  # before per_expert_scale
    routing: Routing


class Router:
    """A router as an object: a matrix that makes logits, and the options that choose experts.

    It computes logits = softcap(logit_scale * (x weight^T + bias)) in float64, rounds them to
    float32 unless x is float64, and passes them to route.

    weight            [n_experts, d_model]
    bias              [n_experts]; None: no bias
    logit_scale       multiplies x weight^T + bias
    logit_softcap     a number c: logits become c tanh(logits / c). None: they stay as they are
    per_expert_scale  [n_experts], multiplies the weight of each expert after routing; None: no
                      factor
    input_norm_eps    x is divided by sqrt(mean x^2 + input_norm_eps) first; None: it is not
    input_scale       [d_model], multiplies x after that; None: no factor
    route             a function from logits to a Routing that fc.route_backward accepts:
                      fc.sparsemixer, fc.switch_capacity, or one of yours that calls them. None:
                      fc.route
    options           passed to route: top_k and the other options of fc.route, or jitter_eps,
                      capacity and so on. An e_score_correction_bias may be narrower than the logits

    With float64 x all arrays are float64. With any other x each of them may be float32, bfloat16 or
    float16. The arguments are attributes.

    Raises ValueError and TypeError for arrays and options that do not fit. Options are checked
    here, not in the first call.

    See also: fc.route, fc.MoE.

    >>> router = fc.Router(r, top_k=2, score_fn="sigmoid")
    >>> routing = router(x)
    """

    # Also of pickles from versions without these attributes.
    input_norm_eps: float | None = None
    input_scale: MaybeArray = None

    def __init__(
        self,
        weight: Array,
        *,
        bias: MaybeArray = None,
        logit_scale: float = 1.0,
        logit_softcap: float | None = None,
        per_expert_scale: MaybeArray = None,
        input_norm_eps: float | None = None,
        input_scale: MaybeArray = None,
        route: Callable[..., Routing] | None = None,
        **options: Any,
    ) -> None:
        self.weight = as_array("router.weight", weight)
        dtype = check_dtype("router.weight", self.weight)
        check_rank("router.weight", self.weight, 2, "[n_experts, d_model]")
        experts, d = self.weight.shape
        for name, value, size in (
            ("bias", bias, experts),
            ("per_expert_scale", per_expert_scale, experts),
            ("input_scale", input_scale, d),
        ):
            if value is not None:
                label = f"router.{name}"
                value = as_array(label, value)
                check_precision(label, value, dtype, "router.weight")
                reason = f"to match router.weight {self.weight.shape}"
                check_shape(label, value, (size,), reason)
        self.bias = bias
        self.per_expert_scale = per_expert_scale
        self.input_scale = input_scale
        self.input_norm_eps = (
            None if input_norm_eps is None else number("input_norm_eps", input_norm_eps)
        )
        self.logit_scale = number("logit_scale", logit_scale)
        self.logit_softcap = (
            None if logit_softcap is None else number("logit_softcap", logit_softcap)
        )
        if self.logit_softcap is not None and self.logit_softcap <= 0:
            raise ValueError(f"logit_softcap is {logit_softcap}; expected a number above 0")
        self.route = _route if route is None else route
        self.options = options
        if route is None and "top_k" not in options:
            raise TypeError(
                "top_k is missing; expected the number of experts of each token, as in "
                "fc.Router(weight, top_k=2)"
            )
        # Options that do not fit raise here, not in the first call.
        self._routed(np.zeros((1, self.n_experts), FLOAT64 if dtype is FLOAT64 else FLOAT32))

    @property
    def n_experts(self) -> int:
        """The number of experts, which is the number of logits of a token."""
        return int(self.weight.shape[0])

    @property
    def d_model(self) -> int:
        """The last dimension of x."""
        return int(self.weight.shape[1])

    def parameters(self) -> dict[str, Array]:
        """Return a dict from names to the arrays that have gradients: weight, bias and so on."""
        names = ("weight", "bias", "per_expert_scale", "input_scale")
        named = {n: getattr(self, n) for n in names}
        return {name: array for name, array in named.items() if array is not None}

    def __call__(
        self, x: Array, *, jitter: MaybeArray = None, experts: MaybeArray = None
    ) -> Routing:
        """Return the Routing of x; the arguments are those of forward."""
        return self.forward(x, jitter=jitter, experts=experts)[0]

    def logits(self, x: Array, *, jitter: MaybeArray = None) -> Array:
        """Compute the logits [..., n_experts] of x [..., d_model].

        x       [..., d_model]
        jitter  an array that broadcasts to x, and multiplies it first; None: no factor

        They are float64 for float64 x, else float32.

        Raises ValueError for shapes and TypeError for types and dtypes.
        """
        given = as_array("x", x)
        dtype = check_dtype("x", given)
        check_precision("router.weight", self.weight, dtype, "x")
        check_width(given, "router.weight", self.weight.shape)
        z = linear(self._input(_jittered(given, jitter)), self.weight, self.bias, FLOAT64)
        z *= self.logit_scale
        if self.logit_softcap is not None:
            z = self.logit_softcap * np.tanh(z / self.logit_softcap)
        with np.errstate(over="ignore"):
            return z if dtype is FLOAT64 else z.astype(FLOAT32)

    def forward(
        self, x: Array, *, jitter: MaybeArray = None, experts: MaybeArray = None
    ) -> tuple[Routing, RouterSaved]:
        """Route the tokens of x, and save what backward needs.

        x        [..., d_model]
        jitter   an array that broadcasts to x, and multiplies it first; None: no factor
        experts  [..., k], experts that are chosen already, as for fc.route: only their weights are
                 computed. None: route chooses them

        Returns a Routing and the saved values for backward.

        Raises ValueError for shapes and values, and TypeError for types and dtypes.
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
        """Compute the gradients of x and the router's arrays.

        grad_weights  [..., k], the gradient of routing.weights
        saved         the second result of forward
        grad_logits   [..., n_experts], added to the gradient of the logits, such as that of a
                      load-balancing loss; None: nothing is added

        Returns a RouterGrads.

        Raises ValueError for shapes and TypeError for types and dtypes.
        """
        wide = self.wide_gradients(grad_weights, saved, grad_logits)
        like = {"x": saved.x, **self.parameters()}
        return RouterGrads(**{name: a.astype(like[name].dtype) for name, a in wide.items()})

    def wide_gradients(
        self, grad_weights: Array, saved: RouterSaved, grad_logits: MaybeArray
    ) -> dict[str, Array]:
        """The gradients of backward by name, in float64: fc.MoE adds to them before it rounds."""
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
        du, grads["weight"], db = linear_backward(dz, self._input(given), self.weight, FLOAT64)
        grads["x"] = self._input_backward(du, given, grads)
        if saved.jitter is not None:
            grads["x"] *= saved.jitter
        if self.bias is not None:
            grads["bias"] = db
        return grads

    def _input(self, x: Array) -> Array:
        """What the matrix multiplies: x, after the norm and the scale of the input."""
        if self.input_norm_eps is not None:
            x, _ = self._unit(x)
        if self.input_scale is not None:
            x = x.astype(FLOAT64, copy=False) * self.input_scale.astype(FLOAT64)
        return x

    def _unit(self, x: Array) -> tuple[Array, Array]:
        """x / sqrt(mean x^2 + eps), and the factor, [..., 1]."""
        wide = x.astype(FLOAT64, copy=False)
        scale = 1 / np.sqrt(np.square(wide).mean(-1, keepdims=True) + (self.input_norm_eps or 0))
        return wide * scale, scale

    def _input_backward(self, du: Array, x: Array, grads: dict[str, Array]) -> Array:
        """The gradient of x; that of input_scale is added to grads."""
        unit, scale = self._unit(x) if self.input_norm_eps is not None else (x, None)
        if self.input_scale is not None:
            grads["input_scale"] = (du * unit).reshape(-1, x.shape[-1]).sum(axis=0)
            du = du * self.input_scale.astype(FLOAT64)
        if scale is None:
            return du
        return np.asarray(scale * (du - unit * (du * unit).mean(-1, keepdims=True)))

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


def check_precision(name: str, array: Array, expected_like: np.dtype[Any], other: str) -> None:
    """Arrays that numpy computes with are float64 together, or any of float32 and 16 bits.

    float32 and 16-bit arrays may be mixed, because they are widened, which is exact.
    """
    dtype = check_dtype(name, array)
    if (dtype is FLOAT64) != (expected_like is FLOAT64):
        expected = "float64" if expected_like is FLOAT64 else "float32 or 16 bits"
        raise TypeError(f"{name} has dtype {dtype.name}; expected {expected} to match {other}")


def _jittered(x: Array, jitter: MaybeArray) -> Array:
    """x * jitter in float64, so that the product is not rounded to the dtype of x; x without it."""
    if jitter is None:
        return x
    factors = as_array("jitter", jitter)
    try:
        shape = np.broadcast_shapes(factors.shape, x.shape)
    except ValueError:
        shape = None
    if shape != x.shape:
        raise ValueError(
            f"jitter has shape {factors.shape}; expected one that broadcasts to x {x.shape}"
        )
    return x.astype(FLOAT64) * factors


def _of_experts(scale: Array, routing: Routing) -> Array:
    """The scale of each slot's expert, [..., k]. A slot without an expert has that of expert 0,
    which has no effect, because its weight is 0.
    """
    factors: Array = scale[np.maximum(routing.experts, 0)]
    return factors
