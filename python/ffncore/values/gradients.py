"""The results of backward passes: FFNGrads, MoEGrads, ActivationGrads and XieluGrads.

A gradient has the name of the argument that it belongs to: "x", "routing_weights", the fields of
FFNWeights, and "activation" for the two trainable parameters of xielu. These are the names that
needs= and out= take. Tests: tests/functional/test_backward.py,
tests/functional/test_moe_backward.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ..arrays.shapes import Array, MaybeArray
from .copied import Copied
from .packed import PackedWeights
from .weights import NAMES, FFNWeights


class XieluGrads(NamedTuple):
    """The gradients of the two trainable parameters of the activation xielu.

    alpha_p  a float; on a GPU a float64 array without dimensions
    alpha_n  likewise
    """

    alpha_p: float
    alpha_n: float


class ActivationGrads(NamedTuple):
    """The gradients that fc.activation_backward returns: a named tuple.

    x           [...], the gradient of x
    up          [...], the gradient of up; None if up was not passed
    activation  XieluGrads with the activation xielu, else None
    """

    x: Array
    up: MaybeArray
    activation: XieluGrads | None


GRADIENTS = ("x", *NAMES, "activation")

MOE_GRADIENTS = ("x", "routing_weights", *NAMES, "activation")


@dataclass(frozen=True, eq=False, repr=False)
class FFNGrads(Copied):
    """The gradients of a layer that fc.ffn_backward returns.

    x           [..., d_model], the gradient of x
    weights     FFNWeights whose arrays are the gradients of the arrays of the same name
    activation  XieluGrads with the activation xielu, else None

    A gradient that was not requested (needs=) is None.

    >>> grads = fc.ffn_backward(grad_y, saved)
    >>> grads.weights.up.shape  # [d_ff, d_model]
    """

    x: MaybeArray = None
    weights: FFNWeights | None = None
    activation: XieluGrads | None = None

    def __repr__(self) -> str:
        shapes = [f"{name}={tuple(a.shape)}" for name, a in self.arrays().items()]
        name = type(self).__name__
        return f"{name}({', '.join(shapes + [f'activation={self.activation}'])})"

    def arrays(self) -> dict[str, Array]:
        """Return a dict from the names that needs= takes to arrays, without those that are None."""
        own = {} if self.x is None else {"x": self.x}
        return {**own, **(self.weights.arrays() if self.weights is not None else {})}


def mirror(
    grads: dict[str, Array], weights: FFNWeights | PackedWeights, out: object
) -> FFNWeights | None:
    """The gradients of weights as FFNWeights; out.weights itself if it holds these very arrays."""
    if not grads:
        return None
    given = out.weights if isinstance(out, FFNGrads) else None
    if given is not None and all(grads.get(name) is getattr(given, name) for name in NAMES):
        return given
    complete = (
        isinstance(weights, FFNWeights)
        and len(grads) == len(weights.arrays())
        and len({a.dtype for a in grads.values()}) == 1
    )
    return FFNWeights(**grads) if complete else FFNWeights._partial(grads)


@dataclass(frozen=True, eq=False, repr=False)
class MoEGrads(FFNGrads):
    """The gradients of a mixture of experts that fc.moe_backward returns.

    x                [..., d_model], the gradient of x along the experts, without the router's part
    weights          FFNWeights whose arrays are the gradients of the experts' arrays
    activation       XieluGrads with the activation xielu, else None
    routing_weights  [..., k], the gradient of routing.weights, for fc.route_backward

    A gradient that was not requested (needs=) is None.

    >>> grads = fc.moe_backward(grad_y, moe_saved)
    >>> grad_logits = fc.route_backward(grads.routing_weights, moe_saved.routing)
    """

    routing_weights: MaybeArray = None

    def arrays(self) -> dict[str, Array]:
        own = {} if self.routing_weights is None else {"routing_weights": self.routing_weights}
        return {**super().arrays(), **own}
