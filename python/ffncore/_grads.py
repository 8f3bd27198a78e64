"""Gradients of a block: which exist, which are wanted, and the arrays they are written to.

Names are those of FFNWeights, "x", and "activation" for xielu's two parameters.
Tests: tests/test_backward.py.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._arrays import (
    Array,
    MaybeArray,
    as_array,
    check_apart,
    check_dtype,
    check_names,
    check_out,
    check_same_dtype,
    check_shape,
)
from ._copying import Copied
from ._memory import empty
from ._saved import MoESaved, Saved
from .elementwise import XieluGrads
from .packed import PackedWeights
from .routing import Routing
from .weights import NAMES, FFNWeights

GRADIENTS = ("x", *NAMES, "activation")
MOE_GRADIENTS = ("x", "routing_weights", *NAMES, "activation")


@dataclass(frozen=True, eq=False, repr=False)
class FFNGrads(Copied):
    """Gradients of a block; None is what was not asked for.

    weights is an FFNWeights that mirrors the weights, activation holds xielu's two parameters.
    """

    x: MaybeArray = None
    weights: FFNWeights | None = None
    activation: XieluGrads | None = None

    def __repr__(self) -> str:
        shapes = [f"{name}={tuple(a.shape)}" for name, a in self.arrays().items()]
        name = type(self).__name__
        return f"{name}({', '.join(shapes + [f'activation={self.activation}'])})"

    def arrays(self) -> dict[str, Array]:
        """The arrays that exist, by the names of needs=."""
        own = {} if self.x is None else {"x": self.x}
        return {**own, **(self.weights.arrays() if self.weights is not None else {})}


def mirror(
    grads: dict[str, Array], weights: FFNWeights | PackedWeights, out: object
) -> FFNWeights | None:
    """The gradients of weights as FFNWeights: out's own where its arrays are these."""
    if not grads:
        return None
    given = out.weights if isinstance(out, FFNGrads) else None
    if given is not None and all(grads.get(name) is getattr(given, name) for name in NAMES):
        return given
    complete = (
        isinstance(weights, FFNWeights)
        and len(grads) == len(weights.arrays())
        and len({a.dtype for a in grads.values()}) == 1
    )
    return FFNWeights(**grads) if complete else FFNWeights._partial(grads)


def gradient_shapes(saved: Saved) -> dict[str, tuple[int, ...]]:
    """The gradients that exist for this call, by name, and their shapes."""
    shapes = {"x": saved._own_x.shape}
    if isinstance(saved, MoESaved):
        shapes["routing_weights"] = saved.routing._arrays[1].shape
    if isinstance(saved.weights, FFNWeights):
        shapes.update({name: a.shape for name, a in saved.weights._seen().items()})
        if saved.activation.name == "xielu":
            shapes["activation"] = ()
    return shapes


def gradient_dtype(saved: Saved, name: str) -> np.dtype[Any]:
    """That of what it is a gradient of."""
    if isinstance(saved, MoESaved) and name == "routing_weights":
        routing_dtype: np.dtype[Any] = saved.routing._arrays[1].dtype
        return routing_dtype
    if name != "x" and isinstance(saved.weights, FFNWeights):
        dtype: np.dtype[Any] = saved.weights._seen()[name].dtype
        return dtype
    own: np.dtype[Any] = saved._own_x.dtype
    return own


def _known(saved: Saved) -> tuple[str, ...]:
    return MOE_GRADIENTS if isinstance(saved, MoESaved) else GRADIENTS


