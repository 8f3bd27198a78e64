"""Saved activations: what a forward pass keeps for the backward pass.

These are the arguments of the call and, with save="preactivations", gate and up before the
activation. On a CPU gate and up are stored in panels of 64 tokens,

    [f][64] each, those of gate before those of up; the last panel is [f][rest, rounded up to 16]

because the tiles of the forward pass have this form, and every variant of the backward pass reads
it. A mixture stores the rows of one expert after the other in this form. On a GPU they are [2 with
gate, else 1][rows, f].

The memory returns to a pool when the last view of it is gone (arrays/memory.py). Tests:
tests/values/test_saved.py, tests/values/test_moe_saved.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays.memory import Memory
from ..arrays.places import Made
from ..arrays.rows import row_count
from ..arrays.shapes import Array, MaybeArray, as_array, check_shape
from .activation import Activation
from .arguments import LayerArguments
from .copied import Copied
from .packed import PackedWeights
from .routing import Routing, check_ids
from .weights import FFNWeights

# The tokens of a panel, and the multiple to which those of the last panel are rounded up.
_PANEL, _STEP = 64, 16


def keeps_preactivations(save: object) -> bool:
    """Check save=, and return whether gate and up are to be kept."""
    if save not in ("preactivations", "input"):
        raise ValueError(f"save is {save!r}; expected 'preactivations' or 'input'")
    return save == "preactivations"


class Saved(Copied):
    """The saved activations of fc.ffn_forward, which fc.ffn_backward needs.

    A Saved is made by fc.ffn_forward alone, and cannot be changed. It refers to x and the weights
    of the forward pass, which must not be changed before the backward pass. Its attribute x is the
    x of the forward pass.

    >>> y, saved = fc.ffn_forward(x, weights, activation="silu")
    >>> saved.up.shape, saved.nbytes
    """

    __slots__ = ("_arguments", "_memory", "_panels", "x")

    x: Array
    _arguments: LayerArguments  # holds its own view of x, whose shape may be changed in place
    _panels: MaybeArray  # the layout is that of ffncore_saved_bytes in ffncore.h; on a GPU a ghost
    _memory: Any  # the GPU array that the panels are in; None on a CPU

    def __init__(self) -> None:
        raise TypeError(f"{type(self).__name__} is made by {self._maker}")

    _maker = "ffn_forward"

    @staticmethod
    def _make(x: Any, arguments: LayerArguments, panels: Made | MaybeArray) -> Saved:
        """x: the attribute .x; panels: the result of a backend's forward pass."""
        arguments.keep()
        on_gpu, of_experts = arguments.place is not None, arguments.routing is not None
        made = object.__new__(_KINDS[on_gpu, of_experts])
        memory, seen = panels if isinstance(panels, Made) else (None, panels)
        for name, value in (
            ("x", x),
            ("_arguments", arguments),
            ("_panels", seen),
            ("_memory", memory),
        ):
            object.__setattr__(made, name, value)
        return made

    def _state(self) -> dict[str, Any]:
        panels = None if self._panels is None else Memory(self._panels)
        own = {"x": self.x, "shape": self._arguments.seen.shape, "weights": self.weights}
        return own | {"activation": self.activation, "panels": panels}

    @classmethod
    def _remade(
        cls, x: Array, shape: Any, weights: Any, activation: Any, panels: Memory | None
    ) -> Saved:
        arguments = LayerArguments(as_array("x", x).reshape(shape), weights, activation)
        return cls._make(x, arguments, _checked(panels, arguments))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} cannot be changed; {name} was assigned to")

    @property
    def weights(self) -> FFNWeights | PackedWeights:
        """The weights of the forward pass: FFNWeights or PackedWeights."""
        return self._arguments.weights

    @property
    def activation(self) -> Activation:
        """The activation of the forward pass."""
        return self._arguments.activation

    @property
    def save(self) -> str:
        """The save option of the forward pass: "preactivations" or "input"."""
        return "input" if self._panels is None else "preactivations"

    @property
    def nbytes(self) -> int:
        """The number of bytes held in addition to x and the weights."""
        return 0 if self._panels is None else int(self._panels.nbytes)

    @property
    def gate(self) -> MaybeArray:
        """The gate before its activation, x gate^T + b_gate: a copy, [..., d_ff].

        None in a layer without a gate and with save="input".
        """
        return self._preactivation(0) if self.weights.gated else None

    @property
    def up(self) -> MaybeArray:
        """The up-projection, x up^T + b_up: a copy, [..., d_ff]. None with save="input"."""
        return self._preactivation(1 if self.weights.gated else 0)

    def _preactivation(self, index: int) -> MaybeArray:
        if self._panels is None:
            return None
        shape, f = self._arguments.seen.shape, self.weights.d_ff
        side = self._panels.size // (2 if self.weights.gated else 1)
        rows = _rows_of(self._panels[index * side : (index + 1) * side], row_count(shape), f)
        return rows.reshape(*shape[:-1], f)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(x={self._arguments.seen.shape}, {self.weights!r}, "
            f"{self.activation!r}, save={self.save!r}, {self.nbytes} bytes)"
        )


