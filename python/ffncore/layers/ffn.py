"""fc.FFN: an object that holds the weights and the activation of a dense layer.

    y = (act(x gate^T + b_gate) * (x up^T + b_up)) down^T + b_down        with a gate
    y = act(x up^T + b_up) down^T + b_down                                without a gate

x and y are [..., d_model]. Each method is one call of a public function, except for the layers of a
few models that have a norm or a cutoff between the matrices (inner.py) or a factor of the output.
Tests: tests/models/test_models.py, tests/layers/test_inner.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays.scalars import number
from ..arrays.shapes import Array
from ..functional.dense import ffn, ffn_backward, ffn_forward
from ..values.activation import Activation, as_activation
from ..values.packed import PackedWeights, check_block
from ..values.packing.pack import pack
from ..values.weights import FFNWeights
from .around import Around
from .inner import Inner, InnerSaved


class FFN:
    """A dense feed-forward layer as an object: weights and an activation.

    weights     FFNWeights or PackedWeights of one layer
    activation  a name, or an Activation with options
    name        a text that print shows, such as the name of the layer in a checkpoint
    inner       an Inner, which computes more between the matrices, in numpy; None: nothing more.
                With float16 and bfloat16 weights it computes in float32
    multiplier  multiplies the output
    around      an Around, what the model computes around the layer; the layer does not compute it

    layer(x) is fc.ffn(x, weights, activation=activation), with the same out, results and errors,
    unless there is an inner or a multiplier. The arguments are attributes.

    Raises ValueError and TypeError for arguments that do not fit.

    >>> layer = fc.FFN(weights, "silu")  # or fc.load("path/to/model", layer=3)
    >>> y = layer(x)
    >>> y, saved = layer.forward(x)
    >>> grads = layer.backward(grad_y, saved)
    """

    # Also of pickles from versions without these attributes.
    inner: Inner | None = None
    multiplier: float = 1.0
    around: Around | None = None

    def __init__(
        self,
        weights: FFNWeights | PackedWeights,
        activation: str | Activation,
        name: str = "",
        *,
        inner: Inner | None = None,
        multiplier: float = 1.0,
        around: Around | None = None,
    ) -> None:
        self.weights = check_block(weights)
        self.activation = as_activation(activation)
        self.name = name
        self.inner = inner
        self.multiplier = number("multiplier", multiplier, self.dtype)
        self.around = around
        if inner is not None and not isinstance(self.weights, FFNWeights):
            raise TypeError("weights are packed and inner is given; expected FFNWeights with inner")

    def __call__(self, x: Array, *, out: Array | None = None) -> Array:
        if self.inner is not None:
            y = self._inner_forward(x, out)[0]
        else:
            y = ffn(x, self.weights, activation=self.activation, out=out)
        return self._multiplied(y)

    def forward(
        self, x: Array, *, save: str = "preactivations", out: Array | None = None
    ) -> tuple[Array, Any]:
        """Call fc.ffn_forward: return y [..., d_model] and the saved activations for backward.

        x     [..., d_model]
        save  "preactivations" or "input", as for fc.ffn_forward
        out   an array like x to write y to; None: a new array
        """
        if self.inner is not None:
            y, saved = self._inner_forward(x, out)
        else:
            y, saved = ffn_forward(x, self.weights, activation=self.activation, save=save, out=out)
        return self._multiplied(y), saved

    def backward(self, grad_y: Array, saved: Any, **options: Any) -> Any:
        """Call fc.ffn_backward: return an FFNGrads; with an inner, an InnerGrads.

        grad_y   [..., d_model], the gradient of y
        saved    the second result of forward
        options  needs, out and accumulate, as for fc.ffn_backward
        """
        if self.multiplier != 1:
            grad_y = grad_y * grad_y.dtype.type(self.multiplier)
        if isinstance(saved, InnerSaved):
            return saved.backward(grad_y, **options)
        return ffn_backward(grad_y, saved, **options)

    def _inner_forward(self, x: Array, out: Array | None) -> tuple[Array, Any]:
        assert self.inner is not None
        assert isinstance(self.weights, FFNWeights)
        return self.inner.forward(x, self.weights, self.activation, out)

    def _multiplied(self, y: Array) -> Array:
        if self.multiplier != 1:
            y *= y.dtype.type(self.multiplier)
        return y

    def packed(self) -> FFN:
        """Return this layer with packed weights (fc.pack): faster, but without their gradients.

        A layer with an inner, which does not use the kernels, is returned as it is.
        """
        if isinstance(self.weights, PackedWeights) or self.inner is not None:
            return self
        return FFN(
            pack(self.weights),
            self.activation,
            self.name,
            multiplier=self.multiplier,
            around=self.around,
        )

    def parameters(self) -> dict[str, Array]:
        """Return a dict from names to the arrays that have gradients: "up", "down" and so on.

        The norm of an inner has the names norm_weight and norm_bias. Packed weights have no
        gradients, and are left out.
        """
        found = self.weights.arrays() if isinstance(self.weights, FFNWeights) else {}
        if self.inner is not None:
            norm = {"norm_weight": self.inner.weight, "norm_bias": self.inner.bias}
            found |= {name: array for name, array in norm.items() if array is not None}
        return found

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
