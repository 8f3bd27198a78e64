"""fc.FFN: an object that holds the weights and the activation of a dense layer.

    y = (act(x gate^T + b_gate) * (x up^T + b_up)) down^T + b_down        with a gate
    y = act(x up^T + b_up) down^T + b_down                                without a gate

x and y are [..., d_model]. Each method is one call of a public function. Tests:
tests/models/test_models.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays.shapes import Array
from ..functional.dense import ffn, ffn_backward, ffn_forward
from ..values.activation import Activation, as_activation
from ..values.packed import PackedWeights, check_block, pack
from ..values.weights import FFNWeights


class FFN:
    """A dense feed-forward layer as an object: weights and an activation.

    weights     FFNWeights or PackedWeights of one layer
    activation  a name, or an Activation with options
    name        a text that print shows, such as the name of the layer in a checkpoint

    layer(x) is fc.ffn(x, weights, activation=activation), with the same out, results and errors.
    The arguments are attributes.

    Raises ValueError and TypeError for arguments that do not fit.

    >>> layer = fc.FFN(weights, "silu")  # or fc.load("path/to/model", layer=3)
    >>> y = layer(x)
    >>> y, saved = layer.forward(x)
    >>> grads = layer.backward(grad_y, saved)
    """

    def __init__(
        self,
        weights: FFNWeights | PackedWeights,
        activation: str | Activation,
        name: str = "",
    ) -> None:
        self.weights = check_block(weights)
        self.activation = as_activation(activation)
        self.name = name

    def __call__(self, x: Array, *, out: Array | None = None) -> Array:
        return ffn(x, self.weights, activation=self.activation, out=out)

    def forward(
        self, x: Array, *, save: str = "preactivations", out: Array | None = None
    ) -> tuple[Array, Any]:
        """Call fc.ffn_forward: return y [..., d_model] and the saved activations for backward.

        x     [..., d_model]
        save  "preactivations" or "input", as for fc.ffn_forward
        out   an array like x to write y to; None: a new array
        """
        return ffn_forward(x, self.weights, activation=self.activation, save=save, out=out)

    def backward(self, grad_y: Array, saved: Any, **options: Any) -> Any:
        """Call fc.ffn_backward: return an FFNGrads.

        grad_y   [..., d_model], the gradient of y
        saved    the second result of forward
        options  needs, out and accumulate, as for fc.ffn_backward
        """
        return ffn_backward(grad_y, saved, **options)

    def packed(self) -> FFN:
        """Return this layer with packed weights (fc.pack): faster, but without their gradients."""
        if isinstance(self.weights, PackedWeights):
            return self
        return FFN(pack(self.weights), self.activation, self.name)

    def parameters(self) -> dict[str, Array]:
        """Return a dict from names to the arrays that have gradients, such as "up" and "b_up".

        The names are those of FFNGrads.arrays(). Packed weights have no gradients, and are left
        out.
        """
        return self.weights.arrays() if isinstance(self.weights, FFNWeights) else {}

    @property
    def d_model(self) -> int:
        """The last dimension of x and y."""
        return int(self.weights.shape[1])

    @property
    def d_ff(self) -> int:
        """The number of hidden units."""
        return int(self.weights.shape[0])

    @property
    def gated(self) -> bool:
        """Whether the layer has a gate."""
        return bool(self.weights.gated)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the matrices."""
        return self.weights.dtype

    def __repr__(self) -> str:
        kind = "gated" if self.gated else "plain"
        name = f"{self.name}: " if self.name else ""
        packed = ", packed" if isinstance(self.weights, PackedWeights) else ""
        return (
            f"FFN({name}{self.d_model} -> {self.d_ff} -> {self.d_model}, "
            f"{self.activation.name}, {kind}, {self.dtype.name}{packed})"
        )
