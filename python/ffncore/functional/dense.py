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
    """y [..., d] of x [..., d]; out: an array to write y to, which is returned.

    x, weights and out may also be torch CUDA tensors, or CuPy arrays, of one device, in float32,
    bfloat16 or float16 and with any strides (weights: see FFNWeights): then y is one, the work is
    queued on the library's current stream, and nothing waits for it.

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
    """y and what the backward pass needs.

    save="preactivations" keeps gate and up, [T, f] each; save="input" keeps references alone, and
    the backward pass computes gate and up again. The results are the same bits.

    With save="preactivations" an x or out whose leading dimensions cannot be merged, or whose
    elements are not aligned, is copied as a whole for the call, because all tokens go into one
    array; otherwise a block at a time. Arrays on a GPU as for ffn.

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

    needs       names of what is wanted: "x", "gate", "up", "down", "b_gate", "b_up", "b_down",
                "activation"; what is not needed is not computed. Default: all that exist (through
                packed weights: x).
    out         arrays to fill: an FFNGrads, or a mapping of the names of needs. What it lacks is
                allocated.
    accumulate  add into out instead: its numbers too, which come back as a sum

    A gradient has the dtype of what it is a gradient of; beside 16 bits an array of out may be
    float32 (with accumulate: float32 master gradients). Sums are rounded once, at their end.

    An x, grad_y or out.x whose leading dimensions cannot be merged, or whose elements are not
    aligned, is copied as a whole for the call, because gradients of weights sum over all tokens.
    With needs=("x",) and save="input" it is copied a block at a time.

    On a GPU (see ffn) gradients are arrays of its library, and xielu's two are of no dimension, in
    float64.

    >>> grads = fc.ffn_backward(grad_y, saved, needs=("x", "down"))
    """
    return passes.backward(grad_y, saved, needs, out, accumulate, Saved)  # type: ignore[no-any-return]
