"""fc.Routing: which experts each token goes to, and with what weights.

    experts [..., k] int32, -1 for no expert       weights [..., k] float32 or float64

The k experts of a token are called its slots. A routing that was made by a router of this package
also keeps parts for the backward pass: each Part holds the logits from which the weights of some
slots were computed. fc.route makes one part for all slots, fc.sparsemixer one for each.
Tests: tests/functional/test_routing.py, tests/values/test_copying.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays.dtypes import check_same_dtype, dtype_name
from ..arrays.places import Made, Place, place_of, see
from ..arrays.scalars import integer
from ..arrays.shapes import Array, MaybeArray, as_array, check_shape
from .copied import Copied
from .routing_options import (
    MOST_EXPERTS,
    CoreRouter,
    check_core,
    check_logits,
    check_logits_dtype,
    stored,
)


@dataclass(frozen=True)
class Part(Copied):
    """Slots whose weights were computed from one array of logits."""

    logits: Array
    experts: Array  # [..., k]
    core: CoreRouter

    def _state(self) -> dict[str, Any]:
        return super()._state() | {"core": stored(self.core)}

    @classmethod
    def _remade(cls, logits: Array, experts: Array, core: Any) -> Part:
        z = check_logits(logits)
        ids = check_ids(experts, z.shape[-1])
        check_shape("experts", ids, (*z.shape[:-1], *ids.shape[-1:]), f"to match logits {z.shape}")
        return cls(z, ids, check_core(core, z))


class Routing(Copied):
    """The experts of each token and their weights: made by fc.route, or from your own arrays.

    experts    [..., k], any integer dtype: the numbers of the experts of each token, from 0 to
               n_experts - 1, or -1 for no expert. The attribute is int32
    weights    [..., k], float32 or float64: the factors of these experts' outputs
    n_experts  the number of experts; None: not known, so that counts is not available

    The leading dimensions are those of x. A Routing cannot be changed. It refers to the arrays that
    it was made from; only experts of another dtype or layout are copied.

    torch CUDA tensors and CuPy arrays of one device are accepted, too, with float32 weights. Then
    the numbers of the experts are not checked (see fc.moe).

    Raises ValueError for shapes that do not match and for numbers of experts that are out of range,
    and TypeError for dtypes and types. A routing made in this way has no logits, so
    fc.route_backward does not accept it.

    See also: fc.route, fc.moe.

    >>> routing = fc.Routing(experts=ids, weights=routing_weights, n_experts=16)
    >>> y = fc.moe(x, routing, experts, activation="silu")
    """

    __slots__ = ("_arrays", "_kept", "_place", "_saved", "experts", "n_experts", "weights")

    experts: Array
    weights: Array
    n_experts: int | None
    _saved: tuple[Part, ...] | None  # parts for route_backward, in the order of the slots
    _arrays: tuple[Array, Array]  # experts and weights for checks: on a GPU, their ghosts
    _place: Place | None
    _kept: tuple[Any, ...]  # views of experts and weights that keep a GPU's memory alive

    def __init__(self, *, experts: object, weights: object, n_experts: int | None = None) -> None:
        if n_experts is not None:
            n_experts = integer("n_experts", n_experts)
            if not 1 <= n_experts <= MOST_EXPERTS:
                raise ValueError(f"n_experts is {n_experts}; expected 1 to {MOST_EXPERTS}")
        place = place_of("experts", experts)
        ids, seen = see_ids(place, experts, n_experts)
        factors = see(place, "weights", weights)
        kept: tuple[Any, ...] = ()
        if place is None:
            weights = factors
        else:
            kept = (place.library.view(ids), place.library.view(weights))
        check_logits_dtype("weights", factors)
        check_shape("weights", factors, seen.shape, "to match experts")
        self._fill(ids, weights, n_experts, None, (seen, factors), place, kept)

    @classmethod
    def _make(
        cls, place: Place | None, experts: Any, weights: Any, n_experts: int, *saved: Any
    ) -> Routing:
        routing = object.__new__(cls)
        arrays, kept = (experts, weights), ()
        if place is not None:
            kept = tuple(map(place.library.view, arrays))
            arrays = place.ghost("experts", experts), place.ghost("weights", weights)
        routing._fill(experts, weights, n_experts, saved, arrays, place, kept)
        return routing

    def _fill(self, *values: object) -> None:
        for fill, value in zip(_FILL, values):  # noqa: B905 (a quarter of a call's time)
            fill(self, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"Routing cannot be changed; {name} was assigned to")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"Routing cannot be changed; {name} was deleted")

    def _state(self) -> dict[str, Any]:
        own = {"experts": self.experts, "weights": self.weights, "n_experts": self.n_experts}
        return own | {"parts": self._saved}

    @classmethod
    def _remade(
        cls, experts: Array, weights: Array, n_experts: int | None, parts: tuple[Part, ...] | None
    ) -> Routing:
        routing = cls(experts=experts, weights=weights, n_experts=n_experts)
        for part in parts or ():
            expected = (*weights.shape[:-1], n_experts)
            check_shape("logits", part.logits, expected, "to match routing.weights")
            check_same_dtype("logits", part.logits, weights.dtype, "routing.weights")
        slots = routing.top_k if parts is None else sum(p.experts.shape[-1] for p in parts)
        if slots != routing.top_k:
            raise ValueError(f"routing has logits of {slots} slots; expected {routing.top_k}")
        object.__setattr__(routing, "_saved", parts)
        return routing

    @property
    def top_k(self) -> int:
        """The number of slots of each token: the last dimension of experts."""
        return int(self.experts.shape[-1])

    @property
    def counts(self) -> Array:
        """The number of tokens of each expert, [n_experts] int64; slots of -1 are not counted.

        Raises ValueError if n_experts is None.
        """
        if self.n_experts is None:
            raise ValueError("routing.n_experts is None; expected the number of experts")
        if self._place is not None:
            counts: Array = self._place.library.counts(self._kept[0].reshape(-1), self.n_experts)
            return counts
        return np.bincount(self.experts.reshape(-1) + 1, minlength=self.n_experts + 1)[1:]

    def __repr__(self) -> str:
        return (
            f"Routing(experts={self._arrays[0].shape}, "
            f"weights={dtype_name(self._arrays[1].dtype)}, "
            f"n_experts={self.n_experts})"
        )


# What sets the attributes of a Routing, in the order of _fill.
_FILL = tuple(
    getattr(Routing, name).__set__
    for name in ("experts", "weights", "n_experts", "_saved", "_arrays", "_place", "_kept")
)


def check_ids_shape(ids: Array) -> None:
    if ids.dtype.kind not in "iu":
        raise TypeError(f"experts has dtype {dtype_name(ids.dtype)}; expected an integer dtype")
    if ids.ndim < 1 or ids.shape[-1] < 1:
        raise ValueError(f"experts has shape {ids.shape}; expected [..., k] with k at least 1")


def see_ids(place: Place | None, value: Any, n_experts: int | None) -> Made:
    """Expert ids [..., k] as int32, C-contiguous; on a GPU their values are not checked."""
    if place is None:
        ids = check_ids(value, n_experts)
        return Made(ids, ids)
    seen = place.ghost("experts", value)
    check_ids_shape(seen)
    if seen.dtype == np.int32 and seen.flags.c_contiguous:
        return Made(value, seen)
    converted = place.library.as_int32(value)
    return Made(converted, place.ghost("experts", converted))


def check_ids(value: object, n_experts: int | None) -> Array:
    """Expert ids [..., k] as int32, C-contiguous, each of them -1 or an existing expert."""
    ids = as_array("experts", value)
    check_ids_shape(ids)
    end = MOST_EXPERTS if n_experts is None else n_experts
    if ids.size:
        for wrong in (int(ids.min()), int(ids.max())):
            if not -1 <= wrong < end:
                of = "" if n_experts is None else f", of {n_experts} experts"
                raise ValueError(f"experts has an entry {wrong}; expected -1 to {end - 1}{of}")
    # ascontiguousarray alone copies if the dtype is int32 but another object, as from a pickle.
    if ids.dtype == np.int32 and ids.flags.c_contiguous:
        return ids
    return np.ascontiguousarray(ids, np.int32)


@dataclass(frozen=True)
class DevicePart(Copied):
    """A Part whose arrays are on a GPU."""

    logits: Made
    experts: Made  # [..., k] int32, C-contiguous
    core: CoreRouter


def routing_inputs(routing: Routing) -> list[tuple[str, MaybeArray]]:
    """The names and arrays of a routing that an output must not overlap."""
    experts, weights = routing._arrays
    return [("routing.experts", experts), ("routing.weights", weights)]
