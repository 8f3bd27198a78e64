"""A layer with what stands around it in a block: norms, and the residual that it is added to.

    z = layer(norm(x))                x, y and residual [..., d_model]
    s = residual + m post_norm(z)     m = residual_multiplier
    y = out_norm(s)

A norm that is None is left out, and without a residual s is post_norm(z). norm= alone is the block
of most models, post_norm= beside it Gemma's, out_norm= BERT's. Backward, from the last line up:

    ds = out_norm'(dy)      d_residual = ds      dz = post_norm'(m ds)      dx = norm'(layer'(dz))

`layer` is a function of the caller, so that fc.ffn, fc.FFN and fc.MoE share this module. In 16 bits
each line is computed in float32 and rounded once. Tests: tests/functional/test_block.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays.dtypes import check_dtype, check_same_dtype
from ..arrays.linear import work_dtype
from ..arrays.overlap import check_apart, check_out
from ..arrays.scalars import number
from ..arrays.shapes import Array, MaybeArray, as_array, check_shape
from ..norms.norm import Norm
from ..norms.rows import NormGrads, check_norm, normed, normed_backward

# The norms of a block, in the order in which they are computed.
NORMS = ("norm", "post_norm", "out_norm")


@dataclass(frozen=True, eq=False)
class Surroundings:
    """What stands around a layer.

    norm                 of the input of the layer
    post_norm            of the output of the layer, before it is multiplied and added
    out_norm             of the sum, or of the output where there is no residual
    residual_multiplier  multiplies the output before it is added to the residual
    """

    norm: Norm | None = None
    post_norm: Norm | None = None
    out_norm: Norm | None = None
    residual_multiplier: float = 1.0

    def __post_init__(self) -> None:
        for name in NORMS:
            norm = getattr(self, name)
            if norm is not None and not isinstance(norm, Norm):
                raise TypeError(f"{name} is of type {type(norm).__name__}; expected an fc.Norm")
        number("residual_multiplier", self.residual_multiplier)

    def norms(self) -> dict[str, Norm]:
        """Return a dict of the norms that there are, by their names."""
        found = {name: getattr(self, name) for name in NORMS}
        return {name: norm for name, norm in found.items() if norm is not None}

    def options(self) -> dict[str, Any]:
        """Return the arguments of layer objects that make these parts again."""
        return {**self.norms(), "residual_multiplier": self.residual_multiplier}

    def parameters(self) -> dict[str, Array]:
        """Return a dict from names to arrays: "norm.gain", "post_norm.bias" and so on."""
        return {
            f"{name}.{label}": array
            for name, norm in self.norms().items()
            for label, array in norm.arrays().items()
        }


def surroundings(
    d: int,
    dtype: np.dtype[Any],
    residual: object,
    residual_multiplier: float,
    norm: Norm | None,
    post_norm: Norm | None,
    out_norm: Norm | None,
) -> tuple[Surroundings, bool]:
    """The checked parts around a layer object of width d, and whether x is its residual."""
    if not isinstance(residual, (bool, np.bool_)):
        raise TypeError(f"residual is of type {type(residual).__name__}; expected True or False")
    multiplier = number("residual_multiplier", residual_multiplier)
    parts = Surroundings(norm, post_norm, out_norm, multiplier)
    for name, found in parts.norms().items():
        check_norm(name, found, d, dtype, "the layer")
    if multiplier != 1 and not residual:
        raise ValueError(
            f"residual_multiplier is {multiplier} and residual is False; expected residual=True"
        )
    return parts, bool(residual)


@dataclass(frozen=True, eq=False, repr=False)
class BlockSaved:
    """What fc.ffn_forward keeps of a layer with norms or a residual, for fc.ffn_backward.

    parts     what stands around the layer
    x         [..., d_model], of the call, which must not be changed before the backward pass
    residual  [..., d_model], likewise; None without one
    z         [..., d_model], the output of the layer, if there is a post_norm
    s         [..., d_model], the sum, if there is an out_norm
    layer     what the layer saved

    >>> y, block_saved = fc.ffn_forward(x, weights, activation="silu", residual=x)
    >>> block_grads = fc.ffn_backward(grad_y, block_saved)
    """

    parts: Surroundings
    x: Array
    residual: MaybeArray
    z: MaybeArray
    s: MaybeArray
    layer: Any

    def __repr__(self) -> str:
        return f"BlockSaved(x={self.x.shape}, {self.layer!r})"

    def like(self) -> dict[str, Array]:
        """For each gradient that this module computes, an array of its shape and dtype."""
        own = {} if self.residual is None else {"residual": self.residual}
        return {"x": self.x, **own, **self.parts.parameters()}


def forward(
    x: object,
    parts: Surroundings,
    residual: object,
    layer: Callable[[Array], tuple[Array, Any]],
    out: object = None,
) -> tuple[Array, BlockSaved]:
    """Return y [..., d_model], in out or a new array, and a BlockSaved.

    x         [..., d_model]
    residual  an array like x; None: nothing is added
    layer     a function from an array like x to such an array and what its backward pass needs
    """
    given = as_array("x", x)
    dtype = check_dtype("x", given)
    if given.ndim == 0:
        raise ValueError("x has shape (); expected [..., d_model]")
    added = None
    if residual is not None:
        added = as_array("residual", residual)
        check_same_dtype("residual", added, dtype, "x")
        check_shape("residual", added, given.shape, "to match x")
    elif parts.residual_multiplier != 1:
        raise ValueError(
            f"residual_multiplier is {parts.residual_multiplier} and residual is None; expected a "
            f"residual"
        )
    for name, norm in parts.norms().items():
        check_norm(name, norm, given.shape[-1], dtype, "x")
    y: MaybeArray = None
    if out is not None:
        y = check_out("out", out, given.shape, dtype, "to match x")
        inputs = [("x", given), ("residual", added), *parts.parameters().items()]
        check_apart("out", y, inputs)
    z, saved = layer(given if parts.norm is None else normed(given, parts.norm))
    p = z if parts.post_norm is None else normed(z, parts.post_norm)
    s = p if added is None else _sum(added, p, parts.residual_multiplier)
    kept = BlockSaved(
        parts,
        given,
        added,
        None if parts.post_norm is None else z,
        None if parts.out_norm is None else s,
        saved,
    )
    if parts.out_norm is not None:
        return normed(s, parts.out_norm, y), kept
    if y is None:
        return s, kept
    y[...] = s
    return y, kept


@np.errstate(all="ignore")
def _sum(residual: Array, p: Array, multiplier: float) -> Array:
    """residual + multiplier p, rounded once."""
    work = work_dtype(p)
    wide = p.astype(work, copy=False)
    if multiplier != 1:
        wide = wide * work.type(multiplier)
    return np.asarray(wide + residual.astype(work, copy=False)).astype(p.dtype, copy=False)


def backward(
    grad_y: object,
    saved: BlockSaved,
    layer_backward: Callable[..., Any],
    needs: Iterable[str] | None = None,
    out: Any = None,
    accumulate: bool = False,
    *,
    own_residual: bool = False,
) -> tuple[Any, dict[str, Array]]:
    """Return the gradients of the layer, and a dict of those that like() lists.

    grad_y          [..., d_model], with the shape and dtype of y
    layer_backward  a function of grad_z and needs, out, accumulate: the gradients of the layer, an
                    object with an x
    needs           names of gradients: those of the layer, "residual", "norm.gain" and so on, or a
                    norm's name for all of its arrays. None: all that exist
    out             a mapping from such names to arrays
    accumulate      whether to add to the arrays of out
    own_residual    the residual was x itself, so that the gradient of x includes its gradient
    """
    parts, x = saved.parts, saved.x
    grad = as_array("grad_y", grad_y)
    check_same_dtype("grad_y", grad, x.dtype, "x")
    check_shape("grad_y", grad, x.shape, "to match x")
    if accumulate and out is None:
        raise ValueError("accumulate is True and out is None; expected arrays to add into")
    like = saved.like()
    if own_residual:
        like.pop("residual", None)
    wanted = None if needs is None else _spread(needs, like)
    mine = [*like] if wanted is None else [name for name in like if name in wanted]
    given = _check_given(dict(out or {}), like, mine, [("grad_y", grad), *like.items()])

    wide: dict[str, Array] = {}

    def through(name: str, grad: Array, at: Array) -> Array:
        norm = getattr(parts, name)
        if norm is None:
            return grad
        found = normed_backward(grad, at, norm)
        own = {"gain": found.gain, "bias": found.bias}
        wide.update({f"{name}.{label}": a for label, a in own.items() if a is not None})
        return found.x  # type: ignore[return-value]

    ds = grad if saved.s is None else through("out_norm", grad, saved.s)
    wide["residual"] = ds
    dz = ds
    if saved.residual is not None and parts.residual_multiplier != 1:
        work = work_dtype(ds)
        dz = (ds.astype(work, copy=False) * work.type(parts.residual_multiplier)).astype(ds.dtype)
    if saved.z is not None:
        dz = through("post_norm", dz, saved.z)

    inward = [name for name in mine if name == "x" or name.startswith("norm.")]
    layer_needs = None
    if wanted is not None:
        layer_needs = [name for name in wanted if name not in like] + (["x"] if inward else [])
    layer_out = {name: a for name, a in dict(out or {}).items() if name not in like}
    options: dict[str, Any] = {"needs": layer_needs}
    if layer_out:
        options |= {"out": layer_out, "accumulate": accumulate}
    grads = layer_backward(dz, **options)
    if inward:
        wide["x"] = through("norm", grads.x, x)
        if own_residual and saved.residual is not None:
            wide["x"] = _sum(ds, wide["x"], 1.0)
    return grads, {name: _put(wide[name], given.get(name), accumulate) for name in mine}


def nested(found: Mapping[str, Array]) -> dict[str, NormGrads]:
    """The gradients of the norms' arrays, by norm: "norm.gain" becomes norm=NormGrads(gain=)."""
    grouped: dict[str, dict[str, Array]] = {}
    for name, array in found.items():
        norm, dot, label = name.partition(".")
        if dot:
            grouped.setdefault(norm, {})[label] = array
    return {norm: NormGrads(**arrays) for norm, arrays in grouped.items()}


