"""fc.quantize: quantised weights from numbers, for one matrix or all matrices of a layer.

    w [out, in] or [n_experts, out, in]   ->  QuantizedTensor
    FFNWeights                            ->  FFNWeights whose matrices are QuantizedTensors

Each matrix, and each expert, is quantised by itself, but AWQ searches the scales of inputs that
matrices share. Tests: tests/quantisation/test_quantize.py, tests/quantisation/test_methods.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ..arrays.dtypes import FLOAT32, rounded
from ..arrays.scalars import nearest
from ..arrays.shapes import Array, MaybeArray
from ..encodings.format import Parts
from ..encodings.tensor import QuantizedTensor
from ..runtime.progress import steps
from ..values.packed import PackedWeights
from ..values.weights import FFNWeights
from .awq import EXPONENTS, input_scale
from .calibration import Calibration, calibrations, check_calibration
from .gptq import gptq, gptq_steps
from .hqq import hqq, hqq_steps
from .layer import check_layer, layer_calibrations, linear_in_up, with_matrices
from .matrix import Task, as_float32, check_matrix, check_task, no_step, rtn

Known = list[Calibration] | None
Step = Callable[[], None]


class Method(NamedTuple):
    """A quantiser, whether it needs to know inputs, whether it scales them first, and how many
    steps it takes for a matrix [rows, k].
    """

    choose: Callable[[Task, Array, Calibration | None, Step], tuple[Parts, Array]]
    needs_inputs: bool = False
    scales_inputs: bool = False
    steps: Callable[[Task, int, int], int] = lambda _task, _rows, _k: 1


METHODS = {
    "rtn": Method(rtn),
    "awq": Method(rtn, needs_inputs=True, scales_inputs=True),
    "gptq": Method(gptq, needs_inputs=True, steps=gptq_steps),
    "hqq": Method(hqq, steps=hqq_steps),
}


def quantize(
    w: Array | FFNWeights,
    format: str | Mapping[str, str],
    *,
    method: str = "rtn",
    inputs: Any = None,
    second_moment: Any = None,
    activation: Any = None,
    scale: str = "group",
    group: int | None = None,
) -> Any:
    """Quantise weights: a matrix, or the matrices of a layer.

    w        [out, in] or [n_experts, out, in], of any supported dtype; or FFNWeights
    format   a name of fc.formats(). For FFNWeights also a mapping from field names to formats, such
             as {"up": "q4_k", "down": "q6_k"}; a field that it leaves out stays as it is
    method   "rtn": each weight becomes the nearest code of its group, whose scale minimises the
             squared error of the weights
             "gptq": columns are rounded one after the other, and later ones make up for the error
             "awq": rtn of w s with the best scale s [in] of the inputs; x has to be divided by it
             "hqq": rtn with zeros that are fractions; only int4
    inputs   for gptq and awq: rows of inputs [tokens, in]. Of FFNWeights those of x, or a mapping
             such as {"up": x, "down": h}; of experts also with a leading dimension n_experts
    second_moment  in place of inputs: X^T X of the inputs X, [in, in], likewise
    activation     of FFNWeights: that of the layer, from which the inputs of down are computed; awq
                   also needs it for down
    scale    "group": the format's own groups; "channel": one scale for each output (int4 and
             fp8_e4m3); "tensor": one for the matrix (fp8_e4m3, int8, and the formats of one bit and
             ternary weights, where it is the mean magnitude, as in BitNet b1.58)
    group    the number of weights that share a scale of int4; None: 128

    Returns a QuantizedTensor, or FFNWeights whose matrices are QuantizedTensors. Biases stay as
    they are.

    With awq the result has an input_scale, [in] or [d_model], by which x has to be divided before
    each call, most cheaply in the gain of the norm before the layer. gate and up share it, so that
    both have to be quantised. The scale of the inputs of down goes into the rows of up; where the
    hidden units are not linear in up (no gate, limit, up_offset or up_softcap) down is rounded to
    nearest.

    On a terminal a progress bar is drawn after two seconds, if tqdm is installed.

    Raises ValueError for shapes, names and options that the format does not have, for rows that do
    not consist of whole groups, and for numbers that are not finite; TypeError for types.

    See also: fc.formats, fc.QuantizedTensor, fc.fake_quantize.

    >>> q = fc.quantize(np.ones((8, 64), "f4"), "q4_0")
    >>> wq = fc.quantize(weights, {"up": "int8", "down": "fp8_e4m3"})
    >>> wq = fc.quantize(weights, "int8", method="gptq", inputs=x, activation="silu")
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r} is not known; {nearest(str(method), METHODS)}")
    how = METHODS[method]
    given = check_calibration(method, inputs, second_moment, how.needs_inputs)
    if isinstance(w, (FFNWeights, PackedWeights)):
        layer, formats = check_layer(w, format)
        tasks = {name: check_task(f"w.{name}", f, scale, group) for name, f in formats.items()}
        known = layer_calibrations(layer, tuple(tasks), given, activation) if given else {}
        make = _awq_layer if how.scales_inputs else _layer
        linear = how.scales_inputs and linear_in_up(layer, activation)
        searched = [name for name in tasks if how.scales_inputs and (name != "down" or linear)]
        step = _bar(how, [(t, layer.arrays()[n], n in searched) for n, t in tasks.items()])
        return make(layer, tasks, how, known, activation, step)
    matrix, task = check_matrix("w", w), check_task("w", format, scale, group)
    if activation is not None:
        raise ValueError("activation is given; expected None for a single matrix")
    n = len(matrix) if matrix.ndim == 3 else None
    own = calibrations(given[0], *given, matrix.shape[-1], n) if given else None
    step = _bar(how, [(task, matrix, how.scales_inputs)])
    s = _input_scale([(task, matrix, own)], step) if how.scales_inputs else None
    return tensor_of(matrix, task, how, own, s, step)


