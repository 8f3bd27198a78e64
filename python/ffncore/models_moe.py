"""Mixtures of experts in real checkpoints: how families name, store and route them.

    layer.format(number) + a name, behind any prefix

Experts are there as a tensor each (names with {} for the expert) or stacked: gate and up in one
tensor [E, 2 f, d] and down [E, d, f], or both with their last two axes exchanged. Either is found.
What a router does is in config.json; a row turns that into options of fc.Router. A layer without
a router's tensor is a dense one (the first layers of DeepSeek-V3, every other one of Llama 4).

Formulas: the model code in transformers 5, which tests/conformance compares with.
Tests: tests/test_models_moe.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import ffncore as fc

from ._arrays import Array, MaybeArray
from .activations import ALIASES
from .checkpoint import Checkpoint
from .families import FAMILIES, Family, LayerInfo
from .layers import FFN
from .moe_layer import MoE
from .router_layer import Router

Config = dict[str, Any]


# ---- routers: config.json -> options of fc.Router ------------------------------------------------


def _number(config: Config, *keys: str) -> int:
    for key in keys:
        if config.get(key) is not None:
            return int(config[key])
    raise ValueError(f"config.json has no {keys[0]}, which the family's router needs")


def _top_k(config: Config) -> dict[str, Any]:
    return {"top_k": _number(config, "num_experts_per_tok")}


def _softmax(config: Config) -> dict[str, Any]:
    """The default is that of the families' own code."""
    return {**_top_k(config), "norm_topk_prob": bool(config.get("norm_topk_prob", False))}


def _softmax_after(config: Config) -> dict[str, Any]:
    return {**_top_k(config), "score_fn": "softmax_topk"}


def _groups(config: Config, score: str, mask: float) -> dict[str, Any]:
    n_group = int(config.get("n_group") or 1)
    if n_group == 1:
        return {}
    chosen = {"n_group": n_group, "topk_group": _number(config, "topk_group")}
    return {**chosen, "group_score": score, "group_mask_value": mask}


def _deepseek_v2(config: Config) -> dict[str, Any]:
    """norm_topk_prob is in its config.json, and unused by its code."""
    options = _top_k(config) | {
        "norm_topk_prob": False,
        "routed_scaling_factor": float(config.get("routed_scaling_factor", 1.0)),
    }
    method = config.get("topk_method", "greedy")
    if method == "group_limited_greedy":
        return options | _groups(config, "max", 0.0)
    if method != "greedy":
        raise ValueError(
            f"config.json has topk_method {method!r}; expected 'greedy' or 'group_limited_greedy'"
        )
    return options


def _deepseek_v3(config: Config) -> dict[str, Any]:
    norm = bool(config.get("norm_topk_prob", True))
    return {
        **_top_k(config),
        "score_fn": "sigmoid",
        "norm_topk_prob": norm,
        **({"norm_eps": 1e-20} if norm else {}),
        "routed_scaling_factor": float(config.get("routed_scaling_factor", 1.0)),
        **_groups(config, "top2_sum", -np.inf),
    }


def _llama4(config: Config) -> dict[str, Any]:
    return {
        **_top_k(config),
        "score_fn": "sigmoid",
        "select_on": "logits",
        "norm_topk_prob": False,
    }


# ---- rows ----------------------------------------------------------------------------------------


def _plain(_: Config, name: str) -> fc.Activation:
    return fc.Activation(name)


def _gpt_oss(config: Config, name: str) -> fc.Activation:
    """gate sigmoid(1.702 gate) (up + 1), both clamped."""
    return fc.Activation(
        name,
        alpha=float(config.get("swiglu_alpha") or 1.702),
        limit=float(config.get("swiglu_limit") or 7.0),
        up_offset=1.0,
    )


_LLAMA = next(row for row in FAMILIES if row.name == "llama")
_PROJECTIONS = ("gate_proj.weight", "up_proj.weight", "down_proj.weight")


def _each(start: str) -> tuple[str, ...]:
    return tuple(start + name for name in _PROJECTIONS)


