"""What a forward pass keeps for the backward pass: references, and gate and up if they are saved.

    panels of 64 tokens, [f][64] each, gate's before up's; the last one is [f][rest, rounded up]

as tiles of the forward pass leave them. Every way through the backward pass reads this one layout.
The memory is used again when the last of a Saved is gone (_memory.py). Tests: tests/test_saved.py.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

from . import _core
from ._arrays import Array, MaybeArray, as_array, check_shape
from ._copying import Copied
from ._device import Place
from ._memory import Memory
from ._rows import row_count
from .activations import Activation, as_activation, to_tuple
from .packed import PackedWeights, check_block
from .routing import Routing, check_ids
from .weights import FFNWeights

# Tokens of a panel, and what those of the last one are rounded up to.
_PANEL, _STEP = 64, 16


_S = TypeVar("_S", bound="Saved")


def keeps_preactivations(save: object) -> bool:
    """What save= says, tested."""
    if save not in ("preactivations", "input"):
        raise ValueError(f"save is {save!r}; expected 'preactivations' or 'input'")
    return save == "preactivations"


class Saved(Copied):
    """What ffn_forward keeps for ffn_backward. It can be looked at, and not changed.

    It holds references to x and the weights: changing those before the backward pass is the
    caller's error. gate and up are copies of the preactivations (bias included), or None where
    they were not saved.
    """

    __slots__ = ("_own_x", "_panels", "activation", "weights", "x")

    x: Array
    weights: FFNWeights | PackedWeights
    activation: Activation
    _own_x: Array  # a view with a shape of its own: that of x may be changed in place
    _panels: MaybeArray  # layout: ffncore_saved_bytes in ffncore.h

    def __init__(self) -> None:
        raise TypeError(f"{type(self).__name__} is made by {self._maker}")

    _maker = "ffn_forward"

    @classmethod
    def _make(
        cls: type[_S],
        x: Array,
        weights: FFNWeights | PackedWeights,
        activation: str | Activation,
        panels: MaybeArray,
        **own: object,
    ) -> _S:
        saved = object.__new__(cls)
        own |= {"x": x, "weights": weights, "activation": as_activation(activation)}
        own["_panels"] = panels
        if "_own_x" not in own:
            own["_own_x"] = x.view()
        for name, value in own.items():
            object.__setattr__(saved, name, value)
        return saved

    def _state(self) -> dict[str, Any]:
        panels = None if self._panels is None else Memory(self._panels)
        own = {"x": self.x, "shape": self._own_x.shape, "weights": self.weights}
        return own | {"activation": self.activation, "panels": panels}

    @classmethod
    def _remade(
        cls: type[_S], x: Array, shape: Any, weights: Any, activation: Any, panels: Memory | None
    ) -> _S:
        from .functional import _check_x

        w = check_block(weights)
        to_tuple(activation, w.gated, w.dtype)
        own = _check_x(as_array("x", x).reshape(shape), w)
        nbytes = _core.saved_bytes(own, row_count(own.shape), w.d_ff, w.gated)
        return cls._make(x, w, activation, _checked(panels, own, nbytes), _own_x=own)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} cannot be changed; {name} was assigned to")

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
        f, tokens = self.weights.d_ff, row_count(self._own_x.shape)
        side = self._panels.size // (2 if self.weights.gated else 1)
        rows = _rows_of(self._panels[index * side : (index + 1) * side], tokens, f)
        return rows.reshape(*self._own_x.shape[:-1], f)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(x={self._own_x.shape}, {self.weights!r}, {self.activation!r}, "
            f"save={self.save!r}, {self.nbytes} bytes)"
        )


class MoESaved(Saved):
    """What moe_forward keeps for moe_backward; see Saved. One expert's rows are as a block's.

    gate and up are [..., k, f]: of each slot's expert, 0 where it has none.
    """

    __slots__ = ("_ids", "apply_router_weight_on_input", "routing")

    routing: Routing
    _ids: Array  # experts [T, k], a copy
    apply_router_weight_on_input: bool

    _maker = "moe_forward"

    def _state(self) -> dict[str, Any]:
        own = {"routing": self.routing, "ids": self._ids}
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
    ) -> MoESaved:
        from .moe import _Call

        own = as_array("x", x).reshape(shape)
        call = _Call(own, routing, weights, activation, on_input)
        w, n = call.weights, call.n_experts
        ids = check_ids(ids, n)
        check_shape("experts", ids, call.ids.shape, "to match x and routing.experts")
        nbytes = _core.moe_saved_bytes(own, ids, n, w.d_ff, w.gated)
        return cls._make(
            x,
            w,
            activation,
            _checked(panels, own, nbytes),
            routing=routing,
            apply_router_weight_on_input=call.on_input,
            _ids=ids,
            _own_x=own,
        )

    def _preactivation(self, index: int) -> MaybeArray:
        if self._panels is None:
            return None
        f, sides = self.weights.d_ff, 2 if self.weights.gated else 1
        places = self._ids.reshape(-1)
        copy = np.zeros((places.size, f), self._panels.dtype)
        start = 0
        for e in np.unique(places[places >= 0]):
            mine = np.flatnonzero(places == e)
            side = -(-mine.size // _STEP) * _STEP * f
            copy[mine] = _rows_of(self._panels[start + index * side :][:side], mine.size, f)
            start += side * sides
        return copy.reshape(*self._own_x.shape[:-1], self._ids.shape[-1], f)


class DeviceSaved(Saved):
    """The same on a GPU. x and what the panels lie in are arrays of its library; _own_x and _panels
    are ghosts. Panels are [gated ? 2 : 1][T, f]."""

    __slots__ = ("_kept_x", "_memory", "_place")

    _kept_x: Any
    _memory: Any
    _place: Place

    def _preactivation(self, index: int) -> Any:
        if self._panels is None:
            return None
        rows = self._place.library.copy(self._memory[index])
        return rows.reshape(*self._own_x.shape[:-1], self.weights.d_ff)


class DeviceMoESaved(MoESaved):
    """Likewise; rows are in the order of experts, then of tokens and slots."""

    __slots__ = ("_kept_x", "_memory", "_place")

    _kept_x: Any
    _memory: Any
    _place: Place

    def _preactivation(self, index: int) -> Any:
        if self._panels is None:
            return None
        ids = self.routing._kept[0].reshape(-1)
        rows = self._place.library.by_id(self._memory[index], ids, self.weights.n_experts or 0)
        return rows.reshape(*self._own_x.shape[:-1], self._ids.shape[-1], self.weights.d_ff)


def _checked(panels: Memory | None, x: Array, nbytes: int) -> MaybeArray:
    """What a forward pass saves for such arguments takes nbytes."""
    if panels is None:
        return None
    array = panels.array
    if array.nbytes != nbytes or array.dtype != x.dtype:
        raise ValueError(
            f"what was saved has {array.nbytes} bytes of {array.dtype}; expected {nbytes} bytes of "
            f"{x.dtype} for x {x.shape}"
        )
    return array


def _rows_of(panels: Array, tokens: int, f: int) -> Array:
    """[tokens, f], copied."""
    rows = np.empty((tokens, f), panels.dtype)
    start = 0
    for first in range(0, tokens, _PANEL):
        count = min(_PANEL, tokens - first)
        width = -(-count // _STEP) * _STEP
        panel = panels[start : start + f * width].reshape(f, width)
        rows[first : first + count] = panel[:, :count].T
        start += f * width
    return rows
