"""What backward passes return: FFNGrads, MoEGrads, ActivationGrads, and xielu's two numbers.

Names of gradients are those of FFNWeights, "x", "routing_weights", and "activation" for xielu's two
parameters. Tests: tests/functional/test_backward.py, tests/functional/test_moe_backward.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ..arrays.shapes import Array, MaybeArray
from .copied import Copied
from .packed import PackedWeights
from .weights import NAMES, FFNWeights


class XieluGrads(NamedTuple):
    """Gradients of xielu's two trainable parameters."""

    alpha_p: float
    alpha_n: float


class ActivationGrads(NamedTuple):
    """Gradients of fc.activation; up is None in the plain form, activation where not xielu."""

    x: Array
    up: MaybeArray
    activation: XieluGrads | None


GRADIENTS = ("x", *NAMES, "activation")

MOE_GRADIENTS = ("x", "routing_weights", *NAMES, "activation")


@dataclass(frozen=True, eq=False, repr=False)
class FFNGrads(Copied):
    """Gradients of a block; None is what was not asked for.

    weights is an FFNWeights that mirrors the weights, activation holds xielu's two parameters.
    """

    x: MaybeArray = None
    weights: FFNWeights | None = None
    activation: XieluGrads | None = None

    def __repr__(self) -> str:
        shapes = [f"{name}={tuple(a.shape)}" for name, a in self.arrays().items()]
        name = type(self).__name__
        return f"{name}({', '.join(shapes + [f'activation={self.activation}'])})"

    def arrays(self) -> dict[str, Array]:
        """The arrays that exist, by the names of needs=."""
        own = {} if self.x is None else {"x": self.x}
        return {**own, **(self.weights.arrays() if self.weights is not None else {})}


def mirror(
    grads: dict[str, Array], weights: FFNWeights | PackedWeights, out: object
) -> FFNWeights | None:
    """The gradients of weights as FFNWeights: out's own where its arrays are these."""
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
    """Gradients of a mixture; None is what was not asked for.

    weights is an FFNWeights that mirrors the experts, routing_weights is [..., k] as in the
    routing, activation holds xielu's two parameters.
    """

    routing_weights: MaybeArray = None

    def arrays(self) -> dict[str, Array]:
        own = {} if self.routing_weights is None else {"routing_weights": self.routing_weights}
        return {**super().arrays(), **own}