@dataclass(frozen=True)
class MoEFamily:
    """One way to name, store and route experts. What a checkpoint lacks is left out."""

    name: str
    model_types: tuple[str, ...]  # of config.json
    routing: Callable[[Config], dict[str, Any]]
    layer: str = "layers.{}."  # as in Family
    router: str = "mlp.gate.weight"
    router_bias: str | None = None
    correction_bias: str | None = None  # e_score_correction_bias
    experts: tuple[str, ...] = ()  # gate, up, down of expert {}
    stacked: tuple[str, str] = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
    stacked_bias: str | None = None  # what follows the names of `stacked`
    in_out: bool = False  # of the stacked ones
    layout: str = "concat"  # of gate and up
    shared: tuple[str, ...] = ()  # gate, up, down; or gate and up in one, down
    shared_gate: str | None = None
    on_input: bool = False
    activation: Callable[[Config, str], fc.Activation] = _plain
    default_activation: str = "silu"  # where config.json leaves hidden_act out
    dense: Family = field(default=_LLAMA)  # layers without experts


MOE_FAMILIES = (
    MoEFamily(
        "mixtral",
        ("mixtral",),
        _top_k,
        router="block_sparse_moe.gate.weight",
        experts=tuple(f"block_sparse_moe.experts.{{}}.{w}.weight" for w in ("w1", "w3", "w2")),
    ),
    MoEFamily(
        "qwen2_moe",
        ("qwen2_moe", "qwen3_moe", "olmoe"),
        _softmax,
        experts=_each("mlp.experts.{}."),
        shared=_each("mlp.shared_expert."),
        shared_gate="mlp.shared_expert_gate.weight",
    ),
    MoEFamily(
        "deepseek_v2",
        ("deepseek_v2",),
        _deepseek_v2,
        experts=_each("mlp.experts.{}."),
        shared=_each("mlp.shared_experts."),
    ),
    MoEFamily(
        "deepseek_v3",
        ("deepseek_v3", "kimi_k2", "glm4_moe"),
        _deepseek_v3,
        correction_bias="mlp.gate.e_score_correction_bias",
        experts=_each("mlp.experts.{}."),
        shared=_each("mlp.shared_experts."),
    ),
    MoEFamily(
        "gpt_oss",
        ("gpt_oss",),
        _softmax_after,
        router="mlp.router.weight",
        router_bias="mlp.router.bias",
        stacked_bias="_bias",
        in_out=True,
        layout="interleaved",
        activation=_gpt_oss,
    ),
    MoEFamily(
        "granitemoe",
        ("granitemoe", "granitemoeshared", "granitemoehybrid"),
        _softmax_after,
        router="block_sparse_moe.router.layer.weight",
        stacked=(
            "block_sparse_moe.input_linear.weight",
            "block_sparse_moe.output_linear.weight",
        ),
        shared=("shared_mlp.input_linear.weight", "shared_mlp.output_linear.weight"),
    ),
    MoEFamily(
        "llama4",
        ("llama4", "llama4_text"),
        _llama4,
        router="feed_forward.router.weight",
        stacked=("feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"),
        in_out=True,
        shared=_each("feed_forward.shared_expert."),
        on_input=True,
        dense=Family(
            "llama4",
            (),
            "layers.{}.",
            gate="feed_forward.gate_proj",
            up="feed_forward.up_proj",
            down="feed_forward.down_proj",
            default_activation="silu",
        ),
    ),
)


# ---- from headers, and from the tensors ----------------------------------------------------------


def describe_moe(checkpoint: Checkpoint, row: MoEFamily, prefix: str, layer: int) -> LayerInfo:
    start = prefix + row.layer.format(layer)
    n, d = checkpoint.shape(start + row.router)
    down = start + (
        row.experts[2].format(0) if _is_split(checkpoint, row, start) else row.stacked[1]
    )
    if down not in checkpoint:
        raise ValueError(_missing(checkpoint, down))
    shape = checkpoint.shape(down)
    f = shape[-1] if len(shape) == 2 or not row.in_out else shape[1]
    told = checkpoint.config.get("hidden_act") or (
        row.default_activation if checkpoint.config else None
    )
    own = start + _block(row.router)
    shared = {start + name for name in row.shared}
    return LayerInfo(
        family=row,
        prefix=prefix,
        layer=layer,
        d_model=d,
        d_ff=f,
        activation=None if told is None else ALIASES.get(str(told), str(told)),
        dtype=checkpoint.dtype(down),
        parameters=sum(
            int(np.prod(checkpoint.shape(name)))
            for name in checkpoint
            if name.startswith(own) or name in shared
        ),
        gated=True,
        n_experts=n,
    )


