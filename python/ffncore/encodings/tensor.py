"""QuantizedTensor: one matrix, or those of E experts, in a format.

It holds the parts of its format (format.py): one array of bytes, as it stands in a file, or codes
beside scales. They are checked once, when the object is made, and not copied if they need not be.
The formats are imported when the first tensor is made. Tests: tests/encodings/test_tensor.py.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arrays.shapes import MAX_ELEMENTS, Array, MaybeArray, as_array, check_shape

if TYPE_CHECKING:
    from .format import Format, Parts
    from .grid import Planes, Products


class QuantizedTensor:
    """A quantised matrix [out, in], or one for each expert [n_experts, out, in].

    It is made by fc.quantize from numbers, by from_bytes from a block of bytes (the GGUF formats
    and mxfp4), and by from_parts from codes and scales (int8, int4, fp8_e4m3, nvfp4, nf4). It
    cannot be changed. It can be copied and pickled; tensor[e] is the matrix of one expert, and ==
    compares formats, shapes and stored numbers.

    The attributes are format, a name of fc.formats(), shape, and input_scale: None, or float32 [in]
    by which x is to be divided, with method="awq" of fc.quantize.

    >>> q = fc.quantize(np.ones((8, 64), "f4"), "q4_0")
    >>> q.format, q.shape, q.nbytes, q.bits_per_weight
    >>> q.dequantize().shape
    """

    __slots__ = ("_format", "_parts", "input_scale", "shape")

    shape: tuple[int, ...]
    input_scale: MaybeArray
    _format: Format
    _parts: Parts

    def __init__(self) -> None:
        raise TypeError(
            "QuantizedTensor cannot be constructed; expected fc.quantize, "
            "QuantizedTensor.from_bytes or QuantizedTensor.from_parts"
        )

    @classmethod
    def _make(
        cls,
        format: Format,
        shape: tuple[int, ...],
        parts: Parts,
        input_scale: MaybeArray = None,
    ) -> QuantizedTensor:
        made = object.__new__(cls)
        kept = {}
        for name, array in parts.items():
            kept[name] = view = array.view()
            view.flags.writeable = False
        for attribute, value in (
            ("_format", format),
            ("shape", shape),
            ("_parts", kept),
            ("input_scale", input_scale),
        ):
            object.__setattr__(made, attribute, value)
        return made

    @classmethod
    def from_bytes(
        cls, format: str, data: Any, shape: tuple[int, ...], *, name: str = "data"
    ) -> QuantizedTensor:
        """Make a tensor from the bytes of a file; they are not copied.

        format  a name of fc.formats() whose weights are one block of bytes: a GGUF format or mxfp4
        data    the bytes, row after row: bytes, another buffer, or a contiguous uint8 array. For
                q2_0 their number tells blocks of 64 weights from blocks of 128
        shape   (out, in) or (n_experts, out, in)
        name    what error messages call the data

        Raises ValueError if the number of bytes does not fit, if a row does not consist of whole
        blocks, and for scales that are infinite or NaN; TypeError for types.

        >>> q = fc.QuantizedTensor.from_bytes("q8_0", bytes(34 * 8), (8, 32))
        """
        found = _format(format)
        if "blocks" not in found.takes:
            raise ValueError(
                f"format {format!r} consists of {', '.join(found.takes)}; expected "
                f"QuantizedTensor.from_parts"
            )
        return cls._checked(found, shape, {"blocks": _bytes_of(name, data)}, name)

    @classmethod
    def from_parts(
        cls,
        format: str,
        shape: tuple[int, ...],
        *,
        codes: Array,
        scales: Array,
        zeros: MaybeArray = None,
        g_idx: MaybeArray = None,
        global_scale: Any = None,
        name: str = "q",
    ) -> QuantizedTensor:
        """Make a tensor from codes, one for each weight, and the arrays beside them.

        format        "int8", "int4", "fp8_e4m3", "nvfp4" or "nf4"
        shape         (out, in) or (n_experts, out, in); all arrays begin with n_experts, too
        codes         [out, in]: int8 for int8, uint8 for the others; 0 to 15 for those of 4 bits.
                      Codes of fp8_e4m3 may be a float8_e4m3fn of ml_dtypes
        scales        of int8 and int4: [out, groups], [out] or one number. Of fp8_e4m3: one number,
                      [out], or [out / 128, in / 128], rounded up, for blocks. Of nvfp4: [out,
                      in / 16], codes of E4M3. Of nf4: one for every 64 weights
        zeros         of int8 and int4, like scales: integers, or fractions as HQQ has them. None:
                      0 for int8, 8 for int4
        g_idx         of int8 and int4: [in], the group of each input. None: groups are neighbours
        global_scale  of nvfp4: one number, by which scales are divided
        name          what error messages call the tensor

        The weights are scales (value of the code - zeros). float32 and 16-bit scales keep their
        dtype.

        Raises ValueError for shapes and values, scales that are infinite or NaN and codes that are
        NaN; TypeError for types and dtypes.

        >>> q = fc.QuantizedTensor.from_parts(
        ...     "int8", (8, 4), codes=np.ones((8, 4), "i1"), scales=np.ones(8, "f4"))
        """
        found = _format(format)
        if "blocks" in found.takes:
            raise ValueError(
                f"format {format!r} is one block of bytes; expected QuantizedTensor.from_bytes"
            )
        if global_scale is not None and not isinstance(global_scale, np.ndarray):
            global_scale = np.asarray(global_scale, np.float32)
        given = {"codes": codes, "scales": scales, "zeros": zeros, "g_idx": g_idx}
        given["global_scale"] = global_scale
        given = {part: value for part, value in given.items() if value is not None}
        for part, needed in found.takes.items():
            if needed and part not in given:
                raise ValueError(f"{part} is None; expected an array for format {format!r}")
        for part in given:
            if part not in found.takes:
                raise ValueError(f"{part} is given; expected None for format {format!r}")
        return cls._checked(found, shape, given, name)

    @classmethod
    def _checked(
        cls, format: Format, shape: object, given: dict[str, Any], name: str
    ) -> QuantizedTensor:
        checked = _check_shape(shape, name)
        blocks = given.get("blocks")
        for variant in getattr(format, "variants", ()):
            # Where no block size fits, the error is that of the first.
            if blocks is not None and variant.holds(blocks.size, checked):
                format = variant
        return cls._make(format, checked, format.check(checked, given, name))

    @property
    def format(self) -> str:
        """The name of the format."""
        return self._format.name

    @property
    def nbytes(self) -> int:
        """The number of bytes of codes, scales and all else that the format stores."""
        return sum(array.nbytes for array in self._parts.values())

    @property
    def bits_per_weight(self) -> float:
        """8 nbytes / the number of weights."""
        return 8 * self.nbytes / math.prod(self.shape)

    @property
    def ndim(self) -> int:
        """2, or 3 for experts."""
        return len(self.shape)

    def dequantize(self) -> Array:
        """Return the weights as a new float32 array of this shape.

        They have the bits that other readers of the format give.
        """
        from .grid import dequantized

        g_idx = self._parts.get("g_idx")
        if g_idx is not None and g_idx.ndim > 1:
            return np.stack([self[e].dequantize() for e in range(self.shape[0])])
        return dequantized(self._planes()).reshape(self.shape)

    def to_bytes(self) -> bytes:
        """Return the bytes of a file: those that from_bytes takes.

        Those of tq1_0 are in one form, because several bytes can mean the same five digits. Raises
        ValueError for formats of several arrays, which have parts.
        """
        if "blocks" not in self._parts:
            raise ValueError(
                f"format {self.format!r} consists of {', '.join(self._parts)}; expected parts()"
            )
        return self._format.to_bytes(self._parts)

    def parts(self) -> dict[str, Array]:
        """Return a dict from names to arrays: the arguments of from_parts that this tensor has.

        For a format that is one block of bytes it is {"blocks": uint8 [..., out, bytes of a row]}.
        Scales and zeros are [..., R, C], where R and C may be 1 for one number.
        """
        return self._format.extract(self.shape, self._parts)

    def _planes(self) -> Planes:
        return self._format.planes(self.shape, self._parts)

    def _has_rows_of_groups(self) -> bool:
        """Whether the groups of each row are neighbours, and begin and end with the row."""
        if "g_idx" in self._parts:
            return False
        return self.format != "nf4" or self.shape[-1] % self._format.info.group == 0  # type: ignore[operator]

    def _rows(self) -> tuple[Planes, Products]:
        """The planes with a row for each output, and the numbers that are products."""
        planes = self._planes()
        out = math.prod(self.shape[:-1])
        if len(planes.codes) != out:  # nf4
            grid = planes.grid.each(lambda a: a.reshape(out, -1))
            planes = planes._replace(codes=planes.codes.reshape(out, -1), grid=grid)
        return planes, self._format.products(self.shape, self._parts)

    def __getitem__(self, e: int) -> QuantizedTensor:
        if self.ndim != 3:
            raise TypeError("the tensor is one matrix; expected one of experts for an index")
        index = range(self.shape[0])[e]
        parts = {
            name: a if name == "g_idx" and a.ndim == 1 else a[index]
            for name, a in self._parts.items()
        }
        return self._make(self._format, self.shape[1:], parts, self.input_scale)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, QuantizedTensor):
            return NotImplemented
        if self.shape != other.shape or self._format is not other._format:
            return False
        scales = self.input_scale, other.input_scale
        if (scales[0] is None) != (scales[1] is None) or not np.array_equal(*scales):  # type: ignore[arg-type]
            return False
        if "blocks" in self._parts:
            return self.to_bytes() == other.to_bytes()
        a, b = self.parts(), other.parts()
        return a.keys() == b.keys() and all(np.array_equal(a[n], b[n]) for n in a)

    __hash__ = None  # type: ignore[assignment]

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"QuantizedTensor cannot be changed; {name} was assigned to")

    def __copy__(self) -> QuantizedTensor:
        made = object.__new__(type(self))
        for attribute in self.__slots__:
            object.__setattr__(made, attribute, getattr(self, attribute))
        return made

    def __reduce__(self) -> Any:
        return _remade, (self.format, self.shape, self._parts, self.input_scale)

    def __repr__(self) -> str:
        return (
            f"QuantizedTensor({self.format}, {self.shape}, {self.bits_per_weight:.4g} bits per "
            f"weight)"
        )


def _remade(
    format: str, shape: Any, parts: dict[str, Any], input_scale: MaybeArray
) -> QuantizedTensor:
    if "blocks" in parts:
        made = QuantizedTensor.from_bytes(format, parts["blocks"], shape)
    else:
        stored: Any = _format(format).extract(_check_shape(shape, "q"), parts)
        made = QuantizedTensor.from_parts(format, shape, **stored)
    if input_scale is not None:
        check_shape("input_scale", as_array("input_scale", input_scale), shape[-1:], "to match q")
    return made._make(made._format, made.shape, made._parts, input_scale)


def _format(value: object) -> Format:
    from .table import format_of

    return format_of(value)


def _check_shape(shape: object, name: str) -> tuple[int, ...]:
    sizes = tuple(shape) if isinstance(shape, (tuple, list)) else None
    if sizes is None or not all(
        isinstance(n, (int, np.integer)) and not isinstance(n, bool) for n in sizes
    ):
        raise TypeError(f"shape of {name} is {shape!r}; expected a tuple of integers")
    if len(sizes) not in (2, 3) or min(sizes) < 1:
        raise ValueError(
            f"shape of {name} is {sizes}; expected (out, in) or (n_experts, out, in) of at least 1"
        )
    if math.prod(map(int, sizes)) > MAX_ELEMENTS:
        raise ValueError(f"shape of {name} is {sizes}; expected at most {MAX_ELEMENTS} weights")
    return tuple(map(int, sizes))


def _bytes_of(name: str, data: Any) -> Array:
    if isinstance(data, np.ndarray):
        array = as_array(name, data)
        if array.dtype != np.uint8:
            raise TypeError(f"{name} has dtype {array.dtype}; expected uint8")
        return np.ascontiguousarray(array).reshape(-1)
    try:
        return np.frombuffer(data, np.uint8)
    except (TypeError, AttributeError, BufferError):
        raise TypeError(
            f"{name} is of type {type(data).__name__}; expected bytes, or a uint8 array"
        ) from None
    except ValueError:  # numpy refuses to read no bytes
        return np.empty(0, np.uint8)
