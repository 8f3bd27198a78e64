"""The choice of scales: least squares and nearest codes in turns (Lloyd's algorithm).

    scale   w ~ s v       s = <w, v> / <v, v> for the values v of the nearest codes
    line    w ~ s c + o   s and o by the line through the points (c, w) of a group

Each turn makes the squared error smaller or leaves it. The largest magnitude of a group, which is a
good scale for 8 bits, is a poor one for ternary weights: with it the error of Gaussian weights is
larger than that of zeros only. Tests: tests/encodings/test_fitting.py.
"""

from __future__ import annotations

import numpy as np

from ..arrays.dtypes import FLOAT32
from ..arrays.shapes import Array
from .grid import Grid, Levels, in_units

FLOAT16_MAX = 65504.0


def scale_by_least_squares(w: Array, scale: Array, levels: Levels, turns: int) -> Array:
    """Improve the scales [..., 1] of groups w [..., n]."""
    for _ in range(turns):
        v = levels.of(levels.nearest(in_units(w, Grid(scale))))
        squares = np.einsum("...i,...i->...", v, v)[..., None]
        better = np.einsum("...i,...i->...", w, v)[..., None] / np.maximum(squares, 1)
        scale = np.where(squares == 0, scale, better)
    return scale


def line_by_least_squares(
    w: Array, high: int, turns: int, most: float = np.inf
) -> tuple[Array, Array]:
    """Scales [..., 1] >= 0 and offsets [..., 1] <= most of groups w [..., n], codes 0 to high."""
    low = np.minimum(w.min(axis=-1, keepdims=True), most)
    scale = (w.max(axis=-1, keepdims=True) - low) / FLOAT32.type(high)
    mean, n = w.mean(axis=-1, keepdims=True), w.shape[-1]
    for _ in range(turns):
        c = np.clip(np.rint(in_units(w, Grid(scale, None, low))), 0, high)
        middle = c.mean(axis=-1, keepdims=True)
        spread = np.einsum("...i,...i->...", c, c)[..., None] - n * middle * middle
        slope = np.einsum("...i,...i->...", c, w)[..., None] - n * middle * mean
        # A group whose weights have one code has no slope.
        fits = (spread > 0.5) & (slope > 0)
        scale = np.where(fits, slope / np.where(fits, spread, 1), scale)
        low = np.where(fits, np.minimum(mean - scale * middle, most), low)
    return scale, low


def largest(w: Array) -> Array:
    """The entry of largest magnitude of each group w [..., n], with its sign: [..., 1]."""
    index = np.abs(w).argmax(axis=-1)[..., None]
    return np.take_along_axis(w, index, axis=-1)


def magnitude(w: Array) -> Array:
    """The largest magnitude of each group w [..., n]: [..., 1]."""
    return np.asarray(np.maximum(w.max(axis=-1, keepdims=True), -w.min(axis=-1, keepdims=True)))


class Misfit(ValueError):
    """Weights that a format cannot have. The message is a sentence without its subject, the name of
    the weights, which only the caller knows.
    """


def half(scale: Array) -> Array:
    """Scales as float16; Misfit if one becomes infinite."""
    if scale.size and float(np.abs(scale).max()) >= FLOAT16_MAX + 16:
        raise Misfit(
            f"needs a scale of {float(np.abs(scale).max()):.6g}; expected at most {FLOAT16_MAX} "
            f"for a format whose scales are float16"
        )
    return scale.astype(np.float16)
