"""Activations: their names, their options, and the struct of numbers that the kernels take.

    gated layer  h = act(gate) * up         plain layer  h = act(up)

With all options, in this order:

    v = gate * gate_multiplier              in a plain layer v = up * gate_multiplier
    v = min(v, limit)                       with clamp="pre"
    a = act(v)                              alpha, gate_softcap, negative_slope, xielu's options
    a = min(a, limit)                       with clamp="post"
    u = clip(up, -limit, limit)             with either clamp
    u = up_softcap * tanh(u / up_softcap)
    h = a * (u + up_offset)

functional/elementwise.py applies an activation to arrays. reference/activations.py has the formulas
in numpy. Tests: tests/values/test_activations.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from numbers import Real
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import numpy as np

from .. import _core
from ..arrays.dtypes import FLOAT32, FLOAT64
from ..arrays.scalars import nearest
from .copied import Copied

# The numbers are those of the enum ffncore_activation_kind in ffncore.h.
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

# From the name that papers give a gated layer to the activation of its gate.
_NAMES_WITH_GATE = {
    "swiglu": "silu",
    "geglu": "gelu",
    "reglu": "relu",
    "glu": "sigmoid",
    "bilinear": "identity",
}

_CLAMPS = {"pre": 1, "post": 2}
_LOG2E = 1 / math.log(2)

# Options that only some activations have, with their defaults. Those of xielu are its authors'
# initial values: softplus(alpha_p) = 0.8 and beta + softplus(alpha_n) = 0.8.
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


# An activation as the kernels take it: ffncore_activation of ffncore.h.
CoreActivation: TypeAlias = _core.Activation

# The options that are numbers, with the names of ffncore_activation in ffncore.h.
NUMBERS = (
    *("limit", "alpha", "up_offset", "gate_softcap", "up_softcap", "gate_multiplier"),
    *("negative_slope", "alpha_p", "alpha_n", "beta", "eps"),
)
_POSITIVE = ("limit", "gate_softcap", "up_softcap")
_GATED_ONLY = ("limit", "up_softcap", "up_offset")


@dataclass(frozen=True, init=False)
class Activation(Copied):
    """An activation with options.

    A gated layer computes h = act(gate) * up, a plain layer h = act(up). Wherever an Activation is
    accepted, its name alone is accepted, too, and means the default options.

    name             "identity", "relu", "relu2", "gelu", "gelu_tanh", "quick_gelu", "silu",
                     "sigmoid", "tanh", "mish", "hardswish", "leaky_relu", "xielu", or a name from
                     model configurations such as "swish", "linear" or "gelu_new"; in any case
    alpha            of silu: v * sigmoid(alpha * v). Default 1
    limit            of gated layers: a bound on gate and up, as clamp says. Default: no bound
    clamp            "pre" (the default with a limit) takes min(gate, limit) before the activation,
                     "post" takes min(act(gate), limit); both clip up to [-limit, limit]
    up_offset        of gated layers: h = act(gate) * (up + up_offset), after the limit
    gate_softcap     of silu and quick_gelu: c * tanh(v / c) * sigmoid(alpha * v) with this c;
                     quick_gelu has alpha 1.702
    up_softcap       of gated layers: c * tanh(up / c) with this c takes the place of up
    gate_multiplier  the input of the activation is multiplied by this number first
    negative_slope   of leaky_relu: the factor of negative inputs. Default 0.01
    alpha_p          of xielu: a trainable parameter, which acts as softplus(alpha_p)
    alpha_n          of xielu: a trainable parameter, which acts as beta + softplus(alpha_n)
    beta             of xielu: the factor of its linear term. Default 0.5
    eps              of xielu: an upper bound of the argument of expm1, at most 0. Default -1e-6

    Each option is an attribute; it is None if the activation does not have it. An Activation cannot
    be changed.

    Raises ValueError for an unknown name, an option that the activation does not have and a value
    out of range; TypeError for an unknown option and a value that is not a number. Whether a limit,
    an offset or a softcap fits a layer is checked by the call.

    Formulas in numpy: ffncore.reference. xielu is that of Huang and Schlag, 2024 (as in Apertus);
    gelu and gelu_tanh those of Hendrycks and Gimpel, 2016; relu2 that of So et al., 2021.

    >>> gpt_oss = fc.Activation("silu", alpha=1.702, limit=7.0, up_offset=1.0)
    >>> y = fc.ffn(x, weights, activation=gpt_oss)
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
        _cores: tuple[CoreActivation | None, ...]  # by case_index; None: does not fit

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
        # The core's form is made once, here, because a call can be very short. 0 stands for "none";
        # the kernels read alpha only for silu.
        numbers = {option: given[option] or 0.0 for option in NUMBERS}
        if alpha is None:
            numbers["alpha"] = 1.0
        core = _core.Activation(kind=KINDS[name], clamp=_CLAMPS.get(clamp or "", 0), **numbers)
        cores = [
            None if self._problem(gated, dtype) else core
            for dtype in (FLOAT64, FLOAT32)
            for gated in (False, True)
        ]
        object.__setattr__(self, "_cores", tuple(cores))

    def _problem(self, gated: bool, dtype: np.dtype[Any]) -> str | None:
        """The sentence that says why a call cannot use this activation, or None if it can."""
        for option in _GATED_ONLY:
            if getattr(self, option) and not gated:
                return f"option {option} is for layers with a gate; got {self!r} without a gate"
        for option in NUMBERS:
            value = getattr(self, option)
            size = value and _unfit(option, value, dtype)
            if size:
                return (
                    f"option {option} is {value}, which is too {size} for {dtype.name}; "
                    f"expected a number that {dtype.name} can compute with"
                )
        return None

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
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(
            f"option {option} is larger than any float; expected a finite number"
        ) from None
    if not math.isfinite(number):
        raise ValueError(f"option {option} is {number}; expected a finite number")
    if option in _POSITIVE and number <= 0:
        raise ValueError(f"option {option} is {number}; expected a number above 0")
    if option == "eps" and number > 0:
        raise ValueError(f"option eps is {number}; expected a number not above 0")
    return number


