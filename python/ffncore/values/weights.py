"""The weights of one feed-forward layer, or of E experts: layers of one size, stacked.

    one layer   gate, up  [f, d]       down  [d, f]       b_gate, b_up  [f]       b_down  [d]
    experts     gate, up  [E, f, d]    down  [E, d, f]    b_gate, b_up  [E, f]    b_down  [E, d]

Here d is d_model and f is d_ff. Matrices are [out, in], as in PyTorch checkpoints, and may have any
strides. Weights that are stored as [in, out] are passed as their transpose, and a fused gate_up
array is split by from_gate_up; neither is copied.

An FFNWeights is checked once, when it is made. It also keeps the arguments of the compiled core, so
that a call has nothing left to check. For the core it holds views of its own: a caller may change
the shape of an array in place later, and this must not change what the kernels read.

A matrix may also be a QuantizedTensor. Then the layer is computed in float32, with the numbers that
the tensor stands for.

packed.py packs weights for the kernels. Tests: tests/values/test_weights.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .. import _core
from ..arrays.dtypes import FLOAT32, check_dtype, check_same_dtype, dtype_name, is_narrow
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
from ..encodings.tensor import QuantizedTensor
from .activation import case_index
from .copied import Copied

# A matrix of a layer: an array or a QuantizedTensor. It is Any, because most code has arrays alone.
Matrix: TypeAlias = Any

NAMES = ("gate", "up", "down", "b_gate", "b_up", "b_down")


class Call:
    """Facts about the weights that every call of fc.ffn needs, found once."""

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
        self.case = case_index(gated, dtype)  # index into Activation._cores
        self.most_rows = MAX_ELEMENTS // max(shape)  # the most tokens that a call may have
        self.inputs = inputs  # what out= must not overlap
        self.owners = owners(inputs)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class FFNWeights(Copied):
    """The weights of a feed-forward layer, or of E experts.

    gate    [d_ff, d_model]; None (the default) makes a plain layer, without a gate
    up      [d_ff, d_model]
    down    [d_model, d_ff]
    b_gate  [d_ff], the bias of gate; None: no bias. Only with gate
    b_up    [d_ff], the bias of up; None: no bias
    b_down  [d_model], the bias of down; None: no bias

    For experts every array has a leading dimension n_experts; such weights are for fc.moe, and
    expert(e) returns those of one expert. All arrays have one dtype: float32, float64, bfloat16 or
    float16. The biases of 16-bit weights may also be float32. Arrays may have any strides. They are
    not copied, so changing one changes the weights.

    gate, up and down may also be QuantizedTensors (fc.quantize makes them). Then dtype is float32,
    x and the arrays beside them may be float32 or have 16 bits, and results have the bits of the
    same layer with the float32 weights that dequantize() returns.

    The attributes are the arrays, d_model, d_ff, n_experts (None for a single layer) and dtype.
    They cannot be assigned to.

    torch CUDA tensors and CuPy arrays of one device are accepted, too. Calls with such weights run
    on that GPU, and need matrices whose rows or columns are contiguous.

    Raises ValueError for shapes that do not match and for b_gate without gate, and TypeError for
    dtypes and types.

    >>> w = fc.FFNWeights(gate=gate, up=up, down=down)
    >>> w.d_model, w.d_ff, w.gated
    """

    gate: Matrix = None
    up: Matrix
    down: Matrix
    b_gate: MaybeArray = None
    b_up: MaybeArray = None
    b_down: MaybeArray = None
    if TYPE_CHECKING:  # set by __post_init__; not fields
        d_model: int = field(init=False)
        d_ff: int = field(init=False)
        n_experts: int | None = field(init=False)  # None: a single layer
        dtype: np.dtype[Any] = field(init=False)
        _up_shape: tuple[int, ...] = field(init=False)
        _views: dict[str, Any] = field(init=False)  # of the arrays by name; on a GPU their ghosts
        _place: Place | None = field(init=False)  # the GPU, if any
        _kept: tuple[Any, ...] = field(init=False)  # views that keep a GPU's memory alive
        # What calls take; None if an array is not aligned or quantised, and on a GPU before the
        # first call.
        _struct: Any = field(init=False)
        _call: Call | None = field(init=False)  # None: ffn's fast path does not apply

    def __post_init__(self) -> None:
        place = place_of("up", self.up)
        up: Any = _see_matrix(place, "up", self.up)
        quantized = self.quantized
        dtype = FLOAT32 if quantized else check_dtype("up", up)
        if up.ndim != 3:
            check_rank("up", up, 2, _MEANING["up"])
        if not all(up.shape):
            raise ValueError(f"up has shape {up.shape}; expected at least 1 in each dimension")
        *lead, f, d = up.shape
        if quantized:
            _check_beside_codes("up", up)
        checked: dict[str, Any] = {"up": up}
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
            see_it = see if name in NAMES[3:] else _see_matrix
            checked[name] = array = see_it(place, name, value)
            if quantized:
                _check_beside_codes(name, array)
            else:
                check_same_dtype(name, array, dtype, "up", or_float32=name in NAMES[3:])
            _check_shape(name, array, shape, "up", up)
        if "b_gate" in checked and "gate" not in checked:
            raise ValueError("b_gate is given and gate is None; expected gate, too")
        check_size(math.prod(lead) * f, d, "the dimensions of up")
        for name, checked_array in checked.items():
            if place is None:
                object.__setattr__(self, name, checked_array)
        views: dict[str, Any] = {
            name: array if isinstance(array, QuantizedTensor) else array.view()
            for name in NAMES
            if (array := checked.get(name)) is not None
        }
        struct = call = None
        if place is None and not quantized and all(a.flags.num & ALIGNED for a in views.values()):
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
        """Make weights whose gate and up are views of one fused array; nothing is copied.

        gate_up    [2 d_ff, d_model], of experts [n_experts, 2 d_ff, d_model]
        down       [d_model, d_ff], of experts [n_experts, d_model, d_ff]
        layout     "concat": gate and up are the two halves of the rows; "interleaved": their rows
                   alternate
        order      "gate_first" or "up_first"
        b_gate_up  [2 d_ff], of experts [n_experts, 2 d_ff], in the same layout and order; None: no
                   biases of gate and up
        b_down     [d_model], of experts [n_experts, d_model]; None: no bias of down

        Raises ValueError and TypeError as FFNWeights does, and ValueError if gate_up has an odd
        number of rows.

        >>> w = fc.FFNWeights.from_gate_up(gate_up, down, layout="interleaved")
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
                array = see(place, name, given)
                narrow_or_wide = name[:2] == "b_"
                check_same_dtype(
                    name, array, check_dtype("gate_up", fused), "gate_up", or_float32=narrow_or_wide
                )
                _check_shape(name, array, shape, "gate_up", fused)
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
        """Gradients in the form of weights; those that were not requested are None.

        Kernels never read such an object.
        """
        mirror = object.__new__(cls)
        mirror._set(**{name: arrays.get(name) for name in NAMES}, _place=None, _call=None)
        return mirror

    @property
    def gated(self) -> bool:
        """Whether the layer has a gate."""
        return self.gate is not None

    @property
    def quantized(self) -> bool:
        """Whether one of the matrices is a QuantizedTensor."""
        return any(isinstance(getattr(self, name), QuantizedTensor) for name in NAMES[:3])

    def dequantize(self) -> FFNWeights:
        """Return weights of float32 arrays, with the numbers that the QuantizedTensors stand for.

        Arrays beside them that have 16 bits are widened. Weights without a QuantizedTensor are
        returned as they are.

        >>> fc.quantize(weights, "int8").dequantize().up.dtype
        """
        return FFNWeights(**self._float32()) if self.quantized else self

    @property
    def input_scale(self) -> MaybeArray:
        """[d_model], by which x is to be divided before a call; None: by nothing.

        Only fc.quantize with method="awq" makes such weights.
        """
        return self.up.input_scale if isinstance(self.up, QuantizedTensor) else None

    def _float32(self) -> dict[str, Array]:
        return {
            name: a.dequantize()
            if isinstance(a, QuantizedTensor)
            else a.astype(FLOAT32, copy=False)
            for name, a in self._views.items()
        }

    @property
    def shape(self) -> tuple[int, int]:
        """(d_ff, d_model), the shape of up; for experts, that of each of them."""
        return self.d_ff, self.d_model

    @property
    def nbytes(self) -> int:
        """The number of bytes of all arrays together."""
        return sum(a.nbytes for a in self.arrays().values())

    def expert(self, e: int) -> FFNWeights:
        """Return the weights of expert e, from 0 to n_experts - 1: views of these arrays.

        Raises ValueError if there is no such expert, and TypeError if e is not an integer.
        """
        e = check_expert(e, self.n_experts)
        return FFNWeights(**{name: array[e] for name, array in self.arrays().items()})

    def arrays(self) -> dict[str, Any]:
        """Return a dict from names to arrays and QuantizedTensors, without those that are None."""
        return {name: a for name in NAMES if (a := getattr(self, name)) is not None}

    def _core_weights(self) -> _core.Weights:
        """The arrays for _core. Arrays with unaligned elements are copied, anew for each call, and
        quantised ones are dequantised.
        """
        if self._place is not None:
            raise TypeError(f"the weights are {self._place}; expected numpy arrays here")
        if self._struct is not None:
            return self._struct  # type: ignore[no-any-return]
        arrays = self._float32() if self.quantized else self._views
        return _core.Weights(**{name: aligned(a) for name, a in arrays.items()})

    def __repr__(self) -> str:
        arrays = self.arrays()
        shapes = ", ".join(
            f"{name}={tuple(a.shape)}{f' {a.format}' if isinstance(a, QuantizedTensor) else ''}"
            for name, a in arrays.items()
        )
        dtypes = (a.dtype for a in arrays.values() if not isinstance(a, QuantizedTensor))
        dtype = next(
            (getattr(d, "name", d) for d in dtypes), "empty" if not arrays else "quantised"
        )
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


