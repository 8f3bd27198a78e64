"""Weights of one feed-forward block, or of experts: blocks of one size, stacked.

    one block   gate, up  [f, d]       down  [d, f]       b_gate, b_up  [f]       b_down  [d]
    experts     gate, up  [E, f, d]    down  [E, d, f]    b_gate, b_up  [E, f]    b_down  [E, d]

Matrices are [out, in] as in every PyTorch checkpoint, with any strides: a checkpoint that stores
[in, out] is given as its transpose, a fused one through from_gate_up, and neither is copied.

An FFNWeights is checked once, when it is made; what the compiled core takes is kept beside it, so
that a call has nothing left to look at. It holds views of its own, because an array whose shape is
changed in place afterwards must not change what the kernels read.

Packed for the kernels: packed.py. Tests: tests/values/test_weights.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _core
from ..arrays.dtypes import FLOAT32, check_dtype, check_same_dtype, is_narrow
from ..arrays.overlap import owners
from ..arrays.places import Place, place_of, see
from ..arrays.shapes import (
    ALIGNED,
    MAX_ELEMENTS,
    Array,
    MaybeArray,
    aligned,
    check_rank,
    check_shape,
    check_size,
)
from .activation import case_index
from .copied import Copied

NAMES = ("gate", "up", "down", "b_gate", "b_up", "b_down")


class Call:
    """What ffn looks at in weights, found out once."""

    __slots__ = ("case", "core", "d_model", "dtype", "inputs", "most_rows", "owners", "wide")

    def __init__(
        self,
        core: _core.WeightsTuple | _core.PackedTuple,
        dtype: np.dtype[Any],
        shape: tuple[int, int],
        gated: bool,
        inputs: tuple[Array, ...],
    ) -> None:
        self.core = core
        self.dtype = dtype
        self.wide = FLOAT32 if is_narrow(dtype) else dtype  # the other dtype that x may have
        self.d_model = shape[1]
        self.case = case_index(gated, dtype)  # which form of an activation it takes
        self.most_rows = MAX_ELEMENTS // max(shape)  # tokens that a call may have
        self.inputs = inputs  # what out= must not overlap
        self.owners = owners(inputs)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class FFNWeights(Copied):
    """Weights of a gated block, or of a plain one where gate is None; biases each optional.

    Matrices share one dtype; a bias has it too, or is float32 beside 16 bits. With a leading E on
    every array it holds E experts, for fc.moe; expert(e) is one of them. torch CUDA tensors and
    CuPy arrays are kept as they are: calls take them on their GPU, where the rows or the columns of
    a matrix have to be contiguous.

    >>> w = fc.FFNWeights(gate=gate, up=up, down=down)  # gate, up [f, d], down [d, f]
    """

    gate: MaybeArray = None
    up: Array
    down: Array
    b_gate: MaybeArray = None
    b_up: MaybeArray = None
    b_down: MaybeArray = None
    if TYPE_CHECKING:  # set by __post_init__; not fields
        d_model: int = field(init=False)
        d_ff: int = field(init=False)
        n_experts: int | None = field(init=False)  # None: one block
        dtype: np.dtype[Any] = field(init=False)
        _arrays: _core.WeightsTuple = field(init=False)
        _aligned: bool = field(init=False)
        _place: Place | None = field(init=False)  # on a GPU: then _arrays are ghosts
        _kept: tuple[Any, ...] = field(init=False)  # what keeps a GPU's memory
        _struct: Any = field(init=False)  # what its calls take, made by the first
        _call: Call | None = field(init=False)  # None: not for ffn's short way

    def __post_init__(self) -> None:
        place = place_of("up", self.up)
        up = see(place, "up", self.up)
        dtype = check_dtype("up", up)
        if up.ndim != 3:
            check_rank("up", up, 2, _MEANING["up"])
        if not all(up.shape):
            raise ValueError(f"up has shape {up.shape}; expected at least 1 in each dimension")
        *lead, f, d = up.shape
        checked: dict[str, MaybeArray] = {"up": up}
        for name, shape in (
            ("gate", (*lead, f, d)),
            ("down", (*lead, d, f)),
            ("b_gate", (*lead, f)),
            ("b_up", (*lead, f)),
            ("b_down", (*lead, d)),
        ):
            value = getattr(self, name)
            if value is None and name != "down":
                checked[name] = None
                continue
            checked[name] = array = see(place, name, value)
            _check_beside(name, array, shape, "up", up)
        if checked["gate"] is None and checked["b_gate"] is not None:
            raise ValueError("b_gate is given and gate is None; expected gate, too")
        check_size(math.prod(lead) * f, d, "the dimensions of up")
        for name, checked_array in checked.items():
            if place is None:
                object.__setattr__(self, name, checked_array)
        arrays: Any = tuple(None if checked[n] is None else checked[n].view() for n in NAMES)  # type: ignore[union-attr]
        aligned = all(a is None or a.flags.num & ALIGNED for a in arrays)
        call = None
        if aligned and not lead and place is None:
            inputs = tuple(a for a in arrays if a is not None)
            call = Call(arrays, dtype, (f, d), checked["gate"] is not None, inputs)
        self._set(d_model=d, d_ff=f, n_experts=lead[0] if lead else None, dtype=dtype)
        kept = () if place is None else tuple(map(place.library.view, self.arrays().values()))
        self._set(_arrays=arrays, _aligned=aligned, _call=call)
        self._set(_place=place, _kept=kept, _struct=None)

    def _set(self, **attributes: object) -> None:
        for name, value in attributes.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_gate_up(
        cls,
        gate_up: Array,
        down: Array,
        *,
        layout: str = "concat",
        order: str = "gate_first",
        b_gate_up: MaybeArray = None,
        b_down: MaybeArray = None,
    ) -> FFNWeights:
        """Weights whose gate and up are views of one fused array gate_up [2 f, d] (bias [2 f]), or
        of experts' [E, 2 f, d] (bias [E, 2 f]).

        layout  "concat": two halves; "interleaved": rows alternate
        order   "gate_first" or "up_first"
        """
        for option, value, known in (
            ("layout", layout, ("concat", "interleaved")),
            ("order", order, ("gate_first", "up_first")),
        ):
            if value not in known:
                raise ValueError(f"{option} is {value!r}; expected {known[0]!r} or {known[1]!r}")
        place = place_of("gate_up", gate_up)
        fused = see(place, "gate_up", gate_up)
        check_dtype("gate_up", fused)
        if fused.ndim != 3:
            check_rank("gate_up", fused, 2, _MEANING["gate_up"])
        *lead, rows, d = fused.shape
        if rows % 2:
            raise ValueError(f"gate_up has shape {fused.shape}; expected an even number of rows")
        for name, given, shape in (
            ("down", down, (*lead, d, rows // 2)),
            ("b_gate_up", b_gate_up, (*lead, rows)),
            ("b_down", b_down, (*lead, d)),
        ):
            if name == "down" or given is not None:
                _check_beside(name, see(place, name, given), shape, "gate_up", fused)
        pair = (slice(rows // 2), slice(rows // 2, None))
        if layout == "interleaved":
            pair = (slice(0, None, 2), slice(1, None, 2))
        first, second = pair if order == "gate_first" else pair[::-1]
        whole: Any = fused if place is None else gate_up
        return cls(
            gate=whole[..., first, :],
            up=whole[..., second, :],
            down=down,
            b_gate=None if b_gate_up is None else b_gate_up[..., first],
            b_up=None if b_gate_up is None else b_gate_up[..., second],
            b_down=b_down,
        )

    @classmethod
    def _partial(cls, arrays: dict[str, Array]) -> FFNWeights:
        """Gradients of which some were not asked for: the rest is None. Never seen by a kernel."""
        mirror = object.__new__(cls)
        mirror._set(**{name: arrays.get(name) for name in NAMES}, _place=None, _call=None)
        return mirror

    @property
    def gated(self) -> bool:
        """Whether there is a gate."""
        return self.gate is not None

    @property
    def shape(self) -> tuple[int, int]:
        """(d_ff, d_model), of each expert."""
        return self.d_ff, self.d_model

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(a.nbytes for a in self.arrays().values())

    def expert(self, e: int) -> FFNWeights:
        """Expert number e as a block of its own: views of these arrays."""
        e = check_expert(e, self.n_experts)
        return FFNWeights(**{name: array[e] for name, array in self.arrays().items()})

    def arrays(self) -> dict[str, Array]:
        """The arrays that exist, by name."""
        return {name: a for name in NAMES if (a := getattr(self, name)) is not None}

    def _seen(self) -> dict[str, Array]:
        """The arrays that exist, by name, to check against: on a GPU, their ghosts."""
        seen = zip(NAMES, self._arrays, strict=True)
        return {name: array for name, array in seen if array is not None}

    def _core_arrays(self) -> _core.WeightsTuple:
        """What _core takes; elements that are not aligned are copied, anew for each call."""
        if self._place is not None:
            raise TypeError(f"the weights are {self._place}; expected numpy arrays here")
        if self._aligned:
            return self._arrays
        copies: Any = tuple(None if a is None else aligned(a) for a in self._arrays)
        return copies  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}={tuple(a.shape)}" for name, a in self.arrays().items())
        dtype = next((getattr(a.dtype, "name", a.dtype) for a in self.arrays().values()), "empty")
        return f"FFNWeights({shapes}, {dtype})"

    def _state(self) -> dict[str, Any]:
        return {**self.arrays()}

    @classmethod
    def _remade(cls, **arrays: Array) -> FFNWeights:
        return cls(**arrays) if {"up", "down"} <= set(arrays) else cls._partial(arrays)


_MEANING = {
    "gate_up": "[2 * d_ff, d_model], or [n_experts, 2 * d_ff, d_model]",
    "gate": "[d_ff, d_model]",
    "up": "[d_ff, d_model], or [n_experts, d_ff, d_model]",
    "down": "[d_model, d_ff]",
    "b_gate_up": "[2 * d_ff]",
    "b_gate": "[d_ff]",
    "b_up": "[d_ff]",
    "b_down": "[d_model]",
}


def _check_beside(
    name: str, array: Array, shape: tuple[int, ...], other: str, matrix: Array
) -> None:
    """dtype and shape of an argument have to match those of another one, a matrix."""
    check_same_dtype(name, array, check_dtype(other, matrix), other, or_float32=name[:2] == "b_")
    meaning = _MEANING[name] if matrix.ndim == 2 else f"[n_experts, {_MEANING[name][1:]}"
    check_rank(name, array, len(shape), meaning)
    check_shape(name, array, shape, f"to match {other} {matrix.shape}")


def check_expert(e: object, n_experts: int | None) -> int:
    """The number of an expert that is there."""
    if n_experts is None:
        raise ValueError("the weights are those of one block; expected experts")
    if isinstance(e, bool) or not isinstance(e, (int, np.integer)):
        raise TypeError(f"e is of type {type(e).__name__}; expected an expert's number")
    if not 0 <= e < n_experts:
        raise ValueError(f"e is {e}; expected an expert from 0 to {n_experts - 1}")
    return int(e)