class MoESaved(Saved):
    """The saved activations of fc.moe_forward, which fc.moe_backward needs.

    It is a Saved with a routing. gate and up are [..., k, d_ff], those of the expert of each slot,
    and 0 in slots without an expert.

    >>> y, saved = fc.moe_forward(x, routing, experts, activation="silu")
    """

    __slots__ = ()

    _maker = "moe_forward"

    @property
    def routing(self) -> Routing:
        """The routing of the forward pass."""
        assert self._arguments.routing is not None
        return self._arguments.routing

    @property
    def apply_router_weight_on_input(self) -> bool:
        """Whether the routing weights multiply x instead of the outputs of the experts."""
        return self._arguments.on_input

    def _state(self) -> dict[str, Any]:
        own = {"routing": self.routing, "ids": self._arguments.ids}
        return super()._state() | own | {"on_input": self.apply_router_weight_on_input}

    @classmethod
    def _remade(  # type: ignore[override]
        cls,
        x: Array,
        shape: Any,
        weights: Any,
        activation: Any,
        panels: Memory | None,
        routing: Any,
        ids: Array,
        on_input: bool,
    ) -> Saved:
        given = as_array("x", x).reshape(shape)
        arguments = LayerArguments(given, weights, activation, (routing, on_input))
        ids = check_ids(ids, arguments.weights.n_experts)
        check_shape("experts", ids, arguments.ids.shape, "to match x and routing.experts")
        arguments.ids = ids
        return cls._make(x, arguments, _checked(panels, arguments))

    def _preactivation(self, index: int) -> MaybeArray:
        if self._panels is None:
            return None
        f, sides = self.weights.d_ff, 2 if self.weights.gated else 1
        ids = self._arguments.ids
        places = ids.reshape(-1)
        copy = np.zeros((places.size, f), self._panels.dtype)
        start = 0
        for e in np.unique(places[places >= 0]):
            mine = np.flatnonzero(places == e)
            side = -(-mine.size // _STEP) * _STEP * f
            copy[mine] = _rows_of(self._panels[start + index * side :][:side], mine.size, f)
            start += side * sides
        return copy.reshape(*self._arguments.seen.shape[:-1], ids.shape[-1], f)


class DeviceSaved(Saved):
    """A Saved whose arrays are on a GPU."""

    __slots__ = ()

    def _preactivation(self, index: int) -> Any:
        place = self._arguments.place
        if self._panels is None or place is None:
            return None
        rows = place.library.copy(self._memory[index])
        return rows.reshape(*self._arguments.seen.shape[:-1], self.weights.d_ff)


class DeviceMoESaved(MoESaved):
    """A MoESaved whose arrays are on a GPU. Rows are sorted by expert, then by token and slot."""

    __slots__ = ()

    def _preactivation(self, index: int) -> Any:
        place = self._arguments.place
        if self._panels is None or place is None:
            return None
        ids = self.routing._kept[0].reshape(-1)
        rows = place.library.by_id(self._memory[index], ids, self.weights.n_experts or 0)
        shape, k = self._arguments.seen.shape, self._arguments.ids.shape[-1]
        return rows.reshape(*shape[:-1], k, self.weights.d_ff)


# By whether the arrays are on a GPU, and whether the weights are those of experts.
_KINDS: dict[tuple[bool, bool], type[Saved]] = {
    (False, False): Saved,
    (False, True): MoESaved,
    (True, False): DeviceSaved,
    (True, True): DeviceMoESaved,
}


def _checked(panels: Memory | None, arguments: LayerArguments) -> MaybeArray:
    """The array of panels from a pickle, checked for size and dtype."""
    if panels is None:
        return None
    array, nbytes, dtype = panels.array, arguments.saved_bytes(), arguments.dtype
    if array.nbytes != nbytes or array.dtype != dtype:
        raise ValueError(
            f"the saved activations have {array.nbytes} bytes of {array.dtype}; expected {nbytes} "
            f"bytes of {dtype} for x {arguments.seen.shape}"
        )
    return array


def _rows_of(panels: Array, tokens: int, f: int) -> Array:
    """Copy panels into an array [tokens, f]."""
    rows = np.empty((tokens, f), panels.dtype)
    start = 0
    for first in range(0, tokens, _PANEL):
        count = min(_PANEL, tokens - first)
        width = -(-count // _STEP) * _STEP
        panel = panels[start : start + f * width].reshape(f, width)
        rows[first : first + count] = panel[:, :count].T
        start += f * width
    return rows
