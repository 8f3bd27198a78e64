"""fc.check_gradients: compares a backward pass with central differences.

For the loss L = sum(g * y) with a fixed random g, the backward pass has to return dL/da for every
array a. Here each entry of a is changed by h and by -h:

    dL/da_i ~ sum(g * (y(a + h e_i) - y(a - h e_i))) / 2h

The truncation error is h^2 f''' / 6, the rounding error about 1e-16 |y| / h. h = 6e-6, the cube
root of float64's epsilon, balances them and leaves about ten correct digits. The error of an array
is relative to the largest entry of its gradient. In a large array only a sample of entries is
changed, among them the one with the largest gradient; then the whole array is changed in a random
direction of +-1, so that no entry is left out.

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
    """The largest error of one array's gradient, in the report of fc.check_gradients.

    error     |backward - numeric| / the largest magnitude in the gradient
    index     the index of the entry; () for the random direction
    backward  the value that the backward pass returned
    numeric   the value from central differences
    checked   the number of entries that were checked one by one
    """

    error: float
    index: tuple[int, ...]
    backward: float
    numeric: float
    checked: int


class GradientReport(dict[Key, GradientError]):
    """The report of fc.check_gradients: a dict from an array's name or number to a GradientError.

    print(report) prints it as a table.
    """

    @property
    def max_error(self) -> float:
        """The largest error of all arrays; 0 if no array was checked."""
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
    """Compare a backward pass with central differences, in float64.

    fn         a function that takes the arrays, fn(*arrays) or with a mapping fn(**arrays), and
               returns a pair (y, backward): y is a float64 array or a number; backward is a
               function from grad_y to gradients, or the saved activations of fc.ffn_forward,
               fc.moe_forward, or forward of an fc.FFN or fc.MoE
    arrays     a sequence of float64 arrays, or a mapping from names to them. They are copied and
               not changed. None stands for an optional argument that is left out
    wrt        names or numbers of the arrays to check; None: all
    tolerance  the largest error, relative to the largest entry of each gradient; None: only report
    step       an entry a is changed by step * max(1, |a|), which must not cross a kink such as that
               of relu at 0
    samples    an array with more entries is checked at that many of them, and in one random
               direction
    seed       of the random numbers

    A backward function returns gradients as a mapping by the names of arrays, as a sequence in the
    order of arrays (with or without those that are None), as one array, or as the result of a
    backward pass of this package. The gradients of saved activations have the names x, gate, up,
    down, b_gate, b_up and b_down, or this order; those of fc.MoE the names x, router_weight,
    "experts.up" and so on.

    Returns a GradientReport.

    Raises AssertionError if an error is larger than tolerance; ValueError if a gradient is missing
    or has another shape; TypeError for types and dtypes.

    >>> def layer(x, up, down):
    ...     w = fc.FFNWeights(up=up, down=down)
    ...     return fc.ffn_forward(x, w, activation="gelu")
    >>> arrays = {"x": x, "up": weights.up, "down": weights.down}
    >>> arrays = {name: array.astype("f8") for name, array in arrays.items()}
    >>> print(fc.check_gradients(layer, arrays))
    """
    named = isinstance(arrays, Mapping)
    copies: dict[Key, Array | None] = {
        key: None if value is None else _copy(key, value)
        for key, value in (arrays.items() if isinstance(arrays, Mapping) else enumerate(arrays))
    }

    def call() -> tuple[Array, Any]:
        result: Any = fn(**copies) if named else fn(*copies.values())  # type: ignore[arg-type]
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(
                f"fn returned {type(result).__name__}; expected a pair (y, backward) or (y, saved)"
            )
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
            raise ValueError(
                f"the backward pass returned no gradient for {key!r}; expected an array"
            )
        gradient = np.array(gradients[key], dtype=np.float64, copy=True)
        check_shape(f"the gradient of {key!r}", gradient, array.shape, "to match the array")

        def loss_difference(a: Array, moved: Array, h: Array | float, original: Array) -> float:
            """sum(g * (y(a + h) - y(a - h))), where a[moved] changes and is then restored."""
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
                    f"(error {entry.error:.1e} of the largest entry, allowed {tolerance:.1e}; "
                    f"differences are wrong at a kink of the function, such as that of relu at 0)"
                )
    return report


def _copy(key: Key, value: object) -> Array:
    array = as_array(f"arrays[{key!r}]", value)
    if array.dtype != FLOAT64:
        raise TypeError(
            f"arrays[{key!r}] has dtype {dtype_name(array.dtype)}; expected float64, because "
            f"central differences need its precision"
        )
    return np.array(array, order="C", copy=True)


def _gradients(backward: Any, grad_y: Array, keys: list[Key], present: list[Key]) -> dict[Key, Any]:
    """Call the backward pass, and return its gradients by name or number."""
    answer: Any
    if isinstance(backward, Saved):
        passes = moe_backward if isinstance(backward, MoESaved) else ffn_backward
        answer = passes(grad_y, backward)  # type: ignore[arg-type]
    elif hasattr(backward, "layer"):  # saved by a layer object, which has a backward method
        answer = backward.layer.backward(grad_y, backward)
    else:
        if not callable(backward):
            raise TypeError(
                f"fn's second result is of type {type(backward).__name__}; expected a function of "
                f"grad_y, or the saved activations of a forward pass of ffncore"
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
            f"the backward pass returned {len(answer)} gradients; expected {len(present)}, one for "
            f"each array"
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
        # All entries change, so the step is shorter: y then changes as much as for one entry.
        h = step / np.sqrt(array.size)
        numeric = loss_difference(array, ..., h * direction, original_array) / (2 * h)
        exact = float(np.sum(gradient * direction))
        # The magnitude of such a sum is the norm of the gradient.
        error = abs(exact - numeric) / max(largest, float(np.linalg.norm(gradient)))
        if _is_worse(error, worst.error):
            worst = GradientError(error, (), exact, numeric, len(places))
    return worst


def _is_worse(error: float, than: float) -> bool:
    """Whether `error` is larger; NaN counts as the largest."""
    return not np.isnan(than) and not error <= than
