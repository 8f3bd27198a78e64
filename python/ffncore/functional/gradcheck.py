"""Central differences against an explicit backward pass.

For a loss L = sum(g * y) with a fixed random g, a backward pass must give dL/da for every array a.
Here each entry of a is moved by +-h and the difference of the two y is weighed with g:

    dL/da_i ~ sum(g * (y(a + h e_i) - y(a - h e_i))) / 2h

The truncation error is h^2 f''' / 6, the rounding error about 1e-16 |y| / h; h = 6e-6, the cube
root of float64's epsilon, balances them and leaves some ten digits. The error of an array is
measured against its gradient's largest entry. In an array that is too large to move each entry, a
sample of entries is moved, the one with the largest gradient among them, and then the whole array
at once in a random direction of +-1, in which every entry takes part.

Tests: tests/functional/test_gradients.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays.dtypes import FLOAT64, dtype_name
from ..arrays.shapes import Array, as_array, check_shape
from ..values.saved import MoESaved, Saved
from .dense import ffn_backward
from .mixtures import moe_backward

STEP = 6e-6

Key = str | int


@dataclass(frozen=True)
class GradientError:
    """The worst entry of one array: index is () for the random direction."""

    error: float  # |backward - numeric| / largest entry of the gradient
    index: tuple[int, ...]
    backward: float
    numeric: float
    checked: int  # entries that were moved one by one


class GradientReport(dict[Key, GradientError]):
    """GradientError by the array's name or number; print it for a table."""

    @property
    def max_error(self) -> float:
        """The largest error of all arrays, 0 without any."""
        return max((entry.error for entry in self.values()), default=0.0)

    def __str__(self) -> str:
        lines = [f"{'array':>10} {'error':>9} {'backward':>15} {'numeric':>15}  at, of"]
        for key, e in self.items():
            place = str(e.index) if e.index else "a direction"
            lines.append(
                f"{key!s:>10} {e.error:9.1e} {e.backward:15.8e} {e.numeric:15.8e}  "
                f"{place}, {e.checked} entries"
            )
        return "\n".join(lines)


def check_gradients(
    fn: Callable[..., tuple[Any, Any]],
    arrays: Sequence[Array | None] | Mapping[str, Array | None],
    *,
    wrt: Iterable[Key] | None = None,
    tolerance: float | None = 1e-7,
    step: float = STEP,
    samples: int = 64,
    seed: int = 0,
) -> GradientReport:
    """Checks fn's backward pass at `arrays`, float64; raises AssertionError beyond `tolerance`.

    fn         takes the arrays (a sequence: fn(*arrays), a mapping: fn(**arrays)) and returns y, an
               array or a number, and either a function grad_y -> gradients, or what
               fc.ffn_forward, fc.moe_forward or fc.MoE.forward saved. Gradients come as a mapping
               with the names of arrays, as a sequence in the order of arrays (None left out or
               not), as one array where there is one, or as what a backward pass of this package
               gives: x, gate, up, down and the biases by name or in this order; of fc.MoE
               x, router_weight, "experts.up" and so on.
    arrays     copied, never changed. None stands for an argument that is absent.
    wrt        names or numbers of those to check; default: all
    tolerance  of the largest entry of each gradient; None: report only
    step       h; an entry a is moved by h * max(1, |a|), which must not cross a kink
    samples    an array with more entries is checked at that many, and in one random direction

    >>> def layer(x, up, down):
    ...     w = fc.FFNWeights(up=up, down=down)
    ...     return fc.ffn_forward(x, w, activation="gelu")
    >>> print(fc.check_gradients(layer, {"x": x, "up": up, "down": down}))
    """
    named = isinstance(arrays, Mapping)
    copies: dict[Key, Array | None] = {
        key: None if value is None else _copy(key, value)
        for key, value in (arrays.items() if isinstance(arrays, Mapping) else enumerate(arrays))
    }

    def call() -> tuple[Array, Any]:
        result: Any = fn(**copies) if named else fn(*copies.values())  # type: ignore[arg-type]
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError("fn returned no pair; expected (y, backward) or (y, saved)")
        y, backward = result
        if isinstance(y, (float, np.floating)):  # a loss
            y = np.asarray(y)
        return as_array("fn's y", y), backward

    rng = np.random.default_rng(seed)
    y, backward = call()
    if y.dtype != FLOAT64:
        raise TypeError(f"fn's y has dtype {dtype_name(y.dtype)}; expected float64")
    grad_y = np.asarray(rng.standard_normal(y.shape))
    present = [key for key, value in copies.items() if value is not None]
    gradients = _gradients(backward, grad_y, list(copies), present)
    report = GradientReport()
    for key in list(copies) if wrt is None else list(wrt):
        if key not in copies:
            raise ValueError(f"wrt has {key!r}; expected one of {[*copies]}")
        array = copies[key]
        if array is None:
            continue
        if gradients.get(key) is None:
            raise ValueError(f"the backward pass gave no gradient for {key!r}; expected an array")
        gradient = np.array(gradients[key], dtype=np.float64, copy=True)
        check_shape(f"the gradient of {key!r}", gradient, array.shape, "to match the array")

        def loss_difference(a: Array, moved: Array, h: Array | float, original: Array) -> float:
            """g * (y(a + h) - y(a - h)) at the places `moved`, which are put back."""
            a[moved] = original + h
            above = call()[0].copy()
            a[moved] = original - h
            below = call()[0]
            a[moved] = original
            return float(np.sum(grad_y * (above - below)))

        report[key] = _compare(array, gradient, loss_difference, step, samples, rng)
    if tolerance is not None:
        for key, entry in report.items():
            if not entry.error <= tolerance:
                raise AssertionError(
                    f"the gradient of {key!r} at {entry.index or 'a random direction'} is "
                    f"{entry.backward:.9e}; central differences give {entry.numeric:.9e} "
                    f"(error {entry.error:.1e} of the largest entry, allowed {tolerance:.1e}; a "
                    f"kink of the function, like that of relu at 0, may lie within the step)"
                )
    return report


