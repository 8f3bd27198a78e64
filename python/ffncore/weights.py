"""Weights of one feed-forward block: as arrays (FFNWeights), packed for kernels (PackedWeights).

    gate, up  [f, d]     down  [d, f]     b_gate, b_up  [f]     b_down  [d]

Matrices are [out, in] as in every PyTorch checkpoint, with any strides: a checkpoint that stores
[in, out] is given as its transpose, a fused one through from_gate_up, and neither is copied.

An FFNWeights is checked once, when it is made; what the compiled core takes is kept beside it, so
that a call has nothing left to look at. It holds views of its own, because an array whose shape is
changed in place afterwards must not change what the kernels read.

Tests: tests/test_weights.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _core
from ._arrays import (
    ALIGNED,
    FLOAT32,
    MAX_ELEMENTS,
    Array,
    MaybeArray,
    aligned,
    as_array,
    as_dtype,
    check_dtype,
    check_rank,
    check_same_dtype,
    check_shape,
    check_size,
    converted,
    is_narrow,
    owners,
    share_memory,
)
from ._memory import allocate
from .activations import case_index

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
class FFNWeights:
    """Weights of a gated block, or of a plain one where gate is None; biases each optional.

    Matrices share one dtype; a bias has it too, or is float32 beside 16 bits.

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
        dtype: np.dtype[Any] = field(init=False)
        _arrays: _core.WeightsTuple = field(init=False)
        _call: Call | None = field(init=False)

    def __post_init__(self) -> None:
        up = as_array("w.up", self.up)
        dtype = check_dtype("w.up", up)
        check_rank("w.up", up, 2, "[d_ff, d_model]")
        f, d = up.shape
        if not f or not d:
            raise ValueError(f"w.up has shape {up.shape}; expected at least 1 in each dimension")
        checked: dict[str, MaybeArray] = {"up": up}
        for name, rank, shape in (
            ("gate", 2, (f, d)),
            ("down", 2, (d, f)),
            ("b_gate", 1, (f,)),
            ("b_up", 1, (f,)),
            ("b_down", 1, (d,)),
        ):
            value = getattr(self, name)
            if value is None and name != "down":
                checked[name] = None
                continue
            array = as_array(f"w.{name}", value)
            check_same_dtype(f"w.{name}", array, dtype, "w.up", or_float32=rank == 1)
            check_rank(f"w.{name}", array, rank, _MEANING[name])
            check_shape(f"w.{name}", array, shape, f"to match w.up {up.shape}")
            checked[name] = array
        if checked["gate"] is None and checked["b_gate"] is not None:
            raise ValueError("w.b_gate is given and w.gate is None; expected w.gate too")
        check_size(f, d, "w.up's dimensions")
        for name, checked_array in checked.items():
            object.__setattr__(self, name, checked_array)
        arrays: Any = tuple(None if checked[n] is None else checked[n].view() for n in NAMES)  # type: ignore[union-attr]
        self._set(d_model=d, d_ff=f, dtype=dtype, _arrays=arrays, _call=None)
        if all(a is None or a.flags.num & ALIGNED for a in arrays):
            inputs = tuple(a for a in arrays if a is not None)
            self._set(_call=Call(arrays, dtype, (f, d), self.gated, inputs))

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
        """Weights whose gate and up are views of one fused array gate_up [2 f, d] (bias [2 f]).

        layout  "concat": two halves; "interleaved": rows alternate
        order   "gate_first" or "up_first"
        """
        for option, value, known in (
            ("layout", layout, ("concat", "interleaved")),
            ("order", order, ("gate_first", "up_first")),
        ):
            if value not in known:
                raise ValueError(f"{option} is {value!r}; expected {known[0]!r} or {known[1]!r}")
        fused = as_array("gate_up", gate_up)
        check_rank("gate_up", fused, 2, "[2 * d_ff, d_model]")
        if fused.shape[0] % 2:
            raise ValueError(f"gate_up has shape {fused.shape}; expected an even number of rows")
        bias: MaybeArray = None
        if b_gate_up is not None:
            bias = as_array("b_gate_up", b_gate_up)
            check_shape("b_gate_up", bias, fused.shape[:1], f"to match gate_up {fused.shape}")

        def split(array: Array) -> tuple[Array, Array]:
            half = array.shape[0] // 2
            pair = (array[:half], array[half:]) if layout == "concat" else (array[::2], array[1::2])
            return pair if order == "gate_first" else pair[::-1]

        gate, up = split(fused)
        b_gate, b_up = (None, None) if bias is None else split(bias)
        return cls(gate=gate, up=up, down=down, b_gate=b_gate, b_up=b_up, b_down=b_down)

    @classmethod
    def _partial(cls, arrays: dict[str, Array]) -> FFNWeights:
        """Gradients of which some were not asked for: the rest is None. Never seen by a kernel."""
        mirror = object.__new__(cls)
        mirror._set(**{name: arrays.get(name) for name in NAMES}, _call=None)
        return mirror

    @property
    def gated(self) -> bool:
        return self.gate is not None

    @property
    def shape(self) -> tuple[int, int]:
        """(d_ff, d_model)"""
        return self.d_ff, self.d_model

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in self.arrays().values())

    def arrays(self) -> dict[str, Array]:
        """The arrays that exist, by name."""
        return {name: a for name in NAMES if (a := getattr(self, name)) is not None}

    def _core_arrays(self) -> _core.WeightsTuple:
        """What _core takes; elements that are not aligned are copied, anew for each call."""
        if self._call is not None:
            return self._arrays
        copies: Any = tuple(None if a is None else aligned(a) for a in self._arrays)
        return copies  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}={a.shape}" for name, a in self.arrays().items())
        dtype = next((a.dtype.name for a in self.arrays().values()), "empty")
        return f"FFNWeights({shapes}, {dtype})"

    def __reduce__(self) -> tuple[Callable[..., FFNWeights], tuple[dict[str, Array]]]:
        return _rebuild, (self.arrays(),)


