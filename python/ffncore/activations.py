"""Activations: names, options, and the elementwise functions with their derivatives.

    gated block  h = act(gate) * up         plain block  h = act(up)

    v = gate * gate_multiplier              in a plain block v = up * gate_multiplier
    v = min(v, limit)                       clamp="pre"
    a = act(v)                              alpha, gate_softcap, negative_slope, xielu's four
    a = min(a, limit)                       clamp="post"
    u = clip(up, -limit, limit)             either clamp
    u = up_softcap * tanh(u / up_softcap)
    h = a * (u + up_offset)

`ffncore.reference` has every formula in numpy. Tests: tests/test_activations.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

from . import _core
from ._arrays import (
    Array,
    MaybeArray,
    as_array,
    check_apart,
    check_dtype,
    check_out,
    check_same_dtype,
    check_shape,
    check_size,
    nearest,
    rows_of,
    rows_view,
)

# The numbers are ffncore_activation_kind of ffncore.h.
KINDS = {
    "identity": 0,
    "relu": 1,
    "relu2": 2,
    "gelu": 3,
    "gelu_tanh": 4,
    "quick_gelu": 5,
    "silu": 6,
    "sigmoid": 7,
    "tanh": 8,
    "mish": 9,
    "hardswish": 10,
    "leaky_relu": 11,
    "xielu": 12,
}

# Other names of the same functions, as model configurations spell them.
ALIASES = {
    "linear": "identity",
    "swish": "silu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "hard_swish": "hardswish",
}

_CLAMPS = {"pre": 1, "post": 2}

# Options that only some activations have, and their values there when not given. xielu starts
# where its authors start it: softplus(alpha_p) = 0.8 and beta + softplus(alpha_n) = 0.8.
_OWN_OPTIONS: dict[str, dict[str, float | None]] = {
    "silu": {"alpha": 1.0, "gate_softcap": None},
    "quick_gelu": {"gate_softcap": None},
    "leaky_relu": {"negative_slope": 0.01},
    "xielu": {
        "alpha_p": math.log(math.expm1(0.8)),
        "alpha_n": math.log(math.expm1(0.8 - 0.5)),
        "beta": 0.5,
        "eps": -1e-6,
    },
}
_SPECIAL = ("alpha", "gate_softcap", "negative_slope", "alpha_p", "alpha_n", "beta", "eps")
# ActivationTuple of _core.pyi, after kind and clamp.
_CORE_ORDER = (
    *("limit", "alpha", "up_offset", "gate_softcap", "up_softcap", "gate_multiplier"),
    *("negative_slope", "alpha_p", "alpha_n", "beta", "eps"),
)
_POSITIVE = ("limit", "gate_softcap", "up_softcap")


@dataclass(frozen=True, init=False)
class Activation:
    """An activation with its options; a plain name works wherever no option is needed.

    alpha           silu: v * sigmoid(alpha * v)
    limit, clamp    gated blocks: "pre" (default) clamps the gate from above before the activation,
                    "post" clamps its result; both clip up to [-limit, limit]
    up_offset       gated blocks: h = a * (u + up_offset)
    gate_softcap    silu, quick_gelu: c * tanh(v / c) * sigmoid(alpha * v)
    up_softcap      gated blocks: c * tanh(up / c)
    gate_multiplier what the activation sees is multiplied by this first
    negative_slope  leaky_relu
    alpha_p, alpha_n, beta, eps   xielu; the first two are its trainable parameters

    Options that an activation does not have are None; giving one raises.
    """

    name: str
    alpha: float | None
    limit: float | None
    clamp: str | None
    up_offset: float
    gate_softcap: float | None
    up_softcap: float | None
    gate_multiplier: float
    negative_slope: float | None
    alpha_p: float | None
    alpha_n: float | None
    beta: float | None
    eps: float | None
    if TYPE_CHECKING:  # set by __init__; not options, so not fields
        _core: _core.ActivationTuple
        _gated_only: list[str]

    def __init__(
        self,
        name: str,
        *,
        alpha: float | None = None,
        limit: float | None = None,
        clamp: str | None = None,
        up_offset: float = 0.0,
        gate_softcap: float | None = None,
        up_softcap: float | None = None,
        gate_multiplier: float = 1.0,
        negative_slope: float | None = None,
        alpha_p: float | None = None,
        alpha_n: float | None = None,
        beta: float | None = None,
        eps: float | None = None,
        **unknown: NoReturn,
    ) -> None:
        for option in unknown:
            known = [field.name for field in fields(self)][1:]
            raise TypeError(f"option {option!r} is not known; {nearest(option, known)}")
        name = canonical_name(name)
        given: dict[str, Any] = {
            "alpha": alpha,
            "limit": limit,
            "up_offset": up_offset,
            "gate_softcap": gate_softcap,
            "up_softcap": up_softcap,
            "gate_multiplier": gate_multiplier,
            "negative_slope": negative_slope,
            "alpha_p": alpha_p,
            "alpha_n": alpha_n,
            "beta": beta,
            "eps": eps,
        }
        for option, value in given.items():
            if value is not None:
                given[option] = _number(option, value)
        own = _OWN_OPTIONS.get(name, {})
        for option in _SPECIAL:
            if option in own:
                if given[option] is None:
                    given[option] = own[option]
            elif given[option] is not None:
                users = [n for n, options in _OWN_OPTIONS.items() if option in options]
                raise ValueError(f"option {option} belongs to {' and '.join(users)}; got {name}")
        if clamp is not None and clamp not in _CLAMPS:
            raise ValueError(f"option clamp is {clamp!r}; expected 'pre' or 'post'")
        if limit is None and clamp is not None:
            raise ValueError(f"option clamp is {clamp!r} without a limit; expected both or neither")
        if limit is not None and clamp is None:
            clamp = "pre"
        for option in ("up_offset", "gate_multiplier"):
            if given[option] is None:
                raise TypeError(f"option {option} is None; expected a number")

        for option, value in {"name": name, "clamp": clamp, **given}.items():
            object.__setattr__(self, option, value)
        # What _core takes, made once, because a call is short. 0 stands for "none"; the kernels
        # read alpha for silu alone.
        core = [given[option] or 0.0 for option in _CORE_ORDER]
        if alpha is None:
            core[_CORE_ORDER.index("alpha")] = 1.0
        object.__setattr__(self, "_core", (KINDS[name], _CLAMPS.get(clamp or "", 0), *core))
        used = [o for o in ("limit", "up_softcap") if given[o] is not None]
        object.__setattr__(self, "_gated_only", used + ["up_offset"] * (given["up_offset"] != 0))

    def __repr__(self) -> str:
        plain = {"up_offset": 0.0, "gate_multiplier": 1.0, **_OWN_OPTIONS.get(self.name, {})}
        options = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in fields(self)[1:]
            if getattr(self, field.name) != plain.get(field.name)
        ]
        return f"Activation({', '.join([repr(self.name), *options])})"


def _number(option: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (Real, np.floating, np.integer)):
        raise TypeError(f"option {option} is of type {type(value).__name__}; expected a number")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"option {option} is {number}; expected a finite number")
    if option in _POSITIVE and number <= 0:
        raise ValueError(f"option {option} is {number}; expected a number above 0")
    if option == "eps" and number > 0:
        raise ValueError(f"option eps is {number}; expected a number not above 0")
    return number


def canonical_name(name: object) -> str:
    """'swish' -> 'silu'; an unknown name raises and tells the nearest."""
    if not isinstance(name, str):
        raise TypeError(f"activation is of type {type(name).__name__}; expected a name")
    name = ALIASES.get(name, name)
    if name not in KINDS:
        raise ValueError(f"activation {name!r} is not known; {nearest(name, [*KINDS, *ALIASES])}")
    return name


_PLAIN = {name: Activation(name) for name in [*KINDS, *ALIASES]}
PLAIN_CORE = {name: activation._core for name, activation in _PLAIN.items()}


def as_activation(activation: object) -> Activation:
    """A name or an Activation -> Activation."""
    if isinstance(activation, Activation):
        return activation
    if not isinstance(activation, str):
        raise TypeError(
            f"activation is of type {type(activation).__name__}; expected a name or an Activation"
        )
    known = _PLAIN.get(activation)
    return known if known is not None else _PLAIN[canonical_name(activation)]


def to_tuple(activation: object, gated: bool) -> _core.ActivationTuple:
    """What _core takes; raises where an option needs a gate and there is none."""
    checked = as_activation(activation)
    if checked._gated_only and not gated:
        raise ValueError(
            f"option {checked._gated_only[0]} belongs to gated blocks; got {checked!r} without one"
        )
    return checked._core


class XieluGrads(NamedTuple):
    """Gradients of xielu's two trainable parameters."""

    alpha_p: float
    alpha_n: float