def _spread(needs: Iterable[str], like: Mapping[str, Array]) -> tuple[str, ...]:
    """needs, with the name of a norm replaced by those of its arrays."""
    if isinstance(needs, str) or not hasattr(needs, "__iter__"):
        raise TypeError(
            f"needs is of type {type(needs).__name__}; expected a tuple of names like ('x',)"
        )
    found: list[str] = []
    for name in needs:
        of_norm = [own for own in like if own.startswith(f"{name}.")]
        found += of_norm or [name]
    return tuple(dict.fromkeys(found))


def _check_given(
    entries: dict[str, Any],
    like: Mapping[str, Array],
    mine: list[str],
    inputs: list[tuple[str, Array]],
) -> dict[str, Array]:
    """The arrays of out= for the gradients of this module, checked."""
    found: dict[str, Array] = {}
    for name, array in entries.items():
        if array is None or name not in like:
            continue
        if name not in mine:
            raise ValueError(f"out.{name} is given, but needs has no {name!r}; expected it there")
        model, label = like[name], f"out.{name}"
        reason = f"to match {name}"
        found[name] = check_out(label, array, model.shape, model.dtype, reason, or_float32=True)
        check_apart(label, found[name], inputs)
        inputs = [*inputs, (label, found[name])]
    return found


@np.errstate(all="ignore")
def _put(value: Array, target: MaybeArray, accumulate: bool) -> Array:
    if target is None:
        return value
    target[...] = target + value if accumulate else value
    return target