_MEANING = {
    "gate": "[d_ff, d_model]",
    "down": "[d_model, d_ff]",
    "b_gate": "[d_ff]",
    "b_up": "[d_ff]",
    "b_down": "[d_model]",
}


def _rebuild(arrays: dict[str, Array]) -> FFNWeights:
    return FFNWeights(**arrays) if {"up", "down"} <= set(arrays) else FFNWeights._partial(arrays)


class PackedWeights:
    """Weights in the kernels' own layout, made by fc.pack: pack once, run often.

    The layout is the same for every instruction set. Accepted wherever FFNWeights are; the backward
    pass through it gives grads.x only. With 16 bits x may be float32: half the memory to read.
    """

    __slots__ = ("_biases", "_buffer", "_call", "_packed", "dtype")

    dtype: np.dtype[Any]  # of the matrices
    _biases: dict[str, np.dtype[Any]]  # those that are there; beside 16 bits packed as float32
    _buffer: Array
    _packed: _core.PackedTuple
    _call: Call

    def __init__(self) -> None:
        raise TypeError("PackedWeights are made by fc.pack(weights)")

    @classmethod
    def _make(cls, buffer: Array, weights: FFNWeights, dtype: np.dtype[Any]) -> PackedWeights:
        packed = object.__new__(cls)
        w, d, f = weights, weights.d_model, weights.d_ff
        biases = {n: array.dtype for n in NAMES[3:] if (array := getattr(w, n)) is not None}
        for name, value in (
            ("dtype", dtype),
            ("_biases", biases),
            ("_buffer", buffer),
            ("_packed", (buffer, d, f, weights.gated, *(n in biases for n in NAMES[3:]))),
        ):
            object.__setattr__(packed, name, value)
        call = Call(packed._packed, dtype, (f, d), w.gated, (buffer,))
        object.__setattr__(packed, "_call", call)
        return packed

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"PackedWeights cannot be changed; {name} was assigned to")

    @property
    def nbytes(self) -> int:
        return int(self._buffer.nbytes)

    @property
    def d_model(self) -> int:
        return self._packed[1]

    @property
    def d_ff(self) -> int:
        return self._packed[2]

    @property
    def gated(self) -> bool:
        return self._packed[3]

    @property
    def shape(self) -> tuple[int, int]:
        """(d_ff, d_model), the shape of up."""
        return self.d_ff, self.d_model

    def unpack(self) -> FFNWeights:
        """The numbers that were packed, in new arrays; biases in the dtype that they had."""
        d, f = self.d_model, self.d_ff
        shapes = {"up": (f, d), "down": (d, f)} | ({"gate": (f, d)} if self.gated else {})
        arrays = {name: np.empty(shape, self.dtype) for name, shape in shapes.items()}
        for name, dtype in self._biases.items():
            arrays[name] = np.empty(d if name == "b_down" else f, dtype)
        weights = FFNWeights(**arrays)
        _core.unpack(self._packed, weights._arrays)
        return weights

    def _core_arrays(self) -> _core.PackedTuple:
        return self._packed

    def __repr__(self) -> str:
        kind = "gated" if self.gated else "plain"
        return f"PackedWeights({kind}, shape={self.shape}, {self.dtype.name}, {self.nbytes} bytes)"

    def __reduce__(self) -> tuple[Callable[..., PackedWeights], tuple[FFNWeights]]:
        # The buffer's alignment would be lost.
        return pack, (self.unpack(),)