class ActivationGrads(NamedTuple):
    """Gradients of fc.activation; up is None in the plain form, activation where not xielu."""

    x: Array
    up: MaybeArray
    activation: XieluGrads | None


def _operands(
    x: object, up: object, activation: object
) -> tuple[Array, MaybeArray, _core.ActivationTuple]:
    """Checks what both passes take: x [...], up of the same shape or None."""
    first = as_array("x", x)
    dtype = check_dtype("x", first)
    second = None
    if up is not None:
        second = as_array("up", up)
        check_same_dtype("up", second, dtype, "x")
        check_shape("up", second, first.shape, "to match x")
    check_size(first.size, 1, "the dimensions of x")
    return first, second, to_tuple(activation, second is not None)


def _flat(array: Array) -> Array:
    """[...] -> 2-D for _core: the last axis stays, so that any strides can be viewed."""
    return rows_of(array if array.ndim else array.reshape(1))


def _target(array: Array) -> tuple[Array, bool]:
    """A 2-D array to write to, and whether it is apart from `array` and has to be copied back."""
    flat = array if array.ndim else array.reshape(1)
    view = rows_view(flat)
    if view is not None:
        return view, False
    return np.empty((flat.size // flat.shape[-1], flat.shape[-1]), array.dtype), True


def _check_out_tuple(out: object, gated: bool) -> None:
    if not isinstance(out, tuple):
        raise TypeError(f"out is of type {type(out).__name__}; expected a tuple (x, up)")
    if not gated and len(out) > 1 and out[1] is not None:
        raise ValueError("out has an array for up; expected None there, because up is not given")


def activation(
    x: Array, up: MaybeArray = None, *, activation: object, out: MaybeArray = None
) -> Array:
    """act(x), or act(x) * up where up is given: then x is the gate. All [...], of one shape.

    >>> h = fc.activation(gate, up, activation="silu")
    """
    x, up, core = _operands(x, up, activation)
    if out is None:
        out = np.empty(x.shape, x.dtype)
    else:
        out = check_out("out", out, x.shape, x.dtype, "to match x")
        check_apart("out", out, (("x", x), ("up", up)))
    h, apart = _target(out)
    if up is None:
        _core.activation_forward(None, _flat(x), h, core)
    else:
        _core.activation_forward(_flat(x), _flat(up), h, core)
    if apart:
        out[...] = h.reshape(out.shape)
    return out


def activation_backward(
    grad: Array,
    x: Array,
    up: MaybeArray = None,
    *,
    activation: object,
    out: tuple[Any, ...] | None = None,
) -> ActivationGrads:
    """Gradients of `activation` at x (and up), from the gradient of its result.

    out: arrays to fill, (x,) or (x, up), each of which may be None; or former ActivationGrads.
    """
    x, up, core = _operands(x, up, activation)
    dtype = check_dtype("x", x)
    grad = as_array("grad", grad)
    check_same_dtype("grad", grad, dtype, "x")
    check_shape("grad", grad, x.shape, "to match x")
    if out is not None:
        _check_out_tuple(out, up is not None)
    grads: list[Array] = []
    inputs: list[tuple[str, MaybeArray]] = [("grad", grad), ("x", x), ("up", up)]
    for index, name in enumerate(("out.x", "out.up")[: 1 if up is None else 2]):
        given = out[index] if out is not None and len(out) > index else None
        if given is None:
            grads.append(np.empty(x.shape, dtype))
        else:
            grads.append(check_out(name, given, x.shape, dtype, "to match x"))
            check_apart(name, grads[-1], inputs)
            inputs.append((name, grads[-1]))

    targets = [_target(g) for g in grads]
    is_xielu = core[0] == KINDS["xielu"]
    first = targets[0][0]
    if up is None:
        sums = _core.activation_backward(_flat(grad), None, _flat(x), None, first, core, is_xielu)
    else:
        sums = _core.activation_backward(
            _flat(grad), _flat(x), _flat(up), first, targets[1][0], core, is_xielu
        )
    for array, (computed, apart) in zip(grads, targets, strict=True):
        if apart:
            array[...] = computed.reshape(array.shape)
    return ActivationGrads(
        grads[0], grads[1] if up is not None else None, XieluGrads(*sums) if sums else None
    )
