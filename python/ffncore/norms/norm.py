"""fc.Norm: a norm with its arrays and numbers, as a value.

    "rms"    y = x / sqrt(mean x^2 + eps) (gain_offset + gain) + bias
    "layer"  y = (x - mean x) / sqrt(mean (x - mean x)^2 + eps) (gain_offset + gain) + bias

x and y are [..., d], and means are over the last dimension. A Norm computes nothing: rows.py has
the functions that take one. Tests: tests/norms/test_norm.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..arrays.dtypes import check_dtype
from ..arrays.scalars import known, number
from ..arrays.shapes import Array, MaybeArray, aligned, as_array, check_rank, check_shape
from ..values.copied import Copied

# The numbers are those of the enum ffncore_norm_kind in ffncore.h.
KINDS = {"rms": 0, "layer": 1}
# What most models with such a norm use.
EPS = {"rms": 1e-6, "layer": 1e-5}


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Norm(Copied):
    """A norm of the last dimension, with its arrays: for norm=, inner_norm= and the like.

    kind         "rms": y = x / sqrt(mean x^2 + eps) * (gain_offset + gain) + bias; "layer": the
                 same of x - mean x
    gain         [d]; None: all 1
    bias         [d], with the dtype of gain; None: no bias
    eps          at least 0. Default: 1e-6 for "rms", 1e-5 for "layer"
    gain_offset  added to gain: 1 for the models whose gains are trained around 0 (Gemma)

    Each argument is an attribute. A Norm refers to the arrays, and cannot be changed itself.

    Raises ValueError for shapes, unknown kinds and values out of range; TypeError for types and
    dtypes.

    See also: fc.rms_norm, fc.layer_norm.

    >>> norm = fc.Norm("rms", gain=np.ones(4, "f4"))
    >>> y = fc.ffn(x, weights, activation="silu", norm=norm)
    """

    kind: str
    gain: MaybeArray
    bias: MaybeArray
    eps: float
    gain_offset: float

    def __init__(
        self,
        kind: str,
        gain: MaybeArray = None,
        bias: MaybeArray = None,
        eps: float | None = None,
        gain_offset: float = 0.0,
    ) -> None:
        known("kind", kind, KINDS)
        arrays: list[MaybeArray] = []
        for name, value in (("gain", gain), ("bias", bias)):
            if value is not None:
                value = as_array(name, value)
                check_dtype(name, value)
                check_rank(name, value, 1, "[d]")
                value = aligned(value)
            arrays.append(value)
        first, second = arrays
        if first is not None and second is not None:
            check_shape("bias", second, first.shape, "to match gain")
            if second.dtype != first.dtype:
                raise TypeError(
                    f"bias has dtype {second.dtype.name}; expected {first.dtype.name} to match gain"
                )
        offset = number("gain_offset", gain_offset)
        if first is None and offset:
            raise ValueError(f"gain_offset is {offset} and gain is None; expected a gain")
        small = EPS[kind] if eps is None else number("eps", eps)
        if small < 0:
            raise ValueError(f"eps is {small}; expected a number from 0")
        for name, found in (("kind", kind), ("gain", first), ("bias", second)):
            object.__setattr__(self, name, found)
        object.__setattr__(self, "eps", small)
        object.__setattr__(self, "gain_offset", offset)

    def arrays(self) -> dict[str, Array]:
        """Return a dict of the arrays that there are: "gain", "bias"."""
        both = {"gain": self.gain, "bias": self.bias}
        return {name: array for name, array in both.items() if array is not None}

    def __repr__(self) -> str:
        return f"Norm({', '.join(self._parts())})"

    def _parts(self) -> Iterator[str]:
        yield repr(self.kind)
        yield from (f"{name}={array.shape}" for name, array in self.arrays().items())
        yield f"eps={self.eps:g}"
        if self.gain_offset:
            yield f"gain_offset={self.gain_offset:g}"