def check_weights(weights: object) -> FFNWeights | PackedWeights:
    """For every function that takes weights."""
    if isinstance(weights, PackedWeights):
        return weights
    if isinstance(weights, FFNWeights):
        if not hasattr(weights, "_arrays"):
            raise ValueError("weights holds gradients of which some are None; expected all of them")
        return weights
    raise TypeError(
        f"weights is of type {type(weights).__name__}; expected FFNWeights or PackedWeights"
    )


def pack(
    weights: FFNWeights, *, dtype: object = None, out: PackedWeights | None = None
) -> PackedWeights:
    """Weights -> the kernels' layout.

    dtype  of the packed matrices, each number rounded once ("float32", "bfloat16", ...); default:
           the weights' own. Beside 16 bits, biases keep what they are.
    out    PackedWeights of the same shape, dtype and biases, whose memory is filled again

    >>> p = fc.pack(weights, dtype="bfloat16")  # half the memory traffic, for float32 x too
    """
    checked = check_weights(weights)
    if isinstance(checked, PackedWeights):
        raise TypeError("weights are packed already; expected FFNWeights")
    wanted = checked.dtype if dtype is None else as_dtype("dtype", dtype)
    # The kernels round float32 to 16 bits while they pack; other conversions come first.
    if not (checked.dtype is FLOAT32 and is_narrow(wanted)):
        checked = _converted(checked, wanted)
    arrays = checked._core_arrays()
    if out is None:
        nbytes = _core.packed_bytes(wanted.name, arrays)
        out = PackedWeights._make(allocate(nbytes), checked, wanted)
    else:
        _check_refill(out, checked, wanted)
    _core.pack(wanted.name, arrays, out._buffer)
    return out


def _converted(weights: FFNWeights, wanted: np.dtype[Any]) -> FFNWeights:
    if wanted is weights.dtype:
        return weights
    return FFNWeights(**{name: converted(a, wanted) for name, a in weights.arrays().items()})


def _check_refill(out: object, weights: FFNWeights, dtype: np.dtype[Any]) -> None:
    if not isinstance(out, PackedWeights):
        raise TypeError(f"out is of type {type(out).__name__}; expected PackedWeights")
    if out.dtype is not dtype:
        raise TypeError(f"out has dtype {out.dtype.name}; expected {dtype.name}")
    expected = (
        weights.d_model,
        weights.d_ff,
        weights.gated,
        *(b is not None for b in (weights.b_gate, weights.b_up, weights.b_down)),
    )
    if out._packed[1:] != expected:
        raise ValueError(f"out is {out!r}; expected the sizes and biases of {weights!r}")
    if any(share_memory(out._buffer, a) for a in weights.arrays().values()):
        raise ValueError("out overlaps the weights; expected memory of its own")