def _copy(key: Key, value: object) -> Array:
    array = as_array(f"arrays[{key!r}]", value)
    if array.dtype != FLOAT64:
        raise TypeError(
            f"arrays[{key!r}] has dtype {dtype_name(array.dtype)}; expected float64, because "
            f"differences need its digits"
        )
    return np.array(array, order="C", copy=True)


def _gradients(backward: Any, grad_y: Array, keys: list[Key], present: list[Key]) -> dict[Key, Any]:
    """The backward pass's answer, by name or number."""
    answer: Any
    if isinstance(backward, Saved):
        passes = moe_backward if isinstance(backward, MoESaved) else ffn_backward
        answer = passes(grad_y, backward)  # type: ignore[arg-type]
    elif hasattr(backward, "layer"):  # of a layer object, which knows its backward pass
        answer = backward.layer.backward(grad_y, backward)
    else:
        if not callable(backward):
            raise TypeError(
                f"fn's second result is of type {type(backward).__name__}; expected a function of "
                f"grad_y, or what a forward pass of ffncore saved"
            )
        answer = backward(grad_y)
    if hasattr(answer, "arrays"):
        answer = answer.arrays()
        if isinstance(keys[0], int):
            answer = list(answer.values())
    if isinstance(answer, Mapping):
        return dict(answer)
    if isinstance(answer, np.ndarray):
        answer = [answer]
    if len(answer) not in (len(keys), len(present)):
        raise ValueError(
            f"the backward pass gave {len(answer)} gradients; expected {len(present)}, one an array"
        )
    return dict(zip(keys if len(answer) == len(keys) else present, answer, strict=True))


def _compare(
    array: Array,
    gradient: Array,
    loss_difference: Callable[[Array, Any, Any, Any], float],
    step: float,
    samples: int,
    rng: np.random.Generator,
) -> GradientError:
    if array.size == 0:
        return GradientError(0.0, (), 0.0, 0.0, 0)
    size = np.abs(gradient)
    # A gradient of zeros is compared with 1.
    largest = float(size.max()) or 1.0
    if array.size <= samples:
        places = np.arange(array.size)
    else:
        places = rng.choice(array.size, size=samples, replace=False)
        places[0] = size.argmax()
    worst = GradientError(-1.0, (), 0.0, 0.0, 0)
    for place in places:
        index = tuple(int(i) for i in np.unravel_index(place, array.shape))
        original = float(array[index])
        h = step * max(1.0, abs(original))
        numeric = loss_difference(array, index, h, original) / (2 * h)
        exact = float(gradient[index])
        error = abs(exact - numeric) / largest
        if _is_worse(error, worst.error):
            worst = GradientError(error, index, exact, numeric, len(places))
    if array.size > len(places):
        direction = rng.choice([-1.0, 1.0], size=array.shape)
        original_array = array.copy()
        # All entries move: a shorter step, so that y moves as much as for one entry.
        h = step / np.sqrt(array.size)
        numeric = loss_difference(array, ..., h * direction, original_array) / (2 * h)
        exact = float(np.sum(gradient * direction))
        # The sum's own size is that of the gradient's norm.
        error = abs(exact - numeric) / max(largest, float(np.linalg.norm(gradient)))
        if _is_worse(error, worst.error):
            worst = GradientError(error, (), exact, numeric, len(places))
    return worst


def _is_worse(error: float, than: float) -> bool:
    """NaN is the worst."""
    return not np.isnan(than) and not error <= than
