"""The matrices of a layer: their formats, their inputs, and AWQ's scales between them.

gate and up have the inputs x, down has the hidden units h. For AWQ, s of the hidden units goes into
the rows of up, which is exact where h is linear in up:

    h down^T = (h / s) (down s)^T        h / s = act(gate) (up / s)

s of x is for gate and up together, and is left to the caller: input_scale. Experts have the same x,
so that they have one scale of it. Tests: tests/quantisation/test_layers.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..arrays.dtypes import FLOAT32, rounded
from ..arrays.scalars import check_names
from ..arrays.shapes import Array
from ..encodings.tensor import QuantizedTensor
from ..functional.dense import ffn_forward
from ..functional.elementwise import activation as activation_of
from ..values.activation import Activation, as_activation
from ..values.packed import PackedWeights, check_weights
from ..values.weights import NAMES, FFNWeights
from .calibration import Calibration, calibrations

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


def layer_calibrations(
    w: FFNWeights, names: tuple[str, ...], given: tuple[str, Any], activation: Any
) -> dict[str, list[Calibration]]:
    """For each matrix the calibrations of its experts, or one.

    given  "inputs" or "second_moment" and its value: an array for x, or a mapping from the names of
           matrices to arrays; gate and up may stand for each other
    """
    kind, value = given
    arrays: dict[str, Any] = dict(value) if isinstance(value, Mapping) else {"up": value}
    check_names(kind, tuple(arrays), MATRICES)
    for name, other in (("gate", "up"), ("up", "gate")):
        if name not in arrays and other in arrays:
            arrays[name] = arrays[other]
    if "down" in names and "down" not in arrays:
        if kind != "inputs" or activation is None or "up" not in arrays:
            raise ValueError(
                f"{kind} has no entry for down, and activation is {activation!r}; expected inputs "
                f"of x and the activation of the layer, or {kind}={{'up': ..., 'down': ...}}"
            )
        inputs = calibrations(kind, kind, arrays["up"], w.d_model, w.n_experts)
        arrays["down"] = _hidden(w, [c.rows for c in inputs], as_activation(activation))
    missing = [name for name in names if name not in arrays]
    if missing:
        raise ValueError(f"{kind} has no entry for {missing[0]}; expected one")
    sizes = {"gate": w.d_model, "up": w.d_model, "down": w.d_ff}
    return {
        name: calibrations(
            kind,
            f"{kind}[{name!r}]" if isinstance(value, Mapping) else kind,
            arrays[name],
            sizes[name],
            w.n_experts,
        )
        for name in names
    }


def _hidden(w: FFNWeights, rows: list[Any], activation: Activation) -> Array:
    """The hidden units of rows of x: [tokens, d_ff], of experts [n_experts, tokens, d_ff]."""
    found = []
    for e, x in enumerate(rows):
        block = (w if w.n_experts is None else w.expert(e)).dequantize()
        wide = FFNWeights(**{n: rounded(a, FLOAT32) for n, a in block.arrays().items()})
        _, saved = ffn_forward(x, wide, activation=activation)
        gate, up = saved.gate, saved.up
        if gate is None:
            assert up is not None
            gate, up = up, None
        found.append(activation_of(gate, up, activation=activation))
    return found[0] if w.n_experts is None else np.stack(found)


def linear_in_up(w: FFNWeights, activation: Any) -> bool:
    """Whether scaling up scales the hidden units."""
    if not w.gated or activation is None:
        return False
    act = as_activation(activation)
    return act.limit is None and act.up_softcap is None and act.up_offset == 0
