"""fc.FFN: an object that holds the weights and the activation of a dense layer.

    y = (act(x gate^T + b_gate) * (x up^T + b_up)) down^T + b_down        with a gate
    y = act(x up^T + b_up) down^T + b_down                                without a gate

x and y are [..., d_model]. Each method is one call of a public function, except for the layers of a
few models that have a norm or a cutoff between the matrices (functional/inner.py) or a factor of
the output, and for layers with the norms and the residual of a block (functional/block.py). Tests:
tests/models/test_models.py, tests/layers/test_inner.py, tests/layers/test_block_layers.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays.scalars import number
from ..arrays.shapes import Array
from ..functional.block import BlockSaved, Surroundings, forward, surroundings
from ..functional.dense import ffn, ffn_backward, ffn_forward
from ..functional.dense_block import block_backward
from ..functional.inner import Inner, InnerSaved
from ..norms.norm import Norm
from ..norms.rows import check_norm
from ..values.activation import Activation, as_activation
from ..values.packed import PackedWeights, check_block
from ..values.packing.pack import pack
from ..values.weights import FFNWeights
from .around import Around


class FFN:
    """A dense feed-forward layer as an object: weights and an activation.

    weights     FFNWeights or PackedWeights of one layer
    activation  a name, or an Activation with options
    name        a text that print shows, such as the name of the layer in a checkpoint
    inner       an Inner, which computes more between the matrices, in numpy; None: nothing more.
                With float16 and bfloat16 weights it computes in float32
    multiplier  multiplies the output
    around      an Around, what the model computes around the layer; the layer does not compute it
    norm        an fc.Norm of x before the layer; None: none
    inner_norm  an fc.Norm of the hidden units, in the place of an inner; None: none
    post_norm   an fc.Norm of the output, before it is added to the residual; None: none
    out_norm    an fc.Norm of the sum with the residual; None: none
    residual    whether x is added to the output
    residual_multiplier  multiplies the output before it is added to x

    layer(x) is fc.ffn(x, weights, activation=activation), with the same out, results and errors,
    unless there is an inner or a multiplier; with norms or a residual it is fc.ffn with these. The
    arguments are attributes, inner_norm as inner.norm.

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
    parts: Surroundings = Surroundings()
    residual: bool = False

    def __init__(
        self,
        weights: FFNWeights | PackedWeights,
        activation: str | Activation,
        name: str = "",
        *,
        inner: Inner | None = None,
        multiplier: float = 1.0,
        around: Around | None = None,
        norm: Norm | None = None,
        inner_norm: Norm | None = None,
        post_norm: Norm | None = None,
        out_norm: Norm | None = None,
        residual: bool = False,
        residual_multiplier: float = 1.0,
    ) -> None:
        self.weights = check_block(weights)
        self.activation = as_activation(activation)
        self.name = name
        self.inner = inner
        self.multiplier = number("multiplier", multiplier, self.dtype)
        self.around = around
        self.parts, self.residual = surroundings(
            self.d_model, self.dtype, residual, residual_multiplier, norm, post_norm, out_norm
        )
        if inner_norm is not None:
            if inner is not None:
                raise ValueError("inner and inner_norm are given; expected one of them")
            check_norm("inner_norm", inner_norm, self.d_ff, self.dtype, "w.up")
            self.inner = inner = Inner(norm=inner_norm)
        if inner is not None and not isinstance(self.weights, FFNWeights):
            raise TypeError("weights are packed and inner is given; expected FFNWeights with inner")

    @property
    def norm(self) -> Norm | None:
        """The norm of x before the layer."""
        return self.parts.norm

    @property
    def post_norm(self) -> Norm | None:
        """The norm of the output."""
        return self.parts.post_norm

    @property
    def out_norm(self) -> Norm | None:
        """The norm of the sum with the residual."""
        return self.parts.out_norm

    @property
    def residual_multiplier(self) -> float:
        """The factor of the output before it is added to x."""
        return self.parts.residual_multiplier

    def __call__(self, x: Array, *, out: Array | None = None) -> Array:
        if self.alone:
            return self._layer(x, None, out)[0]
        added = x if self.residual else None
        return forward(x, self.parts, added, lambda rows: self._layer(rows, None, None), out)[0]

    def forward(
        self, x: Array, *, save: str = "preactivations", out: Array | None = None
    ) -> tuple[Array, Any]:
        """Call fc.ffn_forward: return y [..., d_model] and the saved activations for backward.

        x     [..., d_model]
        save  "preactivations" or "input", as for fc.ffn_forward
        out   an array like x to write y to; None: a new array
        """
        if self.alone:
            return self._layer(x, save, out)
        added = x if self.residual else None
        return forward(x, self.parts, added, lambda rows: self._layer(rows, save, None), out)

    def backward(self, grad_y: Array, saved: Any, **options: Any) -> Any:
        """Call fc.ffn_backward: return an FFNGrads; with an inner, an InnerGrads.

        With norms or a residual it is a BlockGrads, whose x is the whole gradient of x.

        grad_y   [..., d_model], the gradient of y
        saved    the second result of forward
        options  needs, out and accumulate, as for fc.ffn_backward
        """
        if isinstance(saved, BlockSaved):
            return block_backward(grad_y, saved, self._layer_backward, own_residual=True, **options)
        return self._layer_backward(grad_y, saved, **options)

    @property
    def alone(self) -> bool:
        """Whether the layer computes no norms and no residual around itself."""
        return not self.residual and not self.parts.norms()

    def _layer(self, x: Array, save: str | None, out: Array | None) -> tuple[Array, Any]:
        saved: Any = None
        if self.inner is not None:
            y, saved = self._inner_forward(x, out)
        elif save is None:
            y = ffn(x, self.weights, activation=self.activation, out=out)
        else:
            y, saved = ffn_forward(x, self.weights, activation=self.activation, save=save, out=out)
        return self._multiplied(y), saved

    def _layer_backward(self, grad_y: Array, saved: Any, **options: Any) -> Any:
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
            residual=self.residual,
            **self.parts.options(),
        )

    def parameters(self) -> dict[str, Array]:
        """Return a dict from names to the arrays that have gradients: "up", "down" and so on.

        The norm of an inner has the names norm_weight and norm_bias, the others "norm.gain" and so
        on. Packed weights have no gradients, and are left out.
        """
        found = self.weights.arrays() if isinstance(self.weights, FFNWeights) else {}
        if self.inner is not None:
            found |= self.inner.parameters()
        return found | self.parts.parameters()

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
