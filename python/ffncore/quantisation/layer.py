"""The matrices of a layer: which of them get which format, and the layer of the results.

Tests: tests/quantisation/test_layers.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..arrays.scalars import check_names
from ..encodings.tensor import QuantizedTensor
from ..values.packed import PackedWeights, check_weights
from ..values.weights import NAMES, FFNWeights

MATRICES = NAMES[:3]


def check_layer(weights: object, format: object) -> tuple[FFNWeights, dict[str, Any]]:
    """The weights of a call, and the formats of the matrices that are to be quantised, by name."""
    w = check_weights(weights)
    if isinstance(w, PackedWeights):
        raise TypeError("w is of type PackedWeights; expected FFNWeights (packed.unpack())")
    if w._place is not None:
        raise TypeError(f"w.up is {w._place}; expected numpy arrays")
    exist = tuple(name for name in MATRICES if getattr(w, name) is not None)
    if isinstance(format, Mapping):
        names = check_names("format", tuple(format), MATRICES)
        missing = [name for name in names if name not in exist]
        if missing:
            raise ValueError(f"format has {missing[0]!r}, but w has no {missing[0]}")
        formats = dict(format)
    else:
        formats = dict.fromkeys(exist, format)
    for name in formats:
        if isinstance(getattr(w, name), QuantizedTensor):
            raise TypeError(
                f"w.{name} is quantised already; expected an array ({name} left out of format "
                f"stays as it is)"
            )
    return w, formats


def with_matrices(weights: FFNWeights, made: Mapping[str, Any]) -> FFNWeights:
    return FFNWeights(**{**weights.arrays(), **made})
