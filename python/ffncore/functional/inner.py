"""Inner: what some models compute between the matrices of a dense layer, in numpy.

    p, q = x gate^T + b_gate, x up^T + b_up          a layer without a gate has only q
    p    = max(p - mean p - z std p, 0)              sparsity: z is the normal quantile (Gemma 3n)
    h    = act(p) * q
    n    = h / sqrt(mean h^2 + eps) * weight                      norm "rms" (BitNet)
    n    = (h - mean h) / sqrt(var h + eps) * weight + bias       norm "layer" (Kosmos-2)
    y    = n down^T + b_down

Means are over the hidden units of a token. Everything is float64 for float64 x, else float32, and
gradients have the dtypes of their arrays. fc.FFN calls this module for layers that have an Inner,
and fc.ffn for inner_norm=. Activation and norm run in the kernels, the products in numpy. Tests:
tests/layers/test_inner.py, tests/functional/test_block.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from ..arrays.dtypes import check_same_dtype
from ..arrays.linear import linear, linear_backward, work_dtype
from ..arrays.overlap import check_out
from ..arrays.shapes import Array, MaybeArray, as_array, check_shape, check_width
from ..norms.norm import Norm
from ..norms.rows import normed, normed_backward
from ..values.activation import Activation
from ..values.gradients import FFNGrads
from ..values.weights import NAMES, FFNWeights
from .elementwise import activation, activation_backward


@dataclass(frozen=True, eq=False, repr=False)
class InnerGrads(FFNGrads):
    """The gradients of a layer with an Inner: those of FFNGrads, and of its norm.

    norm_weight  [d_ff]; None without a norm
    norm_bias    [d_ff]; None if the norm has no bias
    """

    norm_weight: MaybeArray = None
    norm_bias: MaybeArray = None

    def arrays(self) -> dict[str, Array]:
        own = {"norm_weight": self.norm_weight, "norm_bias": self.norm_bias}
        return {**super().arrays(), **{n: a for n, a in own.items() if a is not None}}


@dataclass(frozen=True, eq=False)
class Inner:
    """What is computed between the matrices, besides the activation.

    norm      "rms", "layer" or an fc.Norm, of the hidden units before down; None: no norm
    weight    [d_ff], of the norm
    bias      [d_ff], of a norm "layer"; None: no bias
    eps       of the norm
    sparsity  the share of a normal distribution below which gates are cut off; 0: none
    """

    norm: str | Norm | None = None
    weight: MaybeArray = None
    bias: MaybeArray = None
    eps: float = 1e-5
    sparsity: float = 0.0

    def forward(
        self, x: Array, w: FFNWeights, act: Activation, out: MaybeArray
    ) -> tuple[Array, InnerSaved]:
        """Return y and an InnerSaved."""
        x = as_array("x", x)
        check_same_dtype("x", x, w.dtype, "the weights", or_float32=True)
        check_width(x, "up", w.shape)
        if out is not None:
            out = check_out("out", out, x.shape, x.dtype, "to match x")
        work = work_dtype(x)
        p = None if w.gate is None else linear(x, w.gate, w.b_gate, work)
        q = linear(x, w.up, w.b_up, work)
        saved = InnerSaved(self, x, w, act, p, q)
        _, h, _ = saved.hidden()
        y = linear(self.normed(h), w.down, w.b_down, work)
        if out is not None:
            out[...] = y
            return out, saved
        return y.astype(x.dtype, copy=False), saved

    def parameters(self) -> dict[str, Array]:
        """The arrays of the norm by the names of their gradients: norm_weight, norm_bias."""
        norm = self.of_hidden
        arrays = {} if norm is None else norm.arrays()
        names = {"gain": "norm_weight", "bias": "norm_bias"}
        return {names[name]: array for name, array in arrays.items()}

    @property
    def of_hidden(self) -> Norm | None:
        """The norm of the hidden units, if there is one."""
        if isinstance(self.norm, Norm) or self.norm is None:
            return self.norm
        return None if self.weight is None else Norm(self.norm, self.weight, self.bias, self.eps)

    def normed(self, h: Array) -> Array:
        """The result of the norm."""
        norm = self.of_hidden
        return h if norm is None else normed(h, norm)

    def norm_backward(self, dn: Array, h: Array) -> tuple[Array, dict[str, Array]]:
        """The gradients of h and of the arrays of the norm."""
        norm = self.of_hidden
        if norm is None:
            return dn, {}
        found = normed_backward(dn, h, norm)
        own = {"norm_weight": found.gain, "norm_bias": found.bias}
        dh: Any = found.x
        return dh, {name: array for name, array in own.items() if array is not None}

    def cut(self, p: Array) -> tuple[Array, Array, Array]:
        """p without the gates below the cutoff; p without mean; its standard deviation."""
        centred = p - p.mean(-1, keepdims=True)
        std = np.sqrt(np.square(centred).mean(-1, keepdims=True))
        return np.maximum(centred - self.quantile * std, 0), centred, std

    @property
    def quantile(self) -> float:
        return NormalDist().inv_cdf(self.sparsity)


@dataclass(frozen=True, eq=False, repr=False)
class InnerSaved:
    """What the forward pass keeps: its arguments, gate and up."""

    inner: Inner
    x: Array
    weights: FFNWeights
    activation: Activation
    p: MaybeArray
    q: Array

    def hidden(self) -> tuple[Array, Array, Any]:
        """The input of the activation, h, and what cut returned."""
        first = self.q if self.p is None else self.p
        cut = self.inner.cut(first) if self.inner.sparsity else None
        z = first if cut is None else cut[0]
        up = None if self.p is None else self.q
        return z, activation(z, up, activation=self.activation), cut

    def backward(
        self,
        grad_y: Array,
        *,
        needs: Iterable[str] | None = None,
        out: Any = None,
        accumulate: bool = False,
    ) -> InnerGrads:
        """The gradients, by the rules of fc.ffn_backward for needs, out and accumulate."""
        w, work = self.weights, work_dtype(self.x)
        grad_y = as_array("grad_y", grad_y)
        check_same_dtype("grad_y", grad_y, self.x.dtype, "x")
        check_shape("grad_y", grad_y, self.x.shape, "to match x")
        z, h, cut = self.hidden()
        n = self.inner.normed(h)
        dn, d_down, db_down = linear_backward(grad_y, n, w.down, work)
        dh, grads = self.inner.norm_backward(dn, h)
        found = activation_backward(
            dh, z, None if self.p is None else self.q, activation=self.activation
        )
        dz = found.x
        if cut is not None:
            _, centred, std = cut
            dz = np.where(z > 0, dz, 0)
            total = dz.sum(-1, keepdims=True)
            size = dz.shape[-1]
            # The cutoff is the mean plus the quantile times std, and std has a gradient, too.
            slope = np.divide(centred, std, out=np.zeros_like(centred), where=std > 0)
            dz = dz - total / size - self.inner.quantile * total * slope / size
        grads |= {"down": d_down, "b_down": db_down}
        first, d_first = ("up", dz) if self.p is None else ("gate", dz)
        dx, grads[first], grads[f"b_{first}"] = linear_backward(
            d_first, self.x, w.up if w.gate is None else w.gate, work
        )
        if found.up is not None:
            more, grads["up"], grads["b_up"] = linear_backward(found.up, self.x, w.up, work)
            dx = dx + more
        return _results({"x": dx, **grads}, self, found.activation, needs, out, accumulate)


def _results(
    grads: dict[str, Array],
    saved: InnerSaved,
    numbers: Any,
    needs: Iterable[str] | None,
    out: Any,
    accumulate: bool,
) -> InnerGrads:
    inner = saved.inner
    like = {"x": saved.x, **saved.weights.arrays()}
    like |= inner.parameters()
    known = [*like]
    known += ["activation"] if numbers is not None else []
    wanted = known if needs is None else [*needs]
    for name in wanted:
        if name not in known:
            raise ValueError(f"needs has {name!r}; expected names of {', '.join(known)}")
    given: Mapping[str, Any] = {}
    if out is not None:
        given = out if isinstance(out, Mapping) else out.arrays()
    elif accumulate:
        raise ValueError("accumulate is true and out is None; expected arrays to add to")
    made: dict[str, Array] = {}
    for name in wanted:
        if name == "activation":
            continue
        target = given.get(name)
        if target is None:
            made[name] = grads[name].astype(like[name].dtype, copy=False)
            continue
        target[...] = grads[name] + target if accumulate else grads[name]
        made[name] = target
    weights = FFNWeights._partial({name: made[name] for name in NAMES if name in made})
    return InnerGrads(
        x=made.get("x"),
        weights=weights,
        activation=numbers if "activation" in wanted else None,
        norm_weight=made.get("norm_weight"),
        norm_bias=made.get("norm_bias"),
    )
