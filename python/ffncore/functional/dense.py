"""The feed-forward block as functions: forward, forward that saves, backward.

    p, q = x gate^T + b_gate, x up^T + b_up     preactivations [T, f]; a plain block has q alone
    h    = act(p) * q, or act(q)                [T, f]
    y    = h down^T + b_down                    [T, d]

    dh     = dy down                 d_down = dy^T h      d_b_down = sum of dy over tokens
    dp, dq = derivatives of h        d_gate = dp^T x      d_b_gate = sum of dp
    dx     = dp gate + dq up         d_up   = dq^T x      d_b_up   = sum of dq

x is [..., d]: leading dimensions are merged to T tokens (arrays/rows.py). A call on a
two-dimensional array with weights that were checked when they were made runs through ffn's first
lines alone.

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
from ..values.activation import PLAIN_CORE, Activation
from ..values.arguments import LayerArguments
from ..values.gradients import FFNGrads
from ..values.packed import PackedWeights
from ..values.saved import Saved
from ..values.weights import FFNWeights
from . import passes

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
) -> Array:
    """The output of a feed-forward layer: y = act(x up^T) down^T, with a gate
    y = (act(x gate^T) * (x up^T)) down^T, and the biases that there are.

    x           [..., d], in the dtype of the weights, or float32 beside weights of 16 bits
    weights     FFNWeights or PackedWeights of one layer; packed ones give the same bits, faster
    activation  a name, or an Activation with options
    out         an array [..., d] to write y to; it is returned

    y has the shape and dtype of x. ValueError for shapes and values, TypeError for types and
    dtypes.

    x, weights and out may also be torch CUDA tensors or CuPy arrays of one device, in float32,
    bfloat16 or float16 and with any strides (of weights: see FFNWeights). Then y is such an array,
    too. The work is queued on the library's current stream, and the call does not wait for it.

    >>> y = fc.ffn(x, weights, activation="silu")
    """
    # The common case, without a function call of ours: a matrix, weights whose arrays are aligned.
    # Whatever does not fit goes to passes.py, which finds out what it is and has the sentences.
    if type(x) is _ndarray and (type(weights) is PackedWeights or type(weights) is FFNWeights):
        call = weights._call
        if call is not None:
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
    return passes.forward(LayerArguments(x, weights, activation), out)


def ffn_forward(
    x: Array,
    weights: FFNWeights | PackedWeights,
    *,
    activation: str | Activation,
    save: str = "preactivations",
    out: MaybeArray = None,
) -> tuple[Array, Saved]:
    """The output of a layer, as of ffn, and the activations that ffn_backward needs.

    save  "preactivations" keeps gate and up, [tokens, f] each, before the activation. "input" keeps
          references to x and the weights alone, and the backward pass computes gate and up again:
          less memory, more time, the same bits

    x and the weights must not be changed before the backward pass. With save="preactivations" x and
    out are copied for the call where their leading dimensions cannot be seen as one dimension of
    rows, or their elements are not aligned.

    >>> y, saved = fc.ffn_forward(x, weights, activation="silu")
    """
    return passes.forward_saved(LayerArguments(x, weights, activation), save, out)


def ffn_backward(
    grad_y: Array,
    saved: Saved,
    *,
    needs: Iterable[str] | None = None,
    out: FFNGrads | Mapping[str, Any] | None = None,
    accumulate: bool = False,
) -> FFNGrads:
    """Gradients of x, the weights and xielu's parameters, from the gradient of y.

    grad_y      [..., d], with the dtype of y
    saved       what ffn_forward returned
    needs       names of the gradients to compute: "x", "gate", "up", "down", "b_gate", "b_up",
                "b_down", "activation". Default: all that exist (with packed weights: x)
    out         arrays to fill: an FFNGrads, or a mapping from the names of needs to arrays. Arrays
                missing from out are allocated
    accumulate  add the gradients to the arrays of out, instead of replacing their values; numbers
                (xielu's gradients) are added to those of out and returned

    Each gradient has the dtype of the array that it belongs to. For weights of 16 bits an array of
    out may be float32 instead. Sums are rounded once, at the end.

    x, grad_y and out.x are copied for the call where their leading dimensions cannot be seen as one
    dimension of rows, or their elements are not aligned, because gradients of weights are sums over
    all tokens. With needs=("x",) and save="input" one block at a time is copied.

    On a GPU (see ffn) gradients are arrays of the same library; xielu's two gradients are float64
    arrays without dimensions.

    >>> grads = fc.ffn_backward(grad_y, saved, needs=("x", "down"))
    """
    return passes.backward(grad_y, saved, needs, out, accumulate, Saved)  # type: ignore[no-any-return]
