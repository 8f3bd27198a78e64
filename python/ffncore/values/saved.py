"""What a forward pass keeps for the backward pass: its arguments, and gate and up where asked.

    panels of 64 tokens, [f][64] each, gate's before up's; the last one is [f][rest, rounded up]

as tiles of the forward pass leave them. Every way through the backward pass reads this one layout.
On a GPU they are [gated ? 2 : 1][rows, f]. The memory is used again when the last of a Saved is
gone (arrays/memory.py). Tests: tests/values/test_saved.py, tests/values/test_moe_saved.py.
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

# Tokens of a panel, and what those of the last one are rounded up to.
_PANEL, _STEP = 64, 16


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

    __slots__ = ("_arguments", "_memory", "_panels", "x")

    x: Array
    _arguments: LayerArguments  # with an x of its own: the shape of x may be changed in place
    _panels: MaybeArray  # layout: ffncore_saved_bytes in ffncore.h; on a GPU, a ghost
    _memory: Any  # what panels lie in: a CPU's, None

    def __init__(self) -> None:
        raise TypeError(f"{type(self).__name__} is made by {self._maker}")

    _maker = "ffn_forward"

    @staticmethod
    def _make(x: Any, arguments: LayerArguments, panels: Made | MaybeArray) -> Saved:
        """x: what shows as .x; panels: what a backend's forward pass returned."""
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
        """The weights of the forward pass."""
        return self._arguments.weights

    @property
    def activation(self) -> Activation:
        """The activation of the forward pass."""
        return self._arguments.activation

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
    """What moe_forward keeps for moe_backward; see Saved. One expert's rows are as a block's.

    gate and up are [..., k, f]: of each slot's expert, 0 where it has none.
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
        """Whether the routing weights multiply x, and not the experts' outputs."""
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
    """The same on a GPU, whose library has the arrays."""

    __slots__ = ()

    def _preactivation(self, index: int) -> Any:
        place = self._arguments.place
        if self._panels is None or place is None:
            return None
        rows = place.library.copy(self._memory[index])
        return rows.reshape(*self._arguments.seen.shape[:-1], self.weights.d_ff)


class DeviceMoESaved(MoESaved):
    """Likewise; rows are in the order of experts, then of tokens and slots."""

    __slots__ = ()

    def _preactivation(self, index: int) -> Any:
        place = self._arguments.place
        if self._panels is None or place is None:
            return None
        ids = self.routing._kept[0].reshape(-1)
        rows = place.library.by_id(self._memory[index], ids, self.weights.n_experts or 0)
        shape, k = self._arguments.seen.shape, self._arguments.ids.shape[-1]
        return rows.reshape(*shape[:-1], k, self.weights.d_ff)


# By: on a GPU, of experts.
_KINDS: dict[tuple[bool, bool], type[Saved]] = {
    (False, False): Saved,
    (False, True): MoESaved,
    (True, False): DeviceSaved,
    (True, True): DeviceMoESaved,
}


def _checked(panels: Memory | None, arguments: LayerArguments) -> MaybeArray:
    """What a forward pass with these arguments saves has this many bytes."""
    if panels is None:
        return None
    array, x, nbytes = panels.array, arguments.seen, arguments.saved_bytes()
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