def _block(router: str) -> str:
    """mlp.gate.weight -> mlp."""
    return router.split(".", 1)[0] + "."


def _is_split(checkpoint: Checkpoint, row: MoEFamily, start: str) -> bool:
    return bool(row.experts) and start + row.experts[2].format(0) in checkpoint


def _missing(checkpoint: Checkpoint, name: str) -> str:
    if name + "_blocks" in checkpoint:
        return f"{name} is there in blocks of MXFP4; expected a checkpoint in bfloat16"
    return f"{checkpoint.path} has no tensor {name}; expected one beside the layer's router"


def read_moe(
    checkpoint: Checkpoint, info: LayerInfo, start: str, dtype: str | None, act: fc.Activation
) -> MoE:
    row: MoEFamily = info.family
    options = row.routing(checkpoint.config)

    def read(name: str, to: str | None = dtype) -> Array:
        if start + name not in checkpoint:
            raise ValueError(_missing(checkpoint, start + name))
        return checkpoint.read(start + name, to)

    def maybe(name: str | None) -> MaybeArray:
        return None if name is None or start + name not in checkpoint else read(name)

    correction = row.correction_bias
    if correction is not None and start + correction in checkpoint:
        # It is compared with float32 scores, and stored as float32 beside 16 bits: not narrowed.
        stored = checkpoint.dtype(start + correction)
        to = dtype if "float64" in (dtype, stored) else None
        to = "float32" if to in ("float16", "bfloat16") else to
        options["e_score_correction_bias"] = read(correction, to)
    router = Router(read(row.router), bias=maybe(row.router_bias), **options)
    if _is_split(checkpoint, row, start):
        experts = _stack(read, row.experts, info.n_experts or 0)
    else:
        experts = _stacked(read, maybe, row)
    shared = None
    if row.shared and start + row.shared[0] in checkpoint:
        parts = [read(name) for name in row.shared]
        if len(parts) == 2:
            weights = fc.FFNWeights.from_gate_up(parts[0], parts[1])
        else:
            weights = fc.FFNWeights(gate=parts[0], up=parts[1], down=parts[2])
        shared = FFN(weights, act, (start + row.shared[0]).rsplit(".", 2)[0])
    shared_gate = maybe(row.shared_gate)
    return MoE(
        experts,
        act,
        router,
        shared=shared,
        shared_gate=None if shared_gate is None else shared_gate[0],
        apply_router_weight_on_input=row.on_input,
        name=(start + _block(row.router)).rstrip("."),
    )


def _stack(read: Callable[[str], Array], names: tuple[str, ...], n: int) -> fc.FFNWeights:
    """Experts of a tensor each, one after the other into one array."""
    arrays = {}
    for kind, name in zip(("gate", "up", "down"), names, strict=True):
        first = read(name.format(0))
        stack = np.empty((n, *first.shape), first.dtype)
        for e in range(n):
            one = first if e == 0 else read(name.format(e))
            if one.shape != first.shape or one.dtype != first.dtype:
                raise ValueError(
                    f"{name.format(e)} is {one.dtype.name} {one.shape}; expected "
                    f"{first.dtype.name} {first.shape} as {name.format(0)}"
                )
            stack[e] = one
        arrays[kind] = stack
    return fc.FFNWeights(**arrays)


def _stacked(
    read: Callable[[str], Array], maybe: Callable[[str | None], MaybeArray], row: MoEFamily
) -> fc.FFNWeights:
    gate_up, down = (read(name) for name in row.stacked)
    if row.in_out:
        gate_up, down = gate_up.swapaxes(1, 2), down.swapaxes(1, 2)
    biases = [
        None if row.stacked_bias is None else maybe(n + row.stacked_bias) for n in row.stacked
    ]
    return fc.FFNWeights.from_gate_up(
        gate_up, down, layout=row.layout, b_gate_up=biases[0], b_down=biases[1]
    )
