"""The options of fc.route: their checks, and the struct that the compiled core takes.

    selection   the k largest of v = s(z), or of v = z with select_on="logits", each plus the
                expert's e_score_correction_bias
    groups      experts outside the topk_group best of n_group groups have v = group_mask_value
    weights     c s / D for the chosen experts;  D = 1, or max(sum s + norm_eps, norm_min)

An option that would have no effect together with the others is an error, because whoever passes it
expects an effect. Tests: tests/values/test_routing_errors.py.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from .. import _core
from ..arrays.dtypes import FLOAT32, FLOAT64, check_same_dtype, dtype_name
from ..arrays.scalars import integer, known, number
from ..arrays.shapes import Array, MaybeArray, aligned, as_array, check_shape

# The numbers are those of the enums ffncore_score_fn and ffncore_group_score in ffncore.h.
SCORE_FNS = {"softmax": 0, "sigmoid": 1, "sqrtsoftplus": 2, "softmax_topk": 3}
GROUP_SCORES = {"top2_sum": 0, "max": 1}
SELECT_ON = {"scores": 0, "logits": 1}

# Expert ids are int32.
MOST_EXPERTS = 2**31 - 1


# A router as the kernels take it, without its bias: numbers from the tables above, and checked
# values.
CoreRouter: TypeAlias = _core.Router


class RouterCore(NamedTuple):
    """The numbers of a router in a pickle, in the order of Options."""

    score_fn: int
    select_on_logits: int
    norm_topk_prob: bool
    norm_eps: float
    norm_min: float
    routed_scaling_factor: float
    n_group: int
    topk_group: int
    group_score: int
    group_mask_value: float


class Options(NamedTuple):
    """The options of fc.route that are not arrays, as the caller passed them."""

    score_fn: str = "softmax"
    select_on: str = "scores"
    norm_topk_prob: bool = True
    norm_eps: float = 0.0
    norm_min: float = 0.0
    routed_scaling_factor: float = 1.0
    n_group: int = 1
    topk_group: int = 1
    group_score: str = "top2_sum"
    group_mask_value: float = -math.inf

    def core(self, logits: Array, top_k: int, *, given: bool = False) -> CoreRouter:
        """The options for _core, checked for such logits; given: the caller chose the experts."""
        case = (logits.shape[-1], top_k, logits.dtype, given)
        try:
            return _cached(*case, *self)
        except TypeError:  # an option has no hash, or a wrong type, which raises here again
            return self._checked(*case)

    def _checked(self, experts: int, top_k: int, dtype: np.dtype[Any], given: bool) -> CoreRouter:
        score = known("score_fn", self.score_fn, SCORE_FNS)
        select = known("select_on", self.select_on, SELECT_ON)
        group_score = known("group_score", self.group_score, GROUP_SCORES)
        if given:
            self._check_chosen()
        else:
            self._check_groups(experts, top_k)
        return _core.Router(
            score_fn=score,
            select_on_logits=select == SELECT_ON["logits"],
            norm_topk_prob=self._normalizes(dtype),
            norm_eps=float(self.norm_eps),
            norm_min=float(self.norm_min),
            routed_scaling_factor=number(
                "routed_scaling_factor", self.routed_scaling_factor, dtype
            ),
            n_group=int(self.n_group),
            topk_group=int(self.topk_group),
            group_score=group_score,
            group_mask_value=float(self.group_mask_value),
        )

    def _normalizes(self, dtype: np.dtype[Any]) -> bool:
        if not isinstance(self.norm_topk_prob, (bool, np.bool_)):
            raise TypeError(
                f"norm_topk_prob is of type {type(self.norm_topk_prob).__name__}; expected a bool"
            )
        if self.score_fn == "softmax_topk" and not self.norm_topk_prob:
            raise ValueError(
                "norm_topk_prob is False, but softmax_topk always normalizes the weights; "
                "expected True"
            )
        for name in ("norm_eps", "norm_min"):
            value = number(name, getattr(self, name), dtype)
            if value < 0:
                raise ValueError(f"{name} is {value}; expected a number not below 0")
            if value and not self.norm_topk_prob:
                raise ValueError(f"{name} is {value} with norm_topk_prob=False; expected 0")
            if value and self.score_fn == "softmax_topk":
                raise ValueError(f"{name} is {value}, which softmax_topk does not use; expected 0")
        return bool(self.norm_topk_prob)

    def _check_groups(self, experts: int, top_k: int) -> None:
        groups = integer("n_group", self.n_group)
        best = integer("topk_group", self.topk_group)
        if self.group_mask_value not in (0, -math.inf):
            raise ValueError(f"group_mask_value is {self.group_mask_value!r}; expected -inf or 0")
        if groups < 1 or experts % groups:
            raise ValueError(f"n_group is {groups}; expected a divisor of the {experts} experts")
        if not 1 <= best <= groups:
            raise ValueError(f"topk_group is {best}; expected 1 to {groups}, which is n_group")
        if groups == 1:
            for name in self._given("group_score", "group_mask_value"):
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, but n_group is 1; expected it with groups"
                )
        elif experts == groups and self.group_score == "top2_sum":
            raise ValueError(
                f"n_group is {groups}, which makes groups of one expert; expected at least two "
                f"experts in a group for group_score 'top2_sum'"
            )
        left = best * (experts // groups)
        if top_k > left:
            where = f" in {best} of {groups} groups" if groups > 1 else ""
            raise ValueError(
                f"top_k is {top_k}; expected 1 to {left}, the number of experts{where}"
            )

    def _check_chosen(self) -> None:
        """Refuse options that select experts, because the caller passed experts."""
        selecting = ("select_on", "n_group", "topk_group", "group_score", "group_mask_value")
        for name in self._given(*selecting):
            raise ValueError(f"{name} and experts are both given; expected only one of them")

    def _given(self, *names: str) -> list[str]:
        return [name for name in names if getattr(self, name) != Options._field_defaults[name]]


# A layer passes the same options in every call. typed: True must not be taken for 1.
@functools.lru_cache(maxsize=1024, typed=True)
def _cached(
    experts: int, top_k: int, dtype: np.dtype[Any], given: bool, *options: Any
) -> CoreRouter:
    return Options(*options)._checked(experts, top_k, dtype, given)


def stored(core: CoreRouter) -> RouterCore:
    """The router for a pickle."""
    named = {name: getattr(core, name) for name in RouterCore._fields}
    return RouterCore(**named | {"norm_topk_prob": bool(core.norm_topk_prob)})


def check_core(core: Any, logits: Array) -> CoreRouter:
    """The router that `stored` describes; a pickle, which may contain anything, is checked."""
    values = Options._make(core)._asdict()
    tables = {"score_fn": SCORE_FNS, "select_on": SELECT_ON, "group_score": GROUP_SCORES}
    for option, table in tables.items():
        names = {number: name for name, number in table.items()}
        values[option] = names.get(values[option], str(values[option]))
    return Options(**values).core(logits, 1)


def check_bias(value: object, logits: Array, *, given: bool) -> MaybeArray:
    """e_score_correction_bias [E], with the dtype of logits, or None."""
    if value is None:
        return None
    name = "e_score_correction_bias"
    if given:
        raise ValueError(f"{name} and experts are both given; expected only one of them")
    bias = as_array(name, value)
    check_same_dtype(name, bias, check_logits_dtype("logits", logits), "logits")
    check_shape(name, bias, logits.shape[-1:], f"to match logits {logits.shape}")
    return aligned(bias)


def check_logits(value: object, name: str = "logits", rank: int = 1) -> Array:
    """Logits [..., E], float32 or float64, with at least `rank` dimensions."""
    logits = as_array(name, value)
    check_logits_dtype(name, logits)
    if logits.ndim < rank:
        shape = "[..., E]" if rank == 1 else "[..., T, E]"
        raise ValueError(f"{name} has shape {logits.shape}; expected {shape}")
    if not 1 <= logits.shape[-1] <= MOST_EXPERTS:
        raise ValueError(
            f"{name} has shape {logits.shape}; expected from 1 to {MOST_EXPERTS} experts"
        )
    return logits


def check_logits_dtype(name: str, array: Array) -> np.dtype[Any]:
    """float32 or float64: routing has no 16-bit dtypes, even where x has 16 bits."""
    for dtype in (FLOAT32, FLOAT64):
        if array.dtype == dtype:
            return dtype
    raise TypeError(f"{name} has dtype {dtype_name(array.dtype)}; expected float32 or float64")
