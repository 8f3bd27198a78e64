"""The compiled door (csrc/bindings/module.cpp). Arrays come in as numpy arrays whose dtype, rank
and shape Python has already checked; nothing is checked twice here.

What takes or gives arrays, measure and clear_workspace run without the GIL."""

from collections.abc import Sequence
from typing import Any

import numpy as np

__version__: str

Array = np.ndarray[Any, Any]
MaybeArray = Array | None
# kind, clamp, limit, alpha, up_offset, gate_softcap, up_softcap, gate_multiplier,
# negative_slope, alpha_p, alpha_n, beta, eps
ActivationTuple = tuple[
    int, int, float, float, float, float, float, float, float, float, float, float, float
]
# gate, up, down, b_gate, b_up, b_down: 2-D and 1-D arrays of any strides, or None; of experts 3-D
# and 2-D
WeightsTuple = tuple[MaybeArray, Array, Array, MaybeArray, MaybeArray, MaybeArray]
# packed buffer (uint8, 1-D), d, f, gated, has_b_gate, has_b_up, has_b_down
PackedTuple = tuple[Array, int, int, bool, bool, bool, bool]
# the same, then the number of experts and the bytes from one to the next
PackedExpertsTuple = tuple[Array, int, int, bool, bool, bool, bool, int, int]
# gradients of WeightsTuple's six, in its order
GradientsTuple = tuple[MaybeArray, MaybeArray, MaybeArray, MaybeArray, MaybeArray, MaybeArray]
# experts' weights, their number, the activation, expert ids [T, k] (int32, C order), weights [T, k]
# (float32, or float64), whether these are on the input
MixtureTuple = tuple[WeightsTuple | PackedExpertsTuple, int, ActivationTuple, Array, Array, bool]

# score_fn, select_on_logits, norm_topk_prob, norm_eps, norm_min, routed_scaling_factor, n_group,
# topk_group, group_score, group_mask_value
RouterTuple = tuple[int, bool, bool, float, float, float, int, int, int, float]

def ffn_forward(
    x: Array,
    y: Array,
    weights: WeightsTuple | PackedTuple,
    activation: ActivationTuple,
    saved: MaybeArray,
) -> None: ...  # x [T, d], y [T, d] written, saved: 1-D of x's dtype, saved_bytes(), or None
def ffn_backward(
    x: Array,
    grad_y: Array,
    weights: WeightsTuple | PackedTuple,
    activation: ActivationTuple,
    saved: MaybeArray,
    accumulate: bool,
    grad_x: MaybeArray,
    grads: GradientsTuple,
    xielu: bool,
) -> tuple[float, float] | None: ...  # grads in WeightsTuple's order; returns (alpha_p, alpha_n)
def saved_bytes(x: Array, tokens: int, d_ff: int, gated: bool) -> int: ...  # x's dtype counts
def moe_forward(x: Array, y: Array, mixture: MixtureTuple, saved: MaybeArray) -> None: ...
def moe_backward(
    x: Array,
    grad_y: Array,
    mixture: MixtureTuple,
    saved: MaybeArray,
    accumulate: bool,
    grad_x: MaybeArray,
    grad_routing_weights: MaybeArray,
    grads: GradientsTuple,
    xielu: bool,
) -> tuple[float, float] | None: ...
def moe_saved_bytes(x: Array, experts: Array, n_experts: int, d_ff: int, gated: bool) -> int: ...
def forward_cost(
    dtype: str,
    weights_dtype: str,
    tokens: int,
    d: int,
    f: int,
    gated: bool,
    packed: bool,
    activation: ActivationTuple,
    save: bool,
) -> dict[str, float | int]: ...
def backward_cost(
    dtype: str,
    weights_dtype: str,
    tokens: int,
    d: int,
    f: int,
    gated: bool,
    packed: bool,
    activation: ActivationTuple,
    recompute: bool,
    needs: Sequence[bool],
) -> dict[str, float | int]: ...  # needs: x, WeightsTuple's six, the activation's parameters
def activation_forward(
    gate: MaybeArray, up: Array, h: Array, activation: ActivationTuple
) -> None: ...  # 2-D, any strides
def activation_backward(
    grad_h: Array,
    gate: MaybeArray,
    up: Array,
    grad_gate: MaybeArray,
    grad_up: Array,
    activation: ActivationTuple,
    xielu: bool,
) -> tuple[float, float] | None: ...
def route(
    logits: Array,
    experts: Array,
    given: bool,
    weights: Array,
    log_sum_exp: MaybeArray,
    router: RouterTuple,
    bias: MaybeArray,
) -> None: ...  # [T, E], int32 [T, k] contiguous in k, [T, k], [T], [E]; given: experts are read
def route_backward(
    grad_weights: Array, experts: Array, logits: Array, grad_logits: Array, router: RouterTuple
) -> None: ...
def packed_bytes(dtype: str, weights: WeightsTuple) -> int: ...  # dtype: of the packed matrices
def pack(dtype: str, weights: WeightsTuple, packed: Array) -> None: ...
def unpack(packed: PackedTuple, into: WeightsTuple) -> None: ...
def isas() -> list[str]: ...  # usable here, best last
def isa() -> str: ...
def use_isa(name: str | None) -> None: ...  # None: the default; ValueError with the sentence
def cpu_features() -> str: ...
def build_info() -> str: ...
def num_threads() -> int: ...
def set_num_threads(n: int) -> None: ...  # 0: default
def clear_workspace() -> None: ...
def debug_plan(
    token_chunk: int = 0,
    ff_chunk: int = 0,
    token_slice: int = 0,
    tokens_in_rows: int = -1,
    threads_always: bool = False,
) -> None: ...  # see ffncore_debug_plan in ffncore.h
def debug_flops() -> int: ...  # since the last call
def measure(what: str, isa: str, dtype: str, bytes: int, seconds: float, threads: int) -> float: ...
