"""Packed weights: a copy in the layout that the kernels read, made once and used in many calls.

    one layer   one buffer of bytes
    experts     one buffer; expert e starts at byte e * stride and has the layout of a single layer

The stride is the size of one expert, rounded up to a cache line. So kernels read an expert as they
read a dense layer, and expert(e) is a view. If the matrices have 16 bits, the biases are packed as
float32. csrc/ops knows the layout within a layer; here it is only bytes.

Tests: tests/values/test_packed.py.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np

from .. import _core
from ..arrays.dtypes import FLOAT32, as_dtype
from ..arrays.memory import LINE, Memory
from ..arrays.shapes import Array, MaybeArray
from ..encodings.tensor import QuantizedTensor
from .copied import Copied
from .packed_file import write
from .weights import NAMES, Call, FFNWeights, check_expert


class PackedSizes(NamedTuple):
    """The sizes that belong to a packed buffer."""

    d_model: int
    d_ff: int
    gated: bool
    b_gate: bool  # whether the layer has this bias
    b_up: bool
    b_down: bool
    n_experts: int | None = None  # None: a single layer
    stride: int = 0  # bytes from one expert to the next

    def stored(self) -> tuple[int, ...]:
        """The entries that files and pickles have; for a single layer without the last two."""
        return tuple(self if self.n_experts is not None else self[:_FLAGS])  # type: ignore[arg-type]

    def of_one(self) -> PackedSizes:
        """The sizes of one expert."""
        return self._replace(n_experts=None, stride=0)


# Entries of PackedSizes that a single layer has.
_FLAGS = 6


class PackedWeights(Copied):
    """Weights in the layout that the kernels read, made by fc.pack or fc.load_packed.

    Packed weights are accepted wherever FFNWeights are, give the same bits, and are faster. A
    backward pass through them computes gradients of x (and of the routing weights), but none of the
    weights. They cannot be changed. The layout is the same for every instruction set.

    Quantised weights are packed as codes. Then dtype is float32, in which the layer is computed,
    and formats maps "gate", "up" and "down" to their formats.

    dtype is the dtype of the matrices. If it has 16 bits, x may be float32, too, and a call reads
    half as many bytes as with float32 weights.

    >>> p = fc.pack(weights)
    >>> y = fc.ffn(x, p, activation="silu")
    """

    __slots__ = (
        *("_biases", "_buffer", "_call", "_sizes", "_struct", "_up_shape", "dtype", "formats"),
    )

    dtype: np.dtype[Any]  # of the matrices
    formats: dict[str, str]  # of quantised matrices, by field; else empty
    _biases: dict[str, np.dtype[Any]]  # dtypes of the original biases, for unpack
    _buffer: Array
    _sizes: PackedSizes
    _struct: _core.Weights  # what calls take
    _up_shape: tuple[int, ...]
    _call: Call | None  # None: ffn's fast path does not apply

    def __init__(self) -> None:
        raise TypeError("PackedWeights cannot be constructed; expected a call of fc.pack(weights)")

    @classmethod
    def _make(
        cls,
        buffer: Array,
        sizes: PackedSizes,
        biases: dict[str, np.dtype[Any]],
        dtype: np.dtype[Any],
        formats: dict[str, str] | None = None,
    ) -> PackedWeights:
        made = object.__new__(cls)
        d, f, gated = sizes.d_model, sizes.d_ff, sizes.gated
        struct = _core.Weights.packed(
            buffer,
            d_model=d,
            d_ff=f,
            gated=gated,
            n_experts=sizes.n_experts,
            stride=sizes.stride,
        )
        one = sizes.n_experts is None
        for name, value in (
            ("dtype", dtype),
            ("formats", formats or {}),
            ("_biases", biases),
            ("_buffer", buffer),
            ("_sizes", sizes),
            ("_struct", struct),
            ("_up_shape", (f, d) if one else (sizes.n_experts, f, d)),
            ("_call", Call(struct, dtype, (f, d), gated, (buffer,)) if one else None),
        ):
            object.__setattr__(made, name, value)
        return made

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"PackedWeights cannot be changed; {name} was assigned to")

    @property
    def nbytes(self) -> int:
        """The number of bytes of the packed memory."""
        return int(self._buffer.nbytes)

    @property
    def quantized(self) -> bool:
        """Whether the matrices are codes."""
        return bool(self.formats)

    @property
    def d_model(self) -> int:
        """The last dimension of x and y."""
        return self._sizes.d_model

    @property
    def d_ff(self) -> int:
        """The number of hidden units of the layer, or of each expert."""
        return self._sizes.d_ff

    @property
    def gated(self) -> bool:
        """Whether the layer has a gate."""
        return self._sizes.gated

    @property
    def n_experts(self) -> int | None:
        """The number of experts; None for a single layer."""
        return self._sizes.n_experts

    @property
    def shape(self) -> tuple[int, int]:
        """(d_ff, d_model), the shape of up; for experts, that of each of them."""
        return self.d_ff, self.d_model

    def expert(self, e: int) -> PackedWeights:
        """Return the packed weights of expert e, from 0 to n_experts - 1: a view of this memory.

        Raises ValueError if there is no such expert, and TypeError if e is not an integer.
        """
        e = check_expert(e, self.n_experts)
        stride = self._sizes.stride
        buffer = self._buffer[e * stride : (e + 1) * stride]
        sizes = self._sizes.of_one()
        return PackedWeights._make(buffer, sizes, self._biases, self.dtype, self.formats)

    def unpack(self) -> FFNWeights:
        """Return the packed numbers as FFNWeights of new arrays.

        Matrices have the dtype of the packed ones, biases the dtype that they had before packing.
        """
        d, f, n = self.d_model, self.d_ff, self.n_experts
        lead = () if n is None else (n,)
        shapes = {"up": (f, d), "down": (d, f)} | ({"gate": (f, d)} if self.gated else {})
        arrays = {name: np.empty(lead + shape, self.dtype) for name, shape in shapes.items()}
        for name, dtype in self._biases.items():
            arrays[name] = np.empty((*lead, d if name == "b_down" else f), dtype)
        weights = FFNWeights(**arrays)
        if n is None:
            _core.unpack(self._struct, weights._core_weights())
        for e in range(n or 0):
            _core.unpack(self.expert(e)._struct, weights.expert(e)._core_weights())
        return weights

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the packed weights to a file that fc.load_packed reads.

        An existing file is replaced as a whole: processes that have loaded the old one keep its
        numbers. Raises OSError if the file cannot be written.
        """
        biases = {name: dtype.name for name, dtype in self._biases.items()}
        sizes = list(self._sizes.stored())
        facts = {"sizes": sizes, "biases": biases, "dtype": self.dtype.name}
        write(path, self._buffer, facts | ({"formats": self.formats} if self.formats else {}))

    def _core_weights(self) -> _core.Weights:
        return self._struct

    def __repr__(self) -> str:
        kind = "gated" if self.gated else "plain"
        experts = "" if self.n_experts is None else f"{self.n_experts} experts, "
        types = ", ".join(dict.fromkeys(self.formats.values())) or self.dtype.name
        return f"PackedWeights({kind}, {experts}shape={self.shape}, {types}, {self.nbytes} bytes)"

    def _state(self) -> dict[str, Any]:
        biases = {name: dtype.name for name, dtype in self._biases.items()}
        state = {"memory": Memory(self._buffer), "sizes": self._sizes.stored(), "biases": biases}
        return state | {"dtype": self.dtype.name, "formats": self.formats}

    @classmethod
    def _remade(
        cls,
        memory: Memory,
        sizes: tuple[Any, ...],
        biases: dict[str, str],
        dtype: str,
        formats: dict[str, str] | None = None,
    ) -> PackedWeights:
        kind, (d, f, gated, *_) = as_dtype("dtype", dtype), sizes
        if formats:
            return cls._remade_codes(memory.array, sizes, sorted(biases), formats)
        shapes = {"up": (f, d), "down": (d, f)} | ({"gate": (f, d)} if gated else {})
        arrays = {name: np.broadcast_to(kind.type(0), shape) for name, shape in shapes.items()}
        for name, own in biases.items():
            number = as_dtype(name, own).type(0)
            arrays[name] = np.broadcast_to(number, d if name == "b_down" else f)
        n = sizes[_FLAGS] if len(sizes) > _FLAGS else None
        nbytes, expected, own_biases = layout_of(FFNWeights(**arrays), n, kind)
        # An expert's memory, a view of the whole buffer, extends to the next cache line.
        room = 1 if n is not None else LINE
        buffer = memory.array
        if (
            sizes != expected.stored()
            or not 0 <= buffer.nbytes - nbytes < room
            or buffer.dtype != np.uint8
        ):
            raise ValueError(
                f"packed weights have sizes {sizes} and {buffer.nbytes} bytes of {buffer.dtype}; "
                f"expected sizes {expected.stored()} and {nbytes} bytes of uint8"
            )
        return cls._make(buffer, expected, own_biases, kind)

    @classmethod
    def _remade_codes(
        cls, buffer: Array, stored: tuple[Any, ...], biases: list[str], formats: dict[str, str]
    ) -> PackedWeights:
        sizes = PackedSizes(*stored)
        n = 1 if sizes.n_experts is None else sizes.n_experts
        each = buffer.nbytes if sizes.n_experts is None else sizes.stride
        whole = buffer.dtype == np.uint8 and each > 0 and 0 <= buffer.nbytes - n * each < LINE
        if not whole or any(_core.header_bytes(buffer[e * each :]) > each for e in range(n)):
            raise ValueError(
                f"packed weights have sizes {stored} and {buffer.nbytes} bytes; expected those of "
                f"quantised weights"
            )
        known = {str(name): str(format) for name, format in formats.items()}
        return cls._make(buffer, sizes, dict.fromkeys(biases, FLOAT32), FLOAT32, known)


