"""The dense feed-forward layer: fc.ffn, fc.ffn_forward and fc.ffn_backward.

    p, q = x gate^T + b_gate, x up^T + b_up     [T, f] each; a layer without a gate has only q
    h    = act(p) * q, or act(q)                [T, f]
    y    = h down^T + b_down                    [T, d]

    dh     = dy down                 d_down = dy^T h      d_b_down = sum of dy over tokens
    dp, dq = gradients through h     d_gate = dp^T x      d_b_gate = sum of dp over tokens
    dx     = dp gate + dq up         d_up   = dq^T x      d_b_up   = sum of dq over tokens

x is [..., d]; its leading dimensions are merged to T tokens (arrays/rows.py). fc.ffn has a fast
path for the common case, a two-dimensional numpy array, because the checks would otherwise take a
large part of the time of a call with one token and a small layer.

Tests: tests/functional/test_functional.py, tests/functional/test_backward.py,
tests/functional/test_gradients.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .. import _core
from ..arrays.overlap import OWNS, SIMPLE_OUT
from ..arrays.shapes import ALIGNED, Array, MaybeArray
from ..norms.norm import Norm
from ..passes import passes
from ..passes.hidden import SideCar, with_side_car
from ..values.activation import PLAIN_CORE, Activation
from ..values.arguments import LayerArguments
from ..values.gradients import FFNGrads
from ..values.packed import PackedWeights
from ..values.saved import Saved, keeps_preactivations
from ..values.weights import FFNWeights
from .block import BlockSaved
from .dense_block import block_backward, block_forward, layer_backward

_ndarray = np.ndarray
_empty = np.empty
_may_overlap = np.may_share_memory
_forward = _core.ffn_forward


def ffn(
    x: Array,
    weights: FFNWeights | PackedWeights,
    *,
    activation: str | Activation,
    out: MaybeArray = None,
    norm: Norm | None = None,
    inner_norm: Norm | None = None,
    post_norm: Norm | None = None,
    out_norm: Norm | None = None,
    residual: MaybeArray = None,
    residual_multiplier: float | None = None,
    side_car: SideCar | None = None,
) -> Array:
    """Compute the output of a feed-forward layer.

    With a gate it is y = (act(x gate^T) * (x up^T)) down^T, without a gate y = act(x up^T) down^T.
    A bias of the weights is added to its product.

    x           [..., d_model], with the dtype of the weights, or float32 with 16-bit weights
    weights     FFNWeights or PackedWeights of one layer; packed weights give the same bits, faster
    activation  a name, or an Activation with options
    out         an array like x to write y to, with any strides, which must not overlap x or the
                weights; None: a new array
    norm        an fc.Norm of x before the layer; None: none
    inner_norm  an fc.Norm of the d_ff hidden units before down (BitNet); None: none
    post_norm   an fc.Norm of the output of down (Gemma); None: none
    out_norm    an fc.Norm of the sum with the residual (BERT); None: none
    residual    an array like x that the output is added to, often x itself; None: none
    residual_multiplier  multiplies the output before it is added to the residual. Default 1
    side_car    the side_car of an fc.memory.edit, whose U (V h) is added to y; numpy arrays only,
                and no norms or residual beside it

    With all of them y = out_norm(residual + residual_multiplier post_norm(layer(norm(x)))).

    Returns y, an array with the shape and dtype of x: out if it was passed.

    Raises ValueError for shapes and values and TypeError for types and dtypes, before anything is
    computed.

    x, weights and out may also be torch CUDA tensors or CuPy arrays of one device, in float32,
    bfloat16 or float16 and with any strides (but see FFNWeights for weights). Then y is such an
    array, too. The work is queued on the library's current stream, and the call does not wait for
    it.

    See also: fc.pack, fc.ffn_forward, fc.moe.

    >>> y = fc.ffn(x, weights, activation="silu")
    """
    # The fast path for the common case, a matrix x and aligned weights, without any call of a
    # Python function. All other arguments go to passes/passes.py, which also raises the errors.
    if side_car is not None:
        around = norm, inner_norm, post_norm, out_norm, residual, residual_multiplier
        if any(given is not None for given in around):
            raise ValueError("side_car is given beside norms or a residual; expected one of them")
        return with_side_car(x, weights, activation, side_car, out)
    if type(x) is _ndarray and (type(weights) is PackedWeights or type(weights) is FFNWeights):
        call = weights._call
        if call is not None and (
            norm is None
            and inner_norm is None
            and post_norm is None
            and out_norm is None
            and residual is None
            and residual_multiplier is None
        ):
            if type(activation) is str:
                options = PLAIN_CORE.get(activation)
            else:
                options = activation._cores[call.case] if type(activation) is Activation else None
            shape, dtype = x.shape, x.dtype
            if (
                options is not None
                and (dtype is call.dtype or dtype is call.wide)
                and len(shape) == 2
                and shape[1] == call.d_model
                and shape[0] <= call.most_rows
                and (x_flags := x.flags.num) & ALIGNED
            ):
                if out is None:
                    out = _empty(shape, dtype)
                    _forward(x, out, call.core, options, None)
                    return out
                if (
                    type(out) is _ndarray
                    and out.dtype is dtype
                    and out.shape == shape
                    and (flags := out.flags.num) & SIMPLE_OUT == SIMPLE_OUT
                    and (out is not x if flags & x_flags & OWNS else not _may_overlap(out, x))
                    and (
                        id(out) not in call.owners
                        if flags & OWNS and call.owners is not None
                        else not any(_may_overlap(out, array) for array in call.inputs)
                    )
                ):
                    _forward(x, out, call.core, options, None)
                    return out
    norms = {
        "norm": norm,
        "inner_norm": inner_norm,
        "post_norm": post_norm,
        "out_norm": out_norm,
    }
    if _plain(norms, residual, residual_multiplier):
        return passes.forward(LayerArguments(x, weights, activation), out)
    return block_forward(x, weights, activation, out, norms, residual, residual_multiplier)[0]


def ffn_forward(
    x: Array,
    weights: FFNWeights | PackedWeights,
    *,
    activation: str | Activation,
    save: str = "preactivations",
    out: MaybeArray = None,
    norm: Norm | None = None,
    inner_norm: Norm | None = None,
    post_norm: Norm | None = None,
    out_norm: Norm | None = None,
    residual: MaybeArray = None,
    residual_multiplier: float | None = None,
) -> tuple[Array, Any]:
    """Compute the output of a layer, and save what ffn_backward needs.

    x           [..., d_model], as for fc.ffn
    weights     as for fc.ffn
    activation  as for fc.ffn
    save        "preactivations" keeps gate and up, [tokens, d_ff] each, before the activation;
                "input" keeps only references to x and the weights, and the backward pass computes
                gate and up again: less memory, more time, the same bits
    out         as for fc.ffn
    norm        as for fc.ffn, and so are inner_norm, post_norm, out_norm, residual and
                residual_multiplier

    Returns y, which has the bits of fc.ffn, and a Saved. x and the weights must not be changed
    before the backward pass.

    Raises ValueError and TypeError as fc.ffn does, and ValueError for an unknown save.

    With save="preactivations" the call makes temporary copies of x and out if their leading
    dimensions cannot be merged to one by their strides, or if their elements are not aligned.

    >>> y, saved = fc.ffn_forward(x, weights, activation="silu")
    """
    norms = {
        "norm": norm,
        "inner_norm": inner_norm,
        "post_norm": post_norm,
        "out_norm": out_norm,
    }
    if _plain(norms, residual, residual_multiplier):
        return passes.forward_saved(LayerArguments(x, weights, activation), save, out)
    keeps_preactivations(save)
    return block_forward(x, weights, activation, out, norms, residual, residual_multiplier, save)


def ffn_backward(
    grad_y: Array,
    saved: Any,
    *,
    needs: Iterable[str] | None = None,
    out: FFNGrads | Mapping[str, Any] | None = None,
    accumulate: bool = False,
) -> FFNGrads:
    """Gradients of x, the weights and xielu's parameters, from the gradient of y.

    grad_y      [..., d_model], with the shape and dtype of y
    saved       the Saved that fc.ffn_forward returned
    needs       names of the gradients to compute: "x", "gate", "up", "down", "b_gate", "b_up",
                "b_down", "activation", and where the forward pass had them "residual", "norm",
                "inner_norm", "post_norm" and "out_norm" (or "norm.gain" and so on). Default: all
                that exist; with packed weights only those that do not belong to the weights
    out         arrays to write the gradients to: an FFNGrads, or a mapping from names of needs to
                arrays. Gradients that out has no array for are new arrays
    accumulate  if true, add the gradients to the values in out. The two numbers of xielu are added
                to those of out, and their sums are returned

    Returns an FFNGrads: grads.x is [..., d_model], grads.weights.up is [d_ff, d_model] and so on;
    with norms or a residual a BlockGrads, which also has grads.residual, grads.norm.gain and so on.
    There grads.x is the gradient along the layer alone, also where residual was x itself.
    Each gradient has the dtype of the array that it belongs to. For 16-bit weights an array of out
    may be float32 instead. Sums over tokens are rounded once, at the end.

    Raises ValueError for shapes, for names in needs that the layer does not have, for arrays of out
    that overlap each other or an input, and for accumulate without out; TypeError for types and
    dtypes.

    The call makes temporary copies of x, grad_y and out.x if their leading dimensions cannot be
    merged to one by their strides, or if their elements are not aligned. With needs=("x",) and
    save="input" it copies one block of bounded size at a time.

    On a GPU (see fc.ffn) the gradients are arrays of the same library, and those of xielu's
    parameters are float64 arrays without dimensions.

    >>> grads = fc.ffn_backward(grad_y, saved, needs=("x", "down"))
    """
    if isinstance(saved, BlockSaved):
        return block_backward(grad_y, saved, layer_backward, needs, out, accumulate)
    return passes.backward(grad_y, saved, needs, out, accumulate, Saved)  # type: ignore[no-any-return]


def _plain(norms: Mapping[str, Norm | None], residual: object, residual_multiplier: object) -> bool:
    """Whether a call has none of the parts around a layer."""
    return all(part is None for part in (*norms.values(), residual, residual_multiplier))
