"""The feed-forward block as functions: forward, forward that saves, backward.

    p, q = x gate^T + b_gate, x up^T + b_up     preactivations [T, f]; a plain block has q alone
    h    = act(p) * q, or act(q)                [T, f]
    y    = h down^T + b_down                    [T, d]

    dh     = dy down                 d_down = dy^T h      d_b_down = sum of dy over tokens
    dp, dq = derivatives of h        d_gate = dp^T x      d_b_gate = sum of dp
    dx     = dp gate + dq up         d_up   = dq^T x      d_b_up   = sum of dq

x is [..., d]: leading dimensions are merged to T tokens. A call on a two-dimensional array with
weights that were checked when they were made runs through ffn's first lines alone.

Tests: tests/test_functional.py, tests/test_gradients.py, tests/test_one_answer.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _core
from ._arrays import (
    ALIGNED,
    BLOCK_BYTES,
    SIMPLE_OUT,
    Array,
    MaybeArray,
    as_array,
    check_apart,
    check_names,
    check_out,
    check_same_dtype,
    check_shape,
    check_size,
    row_count,
    rows_of,
    rows_view,
)
from .activations import PLAIN_CORE, Activation, XieluGrads, as_activation, to_tuple
from .weights import NAMES, FFNWeights, PackedWeights, check_weights

GRADIENTS = ("x", *NAMES, "activation")

_ndarray = np.ndarray
_empty = np.empty
_may_overlap = np.may_share_memory
_forward = _core.ffn_forward


def ffn(
    x: Array,
    weights: FFNWeights | PackedWeights,
    *,
    activation: str | Activation,
    out: MaybeArray = None,
) -> Array:
    """y [..., d] of x [..., d]; out: an array to write y to, which is returned.

    >>> y = fc.ffn(x, weights, activation="silu")
    """
    # The common case, without a function call of ours: a matrix, weights whose arrays are aligned.
    # Whatever does not fit goes to _ffn, which finds out what it is and has the sentences.
    if type(x) is _ndarray and (type(weights) is PackedWeights or type(weights) is FFNWeights):
        call = weights._call
        if type(activation) is str:
            options = PLAIN_CORE.get(activation)
        elif type(activation) is Activation and (weights.gated or not activation._gated_only):
            options = activation._core
        else:
            options = None
        shape = x.shape
        if (
            call is not None
            and options is not None
            and x.dtype is call.dtype
            and x.ndim == 2
            and shape[1] == call.d_model
            and shape[0] <= call.most_rows
            and x.flags.num & ALIGNED
        ):
            if out is None:
                out = _empty(shape, call.dtype)
                _forward(x, out, call.core, options, None)
                return out
            if (
                type(out) is _ndarray
                and out.dtype is call.dtype
                and out.shape == shape
                and out.flags.num & SIMPLE_OUT == SIMPLE_OUT
                and not _may_overlap(out, x)
                and not any(_may_overlap(out, array) for array in call.inputs)
            ):
                _forward(x, out, call.core, options, None)
                return out
    return _ffn(x, weights, activation, out)


def _ffn(x: object, weights: object, activation: object, out: object) -> Array:
    checked = check_weights(weights)
    core_activation = to_tuple(activation, checked.gated)
    tokens = _check_x(x, checked)
    core_weights = checked._core_arrays()
    if out is None:
        y = np.empty(tokens.shape, checked.dtype)
    else:
        y = check_out("out", out, tokens.shape, tokens.dtype, "to match x")
        check_apart("out", y, [("x", tokens), *_inputs(checked)])

    def run(x_part: Array, y_rows: Array) -> None:
        _forward(rows_of(x_part), y_rows, core_weights, core_activation, None)

    _by_rows(run, tokens, y)
    return y


def _by_rows(run: Any, x: Array, y: Array) -> None:
    """run(x, y as [T, d]), in blocks of leading indices where y cannot be viewed like that."""
    view = rows_view(y)
    if view is not None:
        run(x, view)
        return
    entry_bytes = row_count(y.shape[1:]) * y.shape[-1] * y.itemsize
    if entry_bytes > BLOCK_BYTES and y.ndim > 2:
        for x_entry, y_entry in zip(x, y, strict=True):
            _by_rows(run, x_entry, y_entry)
        return
    step = max(1, BLOCK_BYTES // max(1, entry_bytes))
    for start in range(0, y.shape[0], step):
        part = y[start : start + step]
        block = np.empty((row_count(part.shape), y.shape[-1]), y.dtype)
        run(x[start : start + step], block)
        part[...] = block.reshape(part.shape)


def _check_x(x: object, weights: FFNWeights | PackedWeights) -> Array:
    tokens = as_array("x", x)
    check_same_dtype("x", tokens, weights.dtype, "the weights")
    if tokens.ndim == 0:
        raise ValueError("x has shape (); expected [..., d_model]")
    if tokens.shape[-1] != weights.d_model:
        raise ValueError(
            f"x has shape {tokens.shape}; expected a last dimension of {weights.d_model} "
            f"to match w.up {weights.shape}"
        )
    check_size(row_count(tokens.shape), weights.d_ff, "the tokens of x and the rows of w.up")
    check_size(row_count(tokens.shape), weights.d_model, "the dimensions of x")
    return tokens


def _inputs(weights: FFNWeights | PackedWeights) -> list[tuple[str, MaybeArray]]:
    if isinstance(weights, PackedWeights):
        return [("the packed weights", weights._buffer)]
    return [(f"w.{name}", array) for name, array in weights.arrays().items()]


class Saved:
    """What ffn_forward keeps for ffn_backward. It can be looked at, and not changed.

    It holds references to x and the weights: changing those before the backward pass is the
    caller's error. gate and up are copies of the preactivations (bias included), or None where
    they were not saved.
    """

    __slots__ = ("_panels", "_rows", "activation", "weights", "x")

    x: Array
    weights: FFNWeights | PackedWeights
    activation: Activation
    _rows: Array  # x as [T, d]
    _panels: MaybeArray  # layout: ffncore_saved_bytes in ffncore.h

    def __init__(self) -> None:
        raise TypeError("Saved is made by ffn_forward")

    @classmethod
    def _make(cls, **attributes: object) -> Saved:
        saved = object.__new__(cls)
        for name, value in attributes.items():
            object.__setattr__(saved, name, value)
        return saved

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"Saved cannot be changed; {name} was assigned to")

    @property
    def save(self) -> str:
        """ "preactivations" or "input", as given to ffn_forward."""
        return "input" if self._panels is None else "preactivations"

    @property
    def nbytes(self) -> int:
        """Memory held beside x and the weights."""
        return 0 if self._panels is None else int(self._panels.nbytes)

    @property
    def gate(self) -> MaybeArray:
        """x gate^T + b_gate, [..., f]; None in a plain block and with save="input"."""
        return self._preactivation(0) if self.weights.gated else None

    @property
    def up(self) -> MaybeArray:
        """x up^T + b_up, [..., f]; None with save="input"."""
        return self._preactivation(1 if self.weights.gated else 0)

    def _preactivation(self, index: int) -> MaybeArray:
        if self._panels is None:
            return None
        f, tokens = self.weights.d_ff, self._rows.shape[0]
        copy = np.empty((tokens, f), self._panels.dtype)
        # Panels of 64 tokens, [f][64] each; the last one is [f][rest rounded up to 16].
        start = index * self._panels.size // (2 if self.weights.gated else 1)
        for first in range(0, tokens, 64):
            count = min(64, tokens - first)
            width = (count + 15) // 16 * 16
            panel = self._panels[start : start + f * width].reshape(f, width)
            copy[first : first + count] = panel[:, :count].T
            start += f * width
        return copy.reshape(*self.x.shape[:-1], f)

    def __repr__(self) -> str:
        return (
            f"Saved(x={self.x.shape}, {self.weights!r}, {self.activation!r}, save={self.save!r}, "
            f"{self.nbytes} bytes)"
        )


def ffn_forward(
    x: Array,
    weights: FFNWeights | PackedWeights,
    *,
    activation: str | Activation,
    save: str = "preactivations",
    out: MaybeArray = None,
) -> tuple[Array, Saved]:
    """y and what the backward pass needs.

    save="preactivations" keeps gate and up, [T, f] each; save="input" keeps references alone, and
    the backward pass computes gate and up again. The results are the same bits.

    >>> y, saved = fc.ffn_forward(x, weights, activation="silu")
    """
    checked = check_weights(weights)
    core_activation = to_tuple(activation, checked.gated)
    if save not in ("preactivations", "input"):
        raise ValueError(f"save is {save!r}; expected 'preactivations' or 'input'")
    tokens = _check_x(x, checked)
    rows = rows_of(tokens)
    y = np.empty(tokens.shape, checked.dtype)
    if out is not None:
        y = check_out("out", out, tokens.shape, tokens.dtype, "to match x")
        check_apart("out", y, [("x", tokens), *_inputs(checked)])
    panels = None
    if save == "preactivations":
        size = _core.saved_size(checked.dtype.name, rows.shape[0], checked.d_ff, checked.gated)
        panels = np.empty(size, checked.dtype)
    target, apart = _gradient_rows(y)
    _forward(rows, target, checked._core_arrays(), core_activation, panels)
    if apart:
        y[...] = target.reshape(y.shape)
    saved = Saved._make(
        x=tokens,
        weights=checked,
        activation=as_activation(activation),
        _rows=rows.view(),  # its own shape: see weights.py
        _panels=panels,
    )
    return y, saved


@dataclass(frozen=True, eq=False, repr=False)
class FFNGrads:
    """Gradients of a block; None is what was not asked for.

    weights is an FFNWeights that mirrors the weights, activation holds xielu's two parameters.
    """

    x: MaybeArray = None
    weights: FFNWeights | None = None
    activation: XieluGrads | None = None

    def __repr__(self) -> str:
        shapes = [f"{name}={a.shape}" for name, a in self.arrays().items()]
        return f"FFNGrads({', '.join(shapes + [f'activation={self.activation}'])})"

    def arrays(self) -> dict[str, Array]:
        """The arrays that exist, by the names of needs=."""
        own = {} if self.x is None else {"x": self.x}
        return {**own, **(self.weights.arrays() if self.weights is not None else {})}


def ffn_backward(
    grad_y: Array,
    saved: Saved,
    *,
    needs: Iterable[str] | None = None,
    out: FFNGrads | Mapping[str, Any] | None = None,
    accumulate: bool = False,
) -> FFNGrads:
    """Gradients of x, the weights and xielu's parameters, from the gradient of y.

    needs       names of what is wanted: "x", "gate", "up", "down", "b_gate", "b_up", "b_down",
                "activation"; what is not needed is not computed. Default: all that exist (through
                packed weights: x).
    out         arrays to fill: an FFNGrads, or a mapping of the names of needs. What it lacks is
                allocated.
    accumulate  add into out instead: its numbers too, which come back as a sum

    >>> grads = fc.ffn_backward(grad_y, saved, needs=("x", "down"))
    """
    if not isinstance(saved, Saved):
        raise TypeError(
            f"saved is of type {type(saved).__name__}; expected what ffn_forward returned"
        )
    weights, rows = saved.weights, saved._rows
    grad = as_array("grad_y", grad_y)
    check_same_dtype("grad_y", grad, weights.dtype, "saved")
    check_shape("grad_y", grad, saved.x.shape, "to match saved.x")
    wanted = _check_needs(needs, saved)
    given, old = _check_out(out, wanted, saved, grad)
    if accumulate and out is None:
        raise ValueError("accumulate is True and out is None; expected arrays to add into")

    shapes = _shapes(saved)
    grads: dict[str, Array] = {}
    targets: dict[str, tuple[Array, bool]] = {}
    for name in wanted:
        if name == "activation":
            continue
        array = given.get(name)
        if array is None:
            array = (np.zeros if accumulate else np.empty)(shapes[name], weights.dtype)
        grads[name] = array
        targets[name] = _gradient_rows(array, accumulate) if name == "x" else (array, False)

    def target(name: str) -> MaybeArray:
        return targets[name][0] if name in targets else None

    sums = None
    if wanted:
        sums = _core.ffn_backward(
            rows,
            rows_of(grad),
            weights._core_arrays(),
            to_tuple(saved.activation, weights.gated),
            saved._panels,
            bool(accumulate),
            target("x"),
            tuple(target(name) for name in NAMES),  # type: ignore[arg-type]
            "activation" in wanted,
        )
    for name, (computed, apart) in targets.items():
        if apart:
            grads[name][...] = computed.reshape(grads[name].shape)
    numbers = XieluGrads(*sums) if sums is not None else None
    if numbers is not None and accumulate and old is not None:
        numbers = XieluGrads(numbers.alpha_p + old.alpha_p, numbers.alpha_n + old.alpha_n)
    grad_x = grads.pop("x", None)
    return FFNGrads(grad_x, _mirror(grads, weights), numbers)


def _gradient_rows(array: Array, keep: bool = False) -> tuple[Array, bool]:
    """[T, d] to write to, and whether it is apart from array and has to be copied back."""
    view = rows_view(array)
    if view is not None:
        return view, False
    shape = (row_count(array.shape), array.shape[-1])
    return (array.reshape(shape) if keep else np.empty(shape, array.dtype)), True


def _mirror(grads: dict[str, Array], weights: FFNWeights | PackedWeights) -> FFNWeights | None:
    if not grads:
        return None
    complete = isinstance(weights, FFNWeights) and len(grads) == len(weights.arrays())
    return FFNWeights(**grads) if complete else FFNWeights._partial(grads)


def _shapes(saved: Saved) -> dict[str, tuple[int, ...]]:
    """The gradients that exist for this call, by name, and their shapes."""
    shapes = {"x": saved.x.shape}
    if isinstance(saved.weights, FFNWeights):
        shapes.update({name: a.shape for name, a in saved.weights.arrays().items()})
        if saved.activation.name == "xielu":
            shapes["activation"] = ()
    return shapes


def _check_needs(needs: object, saved: Saved) -> tuple[str, ...]:
    exist = _shapes(saved)
    if needs is None:
        return tuple(exist)
    wanted = check_names("needs", needs, GRADIENTS)
    for name in wanted:
        if name in exist:
            continue
        if isinstance(saved.weights, PackedWeights):
            raise ValueError(f"needs has {name!r}, but packed weights give the gradient of x alone")
        if name == "activation":
            raise ValueError(
                f"needs has 'activation', but {saved.activation.name} has no trainable parameters"
            )
        raise ValueError(f"needs has {name!r}, but the block has no w.{name}")
    return tuple(dict.fromkeys(wanted))


def _check_out(
    out: object, wanted: tuple[str, ...], saved: Saved, grad: Array
) -> tuple[dict[str, Array], XieluGrads | None]:
    """out= as arrays by name, and its numbers."""
    if out is None:
        return {}, None
    if isinstance(out, FFNGrads):
        entries: dict[str, Any] = {**out.arrays(), "activation": out.activation}
    elif isinstance(out, Mapping):
        entries = dict(out)
        check_names("out", entries, GRADIENTS)
    else:
        raise TypeError(f"out is of type {type(out).__name__}; expected FFNGrads or a mapping")
    old = entries.pop("activation", None)
    if old is not None:
        if not isinstance(old, tuple) or len(old) != 2:
            raise TypeError("out.activation is no pair of numbers; expected (alpha_p, alpha_n)")
        old = XieluGrads(*old)
    shapes = _shapes(saved)
    inputs: list[tuple[str, MaybeArray]] = [
        ("grad_y", grad),
        ("x", saved.x),
        *_inputs(saved.weights),
        ("what was saved", saved._panels),
    ]
    arrays: dict[str, Array] = {}
    for name, array in entries.items():
        if array is None:
            continue
        label = f"out.{name}"
        if name not in wanted:
            raise ValueError(f"{label} is given, but needs is {wanted}; expected {name!r} in it")
        reason = f"to match {name if name == 'x' else 'w.' + name}"
        arrays[name] = check_out(label, array, shapes[name], saved.weights.dtype, reason)
        check_apart(label, arrays[name], inputs)
        inputs.append((label, arrays[name]))
    return arrays, old
