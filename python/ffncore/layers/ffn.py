"""fc.FFN: a layer object; weights and activation in one hand, nothing of its own beside.

    y = act(x W_gate^T + b_gate) * (x W_up^T + b_up) W_down^T + b_down        gated
    y = act(x W_up^T + b_up) W_down^T + b_down                                plain

x, y [..., d_model]. Every method is one call of a function of the package, whose page tells the
details. Tests: tests/models/test_models.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays.shapes import Array
from ..functional.dense import ffn, ffn_backward, ffn_forward
from ..values.activation import Activation
from ..values.packed import PackedWeights, check_block, pack
from ..values.weights import FFNWeights


class FFN:
    """A feed-forward layer: fc.ffn and its passes with weights and activation filled in.

    >>> layer = fc.load("model.safetensors", layer=3)
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
        self.activation = Activation(activation) if isinstance(activation, str) else activation
        self.name = name

    def __call__(self, x: Array, *, out: Array | None = None) -> Array:
        return ffn(x, self.weights, activation=self.activation, out=out)

    def forward(
        self, x: Array, *, save: str = "preactivations", out: Array | None = None
    ) -> tuple[Array, Any]:
        """y [..., d_model], and what backward needs; save and out as for fc.ffn_forward."""
        return ffn_forward(x, self.weights, activation=self.activation, save=save, out=out)

    def backward(self, grad_y: Array, saved: Any, **options: Any) -> Any:
        """options: needs, out and accumulate of ffn_backward."""
        return ffn_backward(grad_y, saved, **options)

    def packed(self) -> FFN:
        """The same layer with packed weights: faster to run often, without weight gradients."""
        if isinstance(self.weights, PackedWeights):
            return self
        return FFN(pack(self.weights), self.activation, self.name)

    @property
    def d_model(self) -> int:
        """Size of a row of x and of y."""
        return int(self.weights.shape[1])

    @property
    def d_ff(self) -> int:
        """Hidden units."""
        return int(self.weights.shape[0])

    @property
    def gated(self) -> bool:
        """Whether there is a gate."""
        return bool(self.weights.gated)

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of the matrices."""
        return self.weights.dtype

    def __repr__(self) -> str:
        kind = "gated" if self.gated else "plain"
        name = f"{self.name}: " if self.name else ""
        packed = ", packed" if isinstance(self.weights, PackedWeights) else ""
        return (
            f"FFN({name}{self.d_model} -> {self.d_ff} -> {self.d_model}, "
            f"{self.activation.name}, {kind}, {self.dtype.name}{packed})"
        )