def _see_matrix(place: Place | None, name: str, value: object) -> Any:
    """A matrix as checks see it: a QuantizedTensor as it is, else an array (arrays/places.py)."""
    return value if isinstance(value, QuantizedTensor) else see(place, name, value)


def _check_beside_codes(name: str, array: Any) -> None:
    """Arrays beside quantised ones have float32 or 16 bits, because the layer is float32."""
    if isinstance(array, QuantizedTensor):
        return
    dtype = check_dtype(name, array)
    if dtype is not FLOAT32 and not is_narrow(dtype):
        raise TypeError(
            f"{name} has dtype {dtype_name(dtype)}; expected float32 or 16 bits beside quantised "
            f"weights"
        )


def _check_shape(name: str, array: Any, shape: tuple[int, ...], other: str, matrix: Any) -> None:
    """The shape of an argument has to match that of another one, a matrix."""
    meaning = _MEANING[name] if matrix.ndim == 2 else f"[n_experts, {_MEANING[name][1:]}"
    check_rank(name, array, len(shape), meaning)
    if isinstance(array, QuantizedTensor) and array.shape != shape:
        raise ValueError(
            f"{name} has shape {array.shape}; expected {shape} to match {other} {matrix.shape}"
        )
    check_shape(name, array, shape, f"to match {other} {matrix.shape}")


def check_expert(e: object, n_experts: int | None) -> int:
    """e as an int, checked to be the number of an existing expert."""
    if n_experts is None:
        raise ValueError("the weights are those of a single layer; expected weights of experts")
    if isinstance(e, bool) or not isinstance(e, (int, np.integer)):
        raise TypeError(f"e is of type {type(e).__name__}; expected the number of an expert")
    if not 0 <= e < n_experts:
        raise ValueError(f"e is {e}; expected an expert from 0 to {n_experts - 1}")
    return int(e)
