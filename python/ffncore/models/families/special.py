"""Functions of rows: what a model reads from config.json and the fields of a row cannot say.

Each takes the Config of a layer. Rows name them in the fields told_activation, options, inner,
route and assembly (row.py). Tests: tests/models/test_families.py, tests/models/test_mixtures.py.
"""

from __future__ import annotations

from typing import Any

from ...functional.model_routers import sparsemixer, switch_capacity, with_shared
from ..files.config import Config

# ---- activations

# From the part of feed_forward_proj behind "gated-": gelu has always meant gelu_new there.
_T5 = {"gelu": "gelu_new"}


def t5_activation(config: Config) -> tuple[str, str]:
    """dense_act_fn, which saved models have; else feed_forward_proj, "relu" or "gated-gelu"."""
    if config.has("dense_act_fn") and not config.has("feed_forward_proj"):
        return "dense_act_fn", config.text("dense_act_fn")
    key = "feed_forward_proj"
    told = config.text(key)
    name = told.removeprefix("gated-")
    return key, _T5.get(name, name) if told != name else name


def experts_limit(config: Config, kind: str) -> dict[str, Any]:
    """A limit of the experts alone, not of the shared expert and of dense layers."""
    return {"limit": config.number("swiglu_limit")} if kind == "experts" else {}


def step_limits(config: Config, kind: str) -> dict[str, Any]:
    """A limit after the activation in some layers; 0 or no list means none."""
    key = "swiglu_limits" if kind == "experts" else "swiglu_limits_shared"
    limit = config.number(key, least=0) if config.has(key) else 0.0
    return {"limit": limit, "clamp": "post"} if limit else {}


# ---- inside a dense layer


def gemma3n_sparsity(config: Config) -> dict[str, Any]:
    """The share of gates that are cut off in this layer."""
    key = "activation_sparsity_pattern"
    if not config.has(key):  # the class makes a pattern from the number of layers
        sparse = 10 if config.integer("num_hidden_layers", 1) > 10 else 0
        return {"sparsity": 0.95} if (config.layer or 0) < sparse else {}
    share = config.number(key, least=0)
    if share >= 1:
        raise config.wrong(key, "numbers below 1")
    return {"sparsity": share} if share else {}


# ---- routers


def phimoe_route(config: Config) -> dict[str, Any]:
    return {"route": sparsemixer, "jitter_eps": config.number("router_jitter_noise", least=0)}


def switch_route(config: Config) -> dict[str, Any]:
    return {"route": switch_capacity, "capacity": config.integer("expert_capacity", 0)}


def inkling_route(config: Config) -> dict[str, Any]:
    return {
        "route": with_shared,
        "n_shared": config.integer("n_shared_experts", 1),
        "routed_scaling_factor": config.number("route_scale"),
    }


def cohere_route(config: Config) -> dict[str, Any]:
    key = "expert_selection_fn"
    if config.text(key, ("softmax", "sigmoid")) == "softmax":
        return {"score_fn": "softmax_topk"}
    told = {"norm_topk_prob": config.flag("norm_topk_prob")}
    return {"score_fn": "sigmoid", "select_on": "logits", **told}


def cohere_assembly(config: Config) -> dict[str, Any]:
    key = "shared_expert_combination_strategy"
    average = config.text(key, ("average", "sum")) == "average"
    there = config.integer("num_shared_experts", 0) > 0
    return {"combine": 0.5} if average and there else {}


def dbrx_route(config: Config) -> dict[str, Any]:
    """The weights are divided by their p-norm, of which ffncore has p = 1."""
    key = "ffn_config.moe_normalize_expert_weights"
    if config.is_null(key):
        return {"norm_topk_prob": False}
    if config.number(key) != 1:
        raise config.wrong(key, "1 or null")
    return {"norm_topk_prob": True}


def laguna_route(config: Config) -> dict[str, Any]:
    cap = config.number("moe_router_logit_softcapping", least=0)
    return {"logit_softcap": cap} if cap else {}


def gemma4_route(config: Config) -> dict[str, Any]:
    return {"input_norm_eps": config.number("rms_norm_eps", least=0)}
