"""The arguments of a backward pass, checked once: which gradients to compute, and where to.

    grad_y      [..., d], like x and y
    needs       names of gradients (gradients.py), or None for all that exist
    out         arrays to write gradients to, or None for new ones
    accumulate  whether to add to these arrays

The result is a GradientRequest. A backend relies on its checks and writes to its arrays.
Tests: tests/functional/test_backward.py, tests/values/test_errors.py.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..arrays.dtypes import check_dtype, check_same_dtype
from ..arrays.memory import empty
from ..arrays.overlap import check_apart, check_out
from ..arrays.places import see
from ..arrays.scalars import check_names
from ..arrays.shapes import Array, MaybeArray, check_shape
from ..encodings.tensor import QuantizedTensor
from .arguments import LayerArguments
from .gradients import GRADIENTS, MOE_GRADIENTS, FFNGrads, XieluGrads
from .packed import PackedWeights, weights_inputs
from .routing import routing_inputs
from .saved import Saved
from .weights import NAMES, FFNWeights


class GradientRequest:
    """The checked arguments of a backward pass.

    grad_y  the gradient of y as the caller passed it
    grad    the same for checks: grad_y itself, or its ghost on a GPU (arrays/places.py)
    wanted  names of the gradients to compute
    arrays  from names to arrays, for checks and kernels: those of out, else new ones
    own     from names to arrays, for the caller; on a CPU it is the same dict as arrays
    """

    __slots__ = ("_old", "accumulate", "arrays", "grad", "grad_y", "own", "place", "wanted")

    def __init__(
        self, grad_y: object, saved: Saved, needs: object, out: object, accumulate: object
    ) -> None:
        arguments = saved._arguments
        self.place = place = arguments.place
        x = arguments.seen
        self.grad_y: Any = grad_y
        self.grad = grad = see(place, "grad_y", grad_y)
        check_same_dtype("grad_y", grad, check_dtype("x", x), "saved.x")
        check_shape("grad_y", grad, x.shape, "to match saved.x")
        like = _like(arguments)
        self.wanted = _check_needs(needs, arguments, like)
        self.accumulate = bool(accumulate)
        self.arrays: dict[str, Array] = {}
        self.own: dict[str, Any] = self.arrays if place is None else {}
        self._old: XieluGrads | None = None
        if out is not None:
            self._check_out(out, like, arguments, saved._panels)
        elif accumulate:
            raise ValueError("accumulate is True and out is None; expected arrays to add into")
        given, self.arrays = self.arrays, {}
        own, self.own = self.own, self.arrays if place is None else {}
        fresh = np.zeros if accumulate else empty
        for name in self.wanted:
            if name == "activation":
                continue
            if name in given:
                self.arrays[name], self.own[name] = given[name], own[name]
            elif place is None:
                self.arrays[name] = fresh(like[name].shape, like[name].dtype)
            else:
                made = place.make(like[name].shape, like[name].dtype, zero=self.accumulate)
                self.own[name], self.arrays[name] = made

    @property
    def xielu(self) -> bool:
        return "activation" in self.wanted

    def numbers(self, found: tuple[Any, Any] | None) -> XieluGrads | None:
        """The gradients of xielu's parameters: those found, plus those of out to accumulate."""
        if found is None or not self.xielu:
            return None
        if not self.accumulate or self._old is None:
            return XieluGrads(*found)
        add = operator.add if self.place is None else self.place.library.sum
        return XieluGrads(*(add(new, old) for new, old in zip(found, self._old, strict=True)))

    def _check_out(
        self, out: object, like: dict[str, Array], arguments: LayerArguments, panels: MaybeArray
    ) -> None:
        """Check out=, and take its arrays by name and its numbers."""
        if isinstance(out, FFNGrads):
            entries: dict[str, Any] = {**out.arrays(), "activation": out.activation}
        elif isinstance(out, Mapping):
            entries = dict(out)
            check_names("out", entries, _known(arguments))
        else:
            raise TypeError(f"out is of type {type(out).__name__}; expected FFNGrads or a mapping")
        old = entries.pop("activation", None)
        if old is not None:
            if not isinstance(old, tuple) or len(old) != 2:
                raise TypeError(
                    "out.activation is not a pair of numbers; expected (alpha_p, alpha_n)"
                )
            self._old = XieluGrads(*old)
        inputs: list[tuple[str, MaybeArray]] = [
            ("grad_y", self.grad),
            ("x", arguments.seen),
            *weights_inputs(arguments.weights),
            ("the saved activations", panels),
        ]
        if arguments.routing is not None:
            inputs += routing_inputs(arguments.routing)
        for name, array in entries.items():
            if array is None:
                continue
            label = f"out.{name}"
            if name not in self.wanted:
                raise ValueError(
                    f"{label} is given, but needs is {self.wanted}; expected {name!r} in needs"
                )
            reason = f"to match {'w.' + name if name in NAMES else name}"
            seen = check_out(
                label,
                see(self.place, label, array),
                like[name].shape,
                like[name].dtype,
                reason,
                or_float32=True,
            )
            check_apart(label, seen, inputs)
            inputs.append((label, seen))
            self.arrays[name] = seen
            if self.place is not None:
                self.own[name] = array


_NO_ARRAY = np.empty(())


def _like(arguments: LayerArguments) -> dict[str, Array]:
    """For each gradient that a call can give, by name, an array of its shape and dtype."""
    found = {"x": arguments.seen}
    if arguments.routing is not None:
        found["routing_weights"] = arguments.routing._arrays[1]
    if isinstance(arguments.weights, FFNWeights):
        views = arguments.weights._views
        found |= {name: a for name, a in views.items() if isinstance(a, np.ndarray)}
        if arguments.activation.name == "xielu":
            found["activation"] = _NO_ARRAY
    return found


def _known(arguments: LayerArguments) -> tuple[str, ...]:
    return GRADIENTS if arguments.routing is None else MOE_GRADIENTS


def _check_needs(
    needs: object, arguments: LayerArguments, exist: dict[str, Array]
) -> tuple[str, ...]:
    if needs is None:
        return tuple(exist)
    wanted = check_names("needs", needs, _known(arguments))
    for name in wanted:
        if name in exist:
            continue
        if isinstance(arguments.weights, PackedWeights):
            raise ValueError(
                f"needs has {name!r}, but packed weights give only the gradient of "
                f"{' and '.join(exist)}"
            )
        if name in NAMES and isinstance(getattr(arguments.weights, name), QuantizedTensor):
            raise ValueError(
                f"needs has {name!r}, but w.{name} is quantised, so that it has no gradient"
            )
        if name == "activation":
            raise ValueError(
                f"needs has 'activation', but {arguments.activation.name} has no trainable "
                f"parameters"
            )
        raise ValueError(f"needs has {name!r}, but the weights have no {name}")
    return tuple(dict.fromkeys(wanted))
