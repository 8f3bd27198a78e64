"""fc.ffn and its backward pass where there are norms, a residual or a norm of the hidden units.

    y = out_norm(residual + m post_norm(layer(norm(x))))       block.py has the steps

where `layer` is a dense layer: in the kernels, or with an inner_norm in functional/inner.py. Tests:
tests/functional/test_block.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..arrays.shapes import Array, MaybeArray
from ..norms.norm import Norm
from ..norms.rows import NormGrads, check_norm
from ..passes import passes
from ..values.activation import as_activation
from ..values.arguments import LayerArguments
from ..values.gradients import FFNGrads
from ..values.packed import check_block
from ..values.saved import Saved
from ..values.weights import FFNWeights
from .block import BlockSaved, Surroundings, backward, forward, nested
from .inner import Inner, InnerGrads, InnerSaved


@dataclass(frozen=True, eq=False, repr=False)
class BlockGrads(FFNGrads):
    """The gradients of a layer with norms or a residual that fc.ffn_backward returns.

    x           [..., d_model], the gradient of x by way of the layer
    weights     FFNWeights whose arrays are the gradients of the arrays of the same name
    activation  XieluGrads with the activation xielu, else None
    residual    [..., d_model], the gradient of residual; None without one
    norm        NormGrads with the gradients of gain and bias; None without such arrays
    inner_norm  likewise
    post_norm   likewise
    out_norm    likewise

    A gradient that was not requested (needs=) is None.

    >>> norm = fc.Norm("rms", gain=np.ones(4, "f4"))
    >>> y, block_saved = fc.ffn_forward(x, weights, activation="silu", norm=norm, residual=x)
    >>> block_grads = fc.ffn_backward(grad_y, block_saved)
    >>> block_grads.norm.gain.shape
    """

    residual: MaybeArray = None
    norm: NormGrads | None = None
    inner_norm: NormGrads | None = None
    post_norm: NormGrads | None = None
    out_norm: NormGrads | None = None

    def arrays(self) -> dict[str, Array]:
        found = super().arrays()
        if self.residual is not None:
            found["residual"] = self.residual
        for name in ("norm", "inner_norm", "post_norm", "out_norm"):
            grads = getattr(self, name)
            if grads is not None:
                found |= {f"{name}.{label}": array for label, array in grads.arrays().items()}
        return found


def block_forward(
    x: object,
    weights: object,
    activation: object,
    out: object,
    norms: Mapping[str, Norm | None],
    residual: object,
    residual_multiplier: float | None,
    save: str | None = None,
) -> tuple[Array, BlockSaved]:
    """Return y and a BlockSaved. save: as for fc.ffn_forward; None: nothing is kept."""
    checked = check_block(weights)
    act = as_activation(activation)
    inner_norm = norms["inner_norm"]
    outer = {name: norm for name, norm in norms.items() if name != "inner_norm"}
    multiplier = 1.0 if residual_multiplier is None else residual_multiplier
    parts = Surroundings(**outer, residual_multiplier=multiplier)
    inner = None
    if inner_norm is not None:
        if not isinstance(checked, FFNWeights):
            raise TypeError("weights are packed and inner_norm is given; expected FFNWeights")
        check_norm("inner_norm", inner_norm, checked.d_ff, checked.dtype, "w.up")
        inner = Inner(norm=inner_norm)

    def layer(rows: Array) -> tuple[Array, Any]:
        if inner is not None:
            assert isinstance(checked, FFNWeights)
            return inner.forward(rows, checked, act, None)
        arguments = LayerArguments(rows, checked, act)
        if save is None:
            return passes.forward(arguments, None), None
        return passes.forward_saved(arguments, save, None)

    return forward(x, parts, residual, layer, out)


def block_backward(
    grad_y: object,
    saved: BlockSaved,
    layer_backward: Callable[..., Any],
    needs: object = None,
    out: object = None,
    accumulate: bool = False,
    *,
    own_residual: bool = False,
) -> BlockGrads:
    """The gradients that there are, or those that needs names.

    layer_backward  a function of grad_z, what the layer saved, and needs, out and accumulate
    own_residual    as for block.backward
    """
    names: Any = needs
    given: Any = None
    if out is not None:
        given = dict(out) if isinstance(out, Mapping) else _entries(out)
        given = {_RENAMED.get(name, name): array for name, array in given.items()}
    if needs is not None and not isinstance(needs, str) and isinstance(needs, Iterable):
        names = [part for name in needs for part in _inner_names(name, saved.layer)]

    def of_layer(grad: Array, **options: Any) -> Any:
        return layer_backward(grad, saved.layer, **options)

    grads, found = backward(
        grad_y, saved, of_layer, names, given, accumulate, own_residual=own_residual
    )
    own: dict[str, Any] = {"inner_norm": None, **nested(found)}
    if isinstance(grads, InnerGrads):
        arrays = {"gain": grads.norm_weight, "bias": grads.norm_bias}
        if any(array is not None for array in arrays.values()):
            own["inner_norm"] = NormGrads(**arrays)
    return BlockGrads(found.get("x"), grads.weights, grads.activation, found.get("residual"), **own)


# Inner has names of its own for the gradients of its norm.
_RENAMED = {"inner_norm.gain": "norm_weight", "inner_norm.bias": "norm_bias"}


def _inner_names(name: str, layer: object) -> list[str]:
    if name == "inner_norm" and isinstance(layer, InnerSaved):
        return [*layer.inner.parameters()]
    return [_RENAMED.get(name, name)]


def _entries(out: object) -> dict[str, Any]:
    if not isinstance(out, FFNGrads):
        raise TypeError(f"out is of type {type(out).__name__}; expected FFNGrads or a mapping")
    numbers = {} if out.activation is None else {"activation": out.activation}
    return {**out.arrays(), **numbers}


def layer_backward(
    grad_y: Array, saved: object, needs: Any = None, out: Any = None, accumulate: bool = False
) -> Any:
    """The backward pass of the layer of block_forward."""
    if isinstance(saved, InnerSaved):
        return saved.backward(grad_y, needs=needs, out=out, accumulate=accumulate)
    return passes.backward(grad_y, saved, needs, out, accumulate, Saved)
