"""The compiled module (csrc/bindings). Python has checked the dtype, rank and shape of every array
before it calls these functions; they check nothing again.

Functions that compute or move data, measure and clear_workspace run without Python's global lock.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__version__: str

Array = np.ndarray[Any, Any]
MaybeArray = Array | None

class Weights:
    """Weights of one block, or of experts (a leading dimension on every array), of any strides."""

    def __init__(
        self,
        *,
        gate: MaybeArray = None,
        up: Array,
        down: Array,
        b_gate: MaybeArray = None,
        b_up: MaybeArray = None,
        b_down: MaybeArray = None,
    ) -> None: ...
    @staticmethod
    def packed(
        buffer: Array,  # uint8 [bytes], which pack fills
        *,
        d_model: int,
        d_ff: int,
        gated: bool,
        n_experts: int | None = None,
        stride: int = 0,  # bytes from one expert to the next
    ) -> Weights: ...

class Activation:
    """ffncore_activation of ffncore.h: what the numbers mean stands there."""

    def __init__(
        self,
        *,
        kind: int,
        clamp: int,
        limit: float,
        alpha: float,
        up_offset: float,
        gate_softcap: float,
        up_softcap: float,
        gate_multiplier: float,
        negative_slope: float,
        alpha_p: float,
        alpha_n: float,
        beta: float,
        eps: float,
    ) -> None: ...
    kind: int

class Router:
    """ffncore_router of ffncore.h, without the bias."""

    def __init__(
        self,
        *,
        score_fn: int,
        select_on_logits: bool,
        norm_topk_prob: bool,
        norm_eps: float,
        norm_min: float,
        routed_scaling_factor: float,
        n_group: int,
        topk_group: int,
        group_score: int,
        group_mask_value: float,
    ) -> None: ...
    score_fn: int
    select_on_logits: int
    norm_topk_prob: int
    norm_eps: float
    norm_min: float
    routed_scaling_factor: float
    n_group: int
    topk_group: int
    group_score: int
    group_mask_value: float

# x, y [T, d], of which y is written; saved: 1-D of x's dtype, with saved_bytes() bytes, or None
def ffn_forward(
    x: Array, y: Array, weights: Weights, activation: Activation, saved: MaybeArray
) -> None: ...

# grads: arrays for the gradients of weights, by name; returns those of xielu's alpha_p and alpha_n
def ffn_backward(
    x: Array,
    grad_y: Array,
    weights: Weights,
    activation: Activation,
    saved: MaybeArray,
    accumulate: bool,
    grad_x: MaybeArray,
    grads: Mapping[str, Array],
    xielu: bool,
) -> tuple[float, float] | None: ...
def saved_bytes(x: Array, tokens: int, d_ff: int, gated: bool) -> int: ...  # x's dtype counts

# experts: ids [T, k], int32 in C order; routing_weights [T, k], float32 or float64
def moe_forward(
    x: Array,
    y: Array,
    weights: Weights,
    activation: Activation,
    experts: Array,
    routing_weights: Array,
    on_input: bool,
    saved: MaybeArray,
) -> None: ...
def moe_backward(
    x: Array,
    grad_y: Array,
    weights: Weights,
    activation: Activation,
    experts: Array,
    routing_weights: Array,
    on_input: bool,
    saved: MaybeArray,
    accumulate: bool,
    grad_x: MaybeArray,
    grad_routing_weights: MaybeArray,
    grads: Mapping[str, Array],
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
    activation: Activation,
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
    activation: Activation,
    recompute: bool,
    needs: Sequence[bool],
) -> dict[
    str, float | int
]: ...  # needs: x, gate, up, down, b_gate, b_up, b_down, the activation's parameters
def activation_forward(
    gate: MaybeArray, up: Array, h: Array, activation: Activation
) -> None: ...  # 2-D, any strides
def activation_backward(
    grad_h: Array,
    gate: MaybeArray,
    up: Array,
    grad_gate: MaybeArray,
    grad_up: Array,
    activation: Activation,
    xielu: bool,
) -> tuple[float, float] | None: ...
def norm_forward(
    kind: int,
    eps: float,
    gain_offset: float,
    x: Array,
    gain: MaybeArray,
    bias: MaybeArray,
    y: Array,
) -> None: ...  # [T, d], [d], [d], [T, d]
def norm_backward(
    kind: int,
    eps: float,
    gain_offset: float,
    x: Array,
    gain: MaybeArray,
    grad_y: Array,
    grad_x: MaybeArray,
    grad_gain: MaybeArray,
    grad_bias: MaybeArray,
) -> None: ...
def route(
    logits: Array,
    experts: Array,
    given: bool,
    weights: Array,
    log_sum_exp: MaybeArray,
    router: Router,
    bias: MaybeArray,
) -> None: ...  # [T, E], int32 [T, k] contiguous in k, [T, k], [T], [E]; given: experts are read
def route_backward(
    grad_weights: Array, experts: Array, logits: Array, grad_logits: Array, router: Router
) -> None: ...
def packed_bytes(dtype: str, weights: Weights) -> int: ...  # dtype: of the packed matrices
def pack(dtype: str, weights: Weights, buffer: Array) -> None: ...
def unpack(packed: Weights, into: Weights) -> None: ...

# Quantised weights; a matrix is what values/packing/codes.py makes of a QuantizedTensor.
def coded_bytes(matrices: list[Any], biases: list[MaybeArray]) -> int: ...
def pack_coded(matrices: list[Any], biases: list[MaybeArray], buffer: Array) -> None: ...
def header_bytes(buffer: Array) -> int: ...  # the bytes of packed weights, as their header tells
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
def debug_streams(
    panels: int = -1, ahead: int = -1
) -> None: ...  # see ffncore_debug_streams in ffncore.h
def debug_flops() -> int: ...  # since the last call
def measure(what: str, isa: str, dtype: str, bytes: int, seconds: float, threads: int) -> float: ...