def _bar(how: Method, matrices: list[tuple[Task, Array, bool]]) -> Step:
    """A progress bar for the steps of tasks and matrices, of which some are searched by AWQ."""
    total = 0
    for task, w, searched in matrices:
        each = how.steps(task, *w.shape[-2:]) + (len(EXPONENTS) if searched else 0)
        total += each * (len(w) if w.ndim == 3 else 1)
    return steps(total, "quantize", "step")


def tensor_of(
    w: Array,
    task: Task,
    how: Method = METHODS["rtn"],
    known: Known = None,
    s: MaybeArray = None,
    step: Step = no_step,
) -> QuantizedTensor:
    """The tensor of a matrix, or of each expert's; s: the scale of its inputs."""
    made: list[Parts] = []
    for e, (own, matrix) in enumerate(_matrices(task, w)):
        scaled = matrix if s is None else matrix * s
        choice, codes = how.choose(own, scaled, known[e] if known else None, step)
        made.append(task.format.build(matrix.shape, choice, codes))
    parts = {n: np.stack([m[n] for m in made]) if w.ndim == 3 else made[0][n] for n in made[0]}
    return QuantizedTensor._make(task.format, w.shape, parts, s)


def _matrices(task: Task, w: Array) -> Iterator[tuple[Task, Array]]:
    """The matrix of each expert as float32, one in memory at a time, with a task that names it."""
    if w.ndim == 2:
        yield task, as_float32(task.name, w)
        return
    for e, matrix in enumerate(w):
        own = replace(task, name=f"{task.name}[{e}]")
        yield own, as_float32(own.name, matrix)


def _layer(
    layer: FFNWeights,
    tasks: dict[str, Task],
    how: Method,
    known: dict[str, Any],
    _: Any,
    step: Step,
) -> FFNWeights:
    arrays = layer.arrays()
    made = {n: tensor_of(arrays[n], t, how, known.get(n), None, step) for n, t in tasks.items()}
    return with_matrices(layer, made)


def _awq_layer(
    layer: FFNWeights,
    tasks: dict[str, Task],
    how: Method,
    known: dict[str, Any],
    activation: Any,
    step: Step,
) -> FFNWeights:
    first = [name for name in ("gate", "up") if name in layer.arrays()]
    if not set(first) <= set(tasks):
        raise ValueError(
            f"format has {', '.join(tasks)}; expected {' and '.join(first)}, too, because method "
            f"'awq' scales their inputs"
        )
    arrays: dict[str, Any] = layer.arrays()
    if "down" in tasks and linear_in_up(layer, activation):
        # One scale for each expert: [..., d_ff], into the columns of down and the rows of up.
        down = arrays["down"]
        lead = down if down.ndim == 3 else down[None]
        scales = [
            _input_scale([(tasks["down"], w, [c])], step)
            for w, c in zip(lead, known["down"], strict=True)
        ]
        s = np.stack(scales) if down.ndim == 3 else scales[0]
        arrays["down"] = rounded(down, FLOAT32) * s[..., None, :]
        arrays["up"] = rounded(arrays["up"], FLOAT32) / s[..., None]
        if "b_up" in arrays:
            arrays["b_up"] = (rounded(arrays["b_up"], FLOAT32) / s).astype(arrays["b_up"].dtype)
    of_x = _input_scale([(tasks[name], arrays[name], known[name]) for name in first], step)
    return with_matrices(
        layer,
        arrays
        | {
            name: tensor_of(arrays[name], task, how, None, of_x if name in first else None, step)
            for name, task in tasks.items()
        },
    )


def _input_scale(cases: list[tuple[Task, Array, Known]], step: Step) -> Array:
    return input_scale(
        [
            (own, matrix, calibration)
            for task, w, known in cases
            for (own, matrix), calibration in zip(_matrices(task, w), known or (), strict=True)
        ],
        step,
    )
