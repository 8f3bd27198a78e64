"""The specification of norms of rows, in plain numpy.

    u = (x - m) / sqrt(v + eps),   y = u (gain_offset + gain) + bias       x, y [..., d]

rms: m = 0 and v = mean x^2. layer: m = mean x and v = mean (x - m)^2. Part of ffncore.reference.
Tests: tests/norms/test_norm_rows.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays.shapes import Array


def norm(
    x: npt.ArrayLike,
    kind: str,
    gain: Any = None,
    bias: Any = None,
    *,
    eps: float,
    gain_offset: float = 0.0,
    dtype: npt.DTypeLike = np.float64,
) -> Array:
    """Compute fc.rms_norm (kind "rms") or fc.layer_norm ("layer") in numpy.

    x            [..., d]
    kind         "rms" or "layer"
    gain         [d]; None: all 1
    bias         [d]; None: no bias
    eps          at least 0
    gain_offset  added to gain
    dtype        of the computation and the result: float64, float32 or complex128

    Returns y [..., d].

    >>> y = fc.reference.norm(x, "rms", np.ones(4), eps=1e-6)
    """
    u, _ = _unit(np.asarray(x, dtype), kind, eps)
    y = u * _gain(gain, gain_offset, u)
    return y if bias is None else y + np.asarray(bias, dtype)


def norm_backward(
    grad_y: npt.ArrayLike,
    x: npt.ArrayLike,
    kind: str,
    gain: Any = None,
    *,
    eps: float,
    gain_offset: float = 0.0,
    dtype: npt.DTypeLike = np.float64,
) -> dict[str, Array]:
    """Compute fc.rms_norm_backward or fc.layer_norm_backward in numpy.

    grad_y  [..., d], the gradient of the result

    The other arguments are those of reference.norm.

    Returns a dict: x [..., d], gain [d] and bias [d], also where the norm has no such array.

    >>> found = fc.reference.norm_backward(grad_y, x, "layer", eps=1e-5)
    """
    u, scale = _unit(np.asarray(x, dtype), kind, eps)
    dy = np.asarray(grad_y, dtype)
    q = dy * _gain(gain, gain_offset, u)
    mean = q.mean(-1, keepdims=True) if kind == "layer" else 0
    dx = scale * (q - mean - u * (q * u).mean(-1, keepdims=True))
    axes = tuple(range(u.ndim - 1))
    return {"x": dx, "gain": (dy * u).sum(axes), "bias": dy.sum(axes)}


def _unit(x: Array, kind: str, eps: float) -> tuple[Array, Array]:
    """x without mean, divided by its size; and the factor that did that."""
    centred = x - x.mean(-1, keepdims=True) if kind == "layer" else x
    scale = 1 / np.sqrt((centred * centred).mean(-1, keepdims=True) + x.dtype.type(eps))
    return centred * scale, scale


def _gain(gain: Any, offset: float, like: Array) -> Array:
    if gain is None:
        return np.ones(like.shape[-1:], like.dtype)
    return np.asarray(np.asarray(gain, like.dtype) + like.dtype.type(offset))
