"""Attention over the context and a trained memory, in numpy: fc.persistent_attention.

    s_ij = scale q_i . k_j          over the keys of the context and, behind them, of the memory
    p_i  = softmax(s_i)             one softmax over both
    y_i  = sum_j p_ij v_j

    dv_j = sum_i p_ij dy_i          ds_ij = p_ij (dy_i . v_j - dy_i . y_i)
    dq_i = scale sum_j ds_ij k_j    dk_j  = scale sum_i ds_ij q_i

q is [..., heads, T_q, d], k and v [..., heads, T_k, d], the memory [heads, N, d]. A memory that
every query sees takes the place of a feed-forward layer: N = 4 d_model keys and values have its
parameters. Queries go in blocks, so that no array is T_q x T_k. Source: Sukhbaatar et al.,
Augmenting Self-attention with Persistent Memory (2019). Tests: tests/relatives/test_attention.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..arrays.dtypes import check_dtype, check_same_dtype
from ..arrays.linear import work_dtype
from ..arrays.scalars import number
from ..arrays.shapes import Array, as_array, check_shape
from ..values.copied import Copied

# Queries of a block: its scores take 256 (T_k + N) numbers a head.
_BLOCK = 256


class PersistentAttentionGrads(NamedTuple):
    """The gradients that fc.persistent_attention_backward returns: a named tuple.

    q              [..., heads, T_q, d]
    k              [..., heads, T_k, d]
    v              [..., heads, T_k, d]
    memory_keys    [heads, N, d], summed over all positions
    memory_values  [heads, N, d], likewise
    """

    q: Array
    k: Array
    v: Array
    memory_keys: Array
    memory_values: Array


@dataclass(frozen=True, eq=False, repr=False)
class PersistentAttentionSaved(Copied):
    """What fc.persistent_attention_backward needs: the arguments of the forward pass, and y.

    q              as passed to fc.persistent_attention_forward, and not to be changed
    k              likewise
    v              likewise
    memory_keys    likewise
    memory_values  likewise
    causal         likewise
    scale          the factor of the scores
    y              [..., heads, T_q, d], the result

    >>> q = np.ones((2, 3, 4), "f4")
    >>> y, kept = fc.persistent_attention_forward(q, q, q, q, q, causal=True)
    """

    q: Array
    k: Array
    v: Array
    memory_keys: Array
    memory_values: Array
    causal: bool
    scale: float
    y: Array

    def __repr__(self) -> str:
        return f"PersistentAttentionSaved(q={self.q.shape}, memory={self.memory_keys.shape})"


def persistent_attention(
    q: Array,
    k: Array,
    v: Array,
    memory_keys: Array,
    memory_values: Array,
    *,
    causal: bool = False,
    scale: float | None = None,
) -> Array:
    """Compute attention whose softmax runs over the context and a trained memory.

    q              [..., heads, T_q, d]
    k              [..., heads, T_k, d], with the dtype of q
    v              [..., heads, T_k, d], with the dtype of q
    memory_keys    [heads, N, d], with the dtype of q, as they are used: the factors sqrt(d) of the
                   paper are the caller's
    memory_values  [heads, N, d], likewise
    causal         whether query i sees only the keys j <= i + T_k - T_q of the context; every query
                   sees the memory
    scale          the factor of the scores. Default: 1 / sqrt(d)

    Returns y [..., heads, T_q, d]. 16 bits are computed in float32 and rounded once.

    Raises ValueError for shapes and values, also where a query sees no key at all; TypeError for
    types and dtypes.

    >>> q = np.ones((2, 3, 4), "f4")
    >>> y = fc.persistent_attention(q, q, q, q, q, causal=True)
    """
    return _forward(*_checked(q, k, v, memory_keys, memory_values, causal, scale))


def persistent_attention_forward(
    q: Array,
    k: Array,
    v: Array,
    memory_keys: Array,
    memory_values: Array,
    *,
    causal: bool = False,
    scale: float | None = None,
) -> tuple[Array, PersistentAttentionSaved]:
    """Compute fc.persistent_attention, and save what its backward pass needs.

    The arguments are those of fc.persistent_attention.

    Returns y [..., heads, T_q, d] and a PersistentAttentionSaved.

    Raises ValueError and TypeError as fc.persistent_attention does.

    >>> q = np.ones((2, 3, 4), "f4")
    >>> y, kept = fc.persistent_attention_forward(q, q, q, q, q)
    """
    checked = _checked(q, k, v, memory_keys, memory_values, causal, scale)
    y = _forward(*checked)
    return y, PersistentAttentionSaved(*checked, y)


def persistent_attention_backward(
    grad_y: Array, saved: PersistentAttentionSaved
) -> PersistentAttentionGrads:
    """Compute the gradients of fc.persistent_attention from the gradient of its result.

    grad_y  [..., heads, T_q, d], with the shape and dtype of y
    saved   the second result of fc.persistent_attention_forward

    Returns a PersistentAttentionGrads, whose arrays have the dtypes of the arguments.

    Raises ValueError for shapes, and TypeError for types and dtypes.

    >>> q = np.ones((2, 3, 4), "f4")
    >>> y, kept = fc.persistent_attention_forward(q, q, q, q, q)
    >>> memory_grads = fc.persistent_attention_backward(y, kept)
    """
    if not isinstance(saved, PersistentAttentionSaved):
        raise TypeError(
            f"saved is of type {type(saved).__name__}; expected the second result of "
            f"persistent_attention_forward"
        )
    q, y, scale = saved.q, saved.y, saved.scale
    grad = as_array("grad_y", grad_y)
    check_same_dtype("grad_y", grad, q.dtype, "q")
    check_shape("grad_y", grad, q.shape, "to match q")
    work, context = work_dtype(q), saved.k.shape[-2]
    keys, values = _joined(saved.k, saved.memory_keys), _joined(saved.v, saved.memory_values)
    dq = np.empty(q.shape, work)
    dkeys, dvalues = np.zeros(keys.shape, work), np.zeros(values.shape, work)
    for rows, p in _weights(q, keys, context, saved.causal, scale):
        dy = grad[..., rows, :].astype(work, copy=False)
        dvalues += np.matmul(_turned(p), dy)
        along = (dy * y[..., rows, :].astype(work, copy=False)).sum(-1, keepdims=True)
        ds = p * (np.matmul(dy, _turned(values)) - along) * work.type(scale)
        dq[..., rows, :] = np.matmul(ds, keys)
        dkeys += np.matmul(_turned(ds), q[..., rows, :].astype(work, copy=False))
    parts = [part[..., :context, :] for part in (dkeys, dvalues)]
    heads = saved.memory_keys.shape
    memory = [
        part[..., context:, :].reshape(-1, *heads).sum(0) if part.size else np.zeros(heads)
        for part in (dkeys, dvalues)
    ]
    found = [array.astype(q.dtype) for array in (dq, *parts, *memory)]
    return PersistentAttentionGrads(*found)


def _checked(
    q: object, k: object, v: object, keys: object, values: object, causal: object, scale: object
) -> tuple[Array, Array, Array, Array, Array, bool, float]:
    first = as_array("q", q)
    dtype = check_dtype("q", first)
    if first.ndim < 3 or 0 in first.shape[-3::2]:
        raise ValueError(f"q has shape {first.shape}; expected [..., heads, T_q, d]")
    others: list[Array] = []
    for name, value in (("k", k), ("v", v), ("memory_keys", keys), ("memory_values", values)):
        array = as_array(name, value)
        check_same_dtype(name, array, dtype, "q")
        others.append(array)
    context = others[0].shape[-2] if others[0].ndim > 1 else 0
    memory = others[2].shape[-2] if others[2].ndim > 1 else 0
    for name, array in zip(("k", "v"), others, strict=False):
        shape = (*first.shape[:-2], context, first.shape[-1])
        check_shape(name, array, shape, "to match q" if name == "k" else "to match k")
    for name, array in zip(("memory_keys", "memory_values"), others[2:], strict=True):
        check_shape(name, array, (first.shape[-3], memory, first.shape[-1]), "to match q")
    seen = min(context, 1 + context - first.shape[-2]) if causal else context
    if memory == 0 and seen <= 0 and first.shape[-2]:
        raise ValueError("the first query sees no key; expected a memory, or a longer context")
    factor = first.shape[-1] ** -0.5 if scale is None else number("scale", scale)
    return first, *others, bool(causal), factor  # type: ignore[return-value]


def _forward(
    q: Array, k: Array, v: Array, keys: Array, values: Array, causal: bool, scale: float
) -> Array:
    y = np.empty(q.shape, q.dtype)
    joined, of_all = _joined(k, keys), _joined(v, values)
    for rows, p in _weights(q, joined, k.shape[-2], causal, scale):
        y[..., rows, :] = np.matmul(p, of_all)
    return y


def _joined(context: Array, memory: Array) -> Array:
    """The context and behind it the memory, [..., heads, T_k + N, d]."""
    work = work_dtype(context)
    shape = (*context.shape[:-2], *memory.shape[-2:])
    both = [context.astype(work, copy=False), np.broadcast_to(memory.astype(work), shape)]
    return np.concatenate(both, axis=-2)


def _turned(array: Array) -> Array:
    return np.swapaxes(array, -1, -2)


def _weights(
    q: Array, keys: Array, context: int, causal: bool, scale: float
) -> Iterator[tuple[Any, Array]]:
    """For each block of queries its slice and its weights p [..., heads, block, T_k + N]."""
    queries = q.shape[-2]
    for start in range(0, queries, _BLOCK):
        rows = slice(start, min(queries, start + _BLOCK))
        s = np.matmul(q[..., rows, :].astype(keys.dtype, copy=False), _turned(keys))
        s *= keys.dtype.type(scale)
        if causal:
            last = np.arange(rows.start, rows.stop)[:, None] + context - queries
            s[..., :context][..., np.arange(context) > last] = -np.inf
        s -= s.max(-1, keepdims=True)
        np.exp(s, out=s)
        s /= s.sum(-1, keepdims=True)
        yield rows, s