class Asked:
    """What a backward pass is asked for, tested, and the arrays that it fills.

    grad    the gradient of y
    wanted  names of gradients
    arrays  by name: those of out, else fresh ones
    """

    def __init__(
        self,
        grad_y: object,
        saved: Saved,
        needs: object,
        out: object,
        accumulate: object,
        make: Callable[..., Array] | None = None,  # fresh arrays, where they are not numpy's
    ) -> None:
        self.grad = as_array("grad_y", grad_y)
        check_same_dtype("grad_y", self.grad, check_dtype("x", saved._own_x), "saved.x")
        check_shape("grad_y", self.grad, saved._own_x.shape, "to match saved.x")
        self.wanted = check_needs(needs, saved)
        self.accumulate = bool(accumulate)
        given, self._old = check_grads_out(out, self.wanted, saved, self.grad)
        if accumulate and out is None:
            raise ValueError("accumulate is True and out is None; expected arrays to add into")
        shapes = gradient_shapes(saved)
        fresh = make or (np.zeros if accumulate else empty)
        self.arrays: dict[str, Array] = {
            name: given[name] if name in given else fresh(shapes[name], gradient_dtype(saved, name))
            for name in self.wanted
            if name != "activation"
        }

    @property
    def xielu(self) -> bool:
        return "activation" in self.wanted

    def numbers(
        self,
        results: list[tuple[float, float] | None],
        add: Callable[[Any, Any], Any] = operator.add,
    ) -> XieluGrads | None:
        """xielu's two, from what the pass returned."""
        if not self.xielu or not results or results[0] is None:
            return None
        numbers = XieluGrads(*results[0])
        if not self.accumulate or self._old is None:
            return numbers
        return XieluGrads(*(add(new, old) for new, old in zip(numbers, self._old, strict=True)))


def check_needs(needs: object, saved: Saved) -> tuple[str, ...]:
    exist = gradient_shapes(saved)
    if needs is None:
        return tuple(exist)
    wanted = check_names("needs", needs, _known(saved))
    for name in wanted:
        if name in exist:
            continue
        if isinstance(saved.weights, PackedWeights):
            raise ValueError(
                f"needs has {name!r}, but packed weights give the gradient of "
                f"{' and '.join(exist)} alone"
            )
        if name == "activation":
            raise ValueError(
                f"needs has 'activation', but {saved.activation.name} has no trainable parameters"
            )
        raise ValueError(f"needs has {name!r}, but the block has no w.{name}")
    return tuple(dict.fromkeys(wanted))


def check_grads_out(
    out: object, wanted: tuple[str, ...], saved: Saved, grad: Array
) -> tuple[dict[str, Array], XieluGrads | None]:
    """out= as arrays by name, and its numbers."""
    if out is None:
        return {}, None
    if isinstance(out, FFNGrads):
        entries: dict[str, Any] = {**out.arrays(), "activation": out.activation}
    elif isinstance(out, Mapping):
        entries = dict(out)
        check_names("out", entries, _known(saved))
    else:
        raise TypeError(f"out is of type {type(out).__name__}; expected FFNGrads or a mapping")
    old = entries.pop("activation", None)
    if old is not None:
        if not isinstance(old, tuple) or len(old) != 2:
            raise TypeError("out.activation is no pair of numbers; expected (alpha_p, alpha_n)")
        old = XieluGrads(*old)
    shapes = gradient_shapes(saved)
    inputs: list[tuple[str, MaybeArray]] = [
        ("grad_y", grad),
        ("x", saved._own_x),
        *weights_inputs(saved.weights),
        ("what was saved", saved._panels),
    ]
    if isinstance(saved, MoESaved):
        inputs += routing_inputs(saved.routing)
    arrays: dict[str, Array] = {}
    for name, array in entries.items():
        if array is None:
            continue
        label = f"out.{name}"
        if name not in wanted:
            raise ValueError(f"{label} is given, but needs is {wanted}; expected {name!r} in it")
        reason = f"to match {'w.' + name if name in NAMES else name}"
        arrays[name] = check_out(
            label, array, shapes[name], gradient_dtype(saved, name), reason, or_float32=True
        )
        check_apart(label, arrays[name], inputs)
        inputs.append((label, arrays[name]))
    return arrays, old


def routing_inputs(routing: Routing) -> list[tuple[str, MaybeArray]]:
    """Likewise."""
    experts, weights = routing._arrays
    return [("routing.experts", experts), ("routing.weights", weights)]


def weights_inputs(weights: FFNWeights | PackedWeights) -> list[tuple[str, MaybeArray]]:
    """What an output must not overlap, by name."""
    if isinstance(weights, PackedWeights):
        return [("the packed weights", weights._buffer)]
    return [(f"w.{name}", array) for name, array in weights._seen().items()]
