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
from ..arrays.places import Place, place_of
from ..arrays.shapes import (
    ALIGNED,
    MAX_ELEMENTS,
    Array,
    MaybeArray,
    aligned,
    as_array,
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
        core: _core.Weights,
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
        _up_shape: tuple[int, ...] = field(init=False)
        _views: dict[str, Array] = field(init=False)  # of those that exist; on a GPU, ghosts
        _place: Place | None = field(init=False)
        _kept: tuple[Any, ...] = field(init=False)  # what keeps a GPU's memory
        # What calls take. None: an array is not aligned; or on a GPU, there has been no call yet.
        _struct: Any = field(init=False)
        _call: Call | None = field(init=False)  # None: not for ffn's short way

    def __post_init__(self) -> None:
        place = place_of("w.up", self.up)
        see = as_array if place is None else place.ghost
        up = see("w.up", self.up)
        dtype = check_dtype("w.up", up)
        if up.ndim != 3:
            check_rank("w.up", up, 2, _MEANING["up"])
        if not all(up.shape):
            raise ValueError(f"w.up has shape {up.shape}; expected at least 1 in each dimension")
        *lead, f, d = up.shape
        checked: dict[str, Array] = {"up": up}
        for name, shape in (
            ("gate", (*lead, f, d)),
            ("down", (*lead, d, f)),
            ("b_gate", (*lead, f)),
            ("b_up", (*lead, f)),
            ("b_down", (*lead, d)),
        ):
            value = getattr(self, name)
            if value is None and name != "down":
                continue
            array = see(f"w.{name}", value)
            check_same_dtype(f"w.{name}", array, dtype, "w.up", or_float32=name.startswith("b_"))
            meaning = _MEANING[name] if not lead else f"[n_experts, {_MEANING[name][1:]}"
            check_rank(f"w.{name}", array, len(shape), meaning)
            check_shape(f"w.{name}", array, shape, f"to match w.up {up.shape}")
            checked[name] = array
        if "b_gate" in checked and "gate" not in checked:
            raise ValueError("w.b_gate is given and w.gate is None; expected w.gate too")
        check_size(math.prod(lead) * f, d, "w.up's dimensions")
        for name, checked_array in checked.items():
            if place is None:
                object.__setattr__(self, name, checked_array)
        views = {name: checked[name].view() for name in NAMES if name in checked}
        struct = call = None
        if place is None and all(a.flags.num & ALIGNED for a in views.values()):
            struct = _core.Weights(**views)
            if not lead:
                call = Call(struct, dtype, (f, d), "gate" in checked, tuple(views.values()))
        self._set(d_model=d, d_ff=f, n_experts=lead[0] if lead else None, dtype=dtype)
        kept = () if place is None else tuple(map(place.library.view, self.arrays().values()))
        self._set(
            _up_shape=up.shape, _views=views, _struct=struct, _call=call, _place=place, _kept=kept
        )

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
        see = as_array if place is None else place.ghost
        fused = see("gate_up", gate_up)
        if fused.ndim != 3:
            check_rank("gate_up", fused, 2, "[2 * d_ff, d_model]")
        rows = fused.shape[-2]
        if rows % 2:
            raise ValueError(f"gate_up has shape {fused.shape}; expected an even number of rows")
        if b_gate_up is not None:
            bias = see("b_gate_up", b_gate_up)
            check_shape("b_gate_up", bias, fused.shape[:-1], f"to match gate_up {fused.shape}")
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

    def _core_weights(self) -> _core.Weights:
        """What _core takes; elements that are not aligned are copied, anew for each call."""
        if self._place is not None:
            raise TypeError(f"the weights are {self._place}; expected numpy arrays here")
        if self._struct is not None:
            return self._struct  # type: ignore[no-any-return]
        return _core.Weights(**{name: aligned(a) for name, a in self._views.items()})

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
    "gate": "[d_ff, d_model]",
    "up": "[d_ff, d_model], or [n_experts, d_ff, d_model]",
    "down": "[d_model, d_ff]",
    "b_gate": "[d_ff]",
    "b_up": "[d_ff]",
    "b_down": "[d_model]",
}


def check_expert(e: object, n_experts: int | None) -> int:
    """The number of an expert that is there."""
    if n_experts is None:
        raise ValueError("the weights are those of one block; expected experts")
    if isinstance(e, bool) or not isinstance(e, (int, np.integer)):
        raise TypeError(f"e is of type {type(e).__name__}; expected an expert's number")
    if not 0 <= e < n_experts:
        raise ValueError(f"e is {e}; expected an expert from 0 to {n_experts - 1}")
    return int(e)