def check_weights(weights: object) -> FFNWeights | PackedWeights:
    """Check an argument that is to be weights, of one layer or of experts."""
    if isinstance(weights, PackedWeights):
        return weights
    if isinstance(weights, FFNWeights):
        if not hasattr(weights, "_views"):
            raise ValueError("weights are gradients, some of which are None; expected all of them")
        return weights
    layer = " (a layer object packs itself: layer.packed())" if hasattr(weights, "packed") else ""
    raise TypeError(
        f"weights is of type {type(weights).__name__}; expected FFNWeights or PackedWeights{layer}"
    )


def check_experts(weights: object) -> FFNWeights | PackedWeights:
    """Check an argument that is to be weights of experts."""
    checked = check_weights(weights)
    if checked.n_experts is None:
        raise ValueError(
            "weights are those of a single layer; expected weights of experts, with a leading "
            "dimension on every array"
        )
    return checked


def check_block(weights: object) -> FFNWeights | PackedWeights:
    """Check an argument that is to be weights of one layer."""
    checked = check_weights(weights)
    if checked.n_experts is not None:
        raise ValueError(
            f"weights are those of {checked.n_experts} experts; expected those of a single layer "
            f"(weights.expert(e)), or a call of fc.moe with a routing"
        )
    return checked


def layout_of(
    block: FFNWeights, n_experts: int | None, dtype: np.dtype[Any]
) -> tuple[int, PackedSizes, dict[str, np.dtype[Any]]]:
    """For n_experts layers like `block`, or one: the bytes of the buffer, the sizes that go with
    it, and the dtypes of the biases.
    """
    biases = {n: array.dtype for n in NAMES[3:] if (array := getattr(block, n)) is not None}
    sizes = sizes_of(block)
    nbytes = _core.packed_bytes(dtype.name, block._core_weights())
    if n_experts is not None:
        nbytes += -nbytes % LINE
        sizes = sizes._replace(n_experts=n_experts, stride=nbytes)
    return (n_experts or 1) * nbytes, sizes, biases


def sizes_of(weights: FFNWeights) -> PackedSizes:
    """The sizes of the layer, or of each expert, before they are packed."""
    biases = (getattr(weights, name) is not None for name in NAMES[3:])
    return PackedSizes(weights.d_model, weights.d_ff, weights.gated, *biases)


def weights_inputs(weights: FFNWeights | PackedWeights) -> list[tuple[str, MaybeArray]]:
    """The names and arrays of weights that an output must not overlap."""
    if isinstance(weights, PackedWeights):
        return [("the packed weights", weights._buffer)]
    return [
        (f"w.{name}", part)
        for name, array in weights._views.items()
        for part in (array._parts.values() if isinstance(array, QuantizedTensor) else (array,))
    ]