def _unfit(option: str, value: float, dtype: np.dtype[Any]) -> str | None:
    """Return "small" or "large" if the kernels would make 0 or infinity of this value in dtype."""
    with np.errstate(over="ignore", under="ignore"):
        if dtype.type(value) == 0:
            return "small"
        # The kernels multiply by 1 / softcap, and compute exp(alpha v) as a power of 2.
        if option.endswith("softcap") and np.isinf(dtype.type(1 / value)):
            return "small"
        if np.isinf(dtype.type(value * (_LOG2E if option == "alpha" else 1))):
            return "large"
    return None


def case_index(gated: bool, dtype: np.dtype[Any]) -> int:
    """The index into Activation._cores for a call with such weights."""
    return gated + 2 * (dtype is not FLOAT64)  # 16-bit dtypes are computed in float32


def canonical_name(name: object) -> str:
    """'swish' -> 'silu', 'GELU' -> 'gelu'; the error for an unknown name suggests the nearest."""
    if not isinstance(name, str):
        raise TypeError(f"activation is of type {type(name).__name__}; expected a name")
    known = name.lower()
    known = ALIASES.get(known, known)
    if known in KINDS:
        return known
    if known in _NAMES_WITH_GATE:
        raise ValueError(
            f"activation {name!r} is {_NAMES_WITH_GATE[known]!r} with a gate; expected "
            f"activation={_NAMES_WITH_GATE[known]!r} and weights with gate="
        )
    raise ValueError(f"activation {name!r} is not known; {nearest(known, [*KINDS, *ALIASES])}")


_PLAIN = {name: Activation(name) for name in [*KINDS, *ALIASES]}
# Without options an activation fits every call, so all four entries are the same.
PLAIN_CORE = {name: activation._cores[0] for name, activation in _PLAIN.items()}


def as_activation(activation: object) -> Activation:
    """Return the Activation for a name, or an Activation as it is."""
    if isinstance(activation, Activation):
        return activation
    if not isinstance(activation, str):
        raise TypeError(
            f"activation is of type {type(activation).__name__}; expected a name or an Activation"
        )
    known = _PLAIN.get(activation)
    return known if known is not None else _PLAIN[canonical_name(activation)]


def as_core(activation: object, gated: bool, dtype: np.dtype[Any] = FLOAT64) -> CoreActivation:
    """An activation for _core; ValueError if an option needs a gate or a wider dtype."""
    checked = as_activation(activation)
    core = checked._cores[case_index(gated, dtype)]
    if core is None:
        raise ValueError(checked._problem(gated, FLOAT64 if dtype is FLOAT64 else FLOAT32))
    return core
