"""Reads a layer with experts from a checkpoint, as its row of MOE_FAMILIES says.

plan() checks the headers and config.json, and says which tensors are needed; models.layers stops
there. read() reads these tensors and makes the fc.MoE. Tests: tests/models/test_models_moe.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays.shapes import Array, MaybeArray
from ..layers.ffn import FFN
from ..layers.moe import MoE
from ..layers.router import Router
from ..values.activation import Activation
from ..values.weights import FFNWeights
from .files.config import Config
from .layer_tensors import LayerTensors
from .mixture_families import MoEFamily

_KINDS = ("gate", "up", "down")


@dataclass(frozen=True)
class Plan:
    """The names of a layer's tensors, and the options of its router."""

    experts: dict[str, list[str]]  # a name for each expert, by field of FFNWeights; {}: stacked
    shared: tuple[str, ...]
    shared_gate: str | None
    options: dict[str, Any]  # of fc.Router


def plan(tensors: LayerTensors, row: MoEFamily, config: Config) -> Plan:
    """Check a layer and return its Plan.

    Raises ValueError if a tensor is missing, damaged, has another shape or is not known.
    """
    tensors.take(row.router, "E d")
    n = tensors.sizes["E"]
    for bias in (row.router_bias, row.correction_bias):
        if bias is not None:
            tensors.take(bias, "E")
    experts = {}
    if row.experts and not tensors.have(row.stacked):
        experts = {
            kind: [name.format(e) for e in range(n)]
            for kind, name in zip(_KINDS, row.experts, strict=True)
        }
        for names in zip(*experts.values(), strict=True):
            for name, axes in zip(names, ("f d", "f d", "d f"), strict=True):
                tensors.take(name, axes)
    else:
        shapes = ("E d 2f", "E f d") if row.in_out else ("E 2f d", "E d f")
        for name, shape, size in zip(row.stacked, shapes, ("2f", "d"), strict=True):
            tensors.take(name, shape)
            if row.stacked_bias is not None:
                tensors.take(name + row.stacked_bias, f"E {size}")
    shared = row.shared if _has_shared(tensors, row, config) else ()
    for name, shape in zip(shared, _SHARED_AXES[len(shared)], strict=True):
        tensors.take(name, shape)
    gate = row.shared_gate if shared else None
    if gate is not None and not config.knows and gate not in tensors:
        gate = None  # some models, such as Flint, have the names of Qwen, but no gate
    if gate is not None:
        tensors.take(gate, "1 d")
    tensors.left_over(row.blocks)
    return Plan(experts, shared, gate, routing(config, row, n))


_SHARED_AXES = {0: (), 2: ("2s d", "d s"), 3: ("s d", "s d", "d s")}


def _has_shared(tensors: LayerTensors, row: MoEFamily, config: Config) -> bool:
    if not row.shared:
        return False
    if not config.knows:
        return tensors.have(row.shared)
    condition = row.shared_if.get(config.model_type, False)
    if not isinstance(condition, str):
        return condition
    size = config.integer(condition, 0)
    if size == 0 and tensors.have(row.shared):
        raise tensors.wrong(
            next(name for name in row.shared if name in tensors),
            f"exists, but {config.path} has {condition} 0; expected no such tensor, or a number "
            f"above 0",
        )
    return size > 0


def routing(config: Config, row: MoEFamily, n_experts: int) -> dict[str, Any]:
    """The options of fc.Router, from config.json and the row."""
    for key, value in row.only.items():
        config.require(key, value)
    experts = "the number of experts"
    options = {
        "top_k": config.integer("num_experts_per_tok", 1, n_experts, experts),
        **row.routing,
    }
    if "norm_topk_prob" in row.told:
        options["norm_topk_prob"] = config.flag("norm_topk_prob")
    if row.norm_eps and options.get("norm_topk_prob", True):
        options["norm_eps"] = row.norm_eps
    if "routed_scaling_factor" in row.told:
        options["routed_scaling_factor"] = config.number("routed_scaling_factor")
    method = row.group_method
    if row.groups is None:
        return options
    if method is not None and config.text("topk_method", ("greedy", method)) != method:
        return options
    n_group = config.integer("n_group", 1, n_experts, experts)
    topk_group = config.integer("topk_group", 1, n_group, "n_group")
    if n_experts % n_group:
        raise config.wrong("n_group", f"a number that divides {experts}, {n_experts}")
    if n_group > 1:
        options |= {"n_group": n_group, "topk_group": topk_group, **row.groups}
    return options


def same_dtypes(tensors: LayerTensors, row: MoEFamily, plan: Plan) -> None:
    """Raise ValueError if the stored dtypes of the tensors do not fit each other."""
    if plan.experts:
        matrices, biases = [n for names in plan.experts.values() for n in names], []
    else:
        matrices = list(row.stacked)
        biases = [] if row.stacked_bias is None else [n + row.stacked_bias for n in row.stacked]
    tensors.same_dtype([*matrices, *plan.shared], tuple(biases))
    others = (row.router, row.router_bias, plan.shared_gate, row.correction_bias)
    for name in others:
        if name is not None:
            # A float32 correction bias is widened if the experts are float64.
            tensors.same_precision(name, matrices[0], widened=name == row.correction_bias)


def read(
    tensors: LayerTensors,
    row: MoEFamily,
    plan: Plan,
    dtype: str | None,
    activation: Activation,
    config: Config,
) -> MoE:
    def read(name: str, to: str | None = dtype) -> Array:
        return tensors.read(name, to)

    def maybe(name: str | None) -> MaybeArray:
        return None if name is None else read(name)

    options = dict(plan.options)
    correction = row.correction_bias
    if correction is not None:
        # It is added to float32 scores, and stored as float32 even in 16-bit checkpoints, so that
        # it is not converted to 16 bits.
        stored = tensors.taken[correction]
        to = dtype if "float64" in (dtype, stored) else None
        to = "float32" if to in ("float16", "bfloat16") else to
        options["e_score_correction_bias"] = read(correction, to)
    weight, bias = read(row.router), maybe(row.router_bias)
    try:
        router = Router(weight, bias=bias, **options)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{config.path} and {tensors.checkpoint.place(tensors.start + row.router)} do not fit: "
            f"{error}"
        ) from None
    if plan.experts:
        experts = FFNWeights(**{k: _stack(read, names) for k, names in plan.experts.items()})
    else:
        experts = _stacked(read, maybe, row)
    shared = None
    if plan.shared:
        parts = [read(name) for name in plan.shared]
        if len(parts) == 2:
            weights = FFNWeights.from_gate_up(parts[0], parts[1])
        else:
            weights = FFNWeights(gate=parts[0], up=parts[1], down=parts[2])
        shared = FFN(weights, activation, (tensors.start + plan.shared[0]).rsplit(".", 2)[0])
    shared_gate = maybe(plan.shared_gate)
    return MoE(
        experts,
        activation,
        router,
        shared=shared,
        shared_gate=None if shared_gate is None else shared_gate[0],
        apply_router_weight_on_input=row.on_input,
        name=tensors.start + row.router.split(".")[0],
    )


def _stack(read: Any, names: list[str]) -> Array:
    """Read one tensor per expert into one array [E, ...]."""
    first = read(names[0])
    stack = np.empty((len(names), *first.shape), first.dtype)
    stack[0] = first
    for e, name in enumerate(names[1:], 1):
        stack[e] = read(name)
    return stack


def _stacked(read: Any, maybe: Any, row: MoEFamily) -> FFNWeights:
    gate_up, down = (read(name) for name in row.stacked)
    if row.in_out:
        gate_up, down = gate_up.swapaxes(1, 2), down.swapaxes(1, 2)
    biases = [
        None if row.stacked_bias is None else maybe(n + row.stacked_bias) for n in row.stacked
    ]
    return FFNWeights.from_gate_up(
        gate_up, down, layout=row.layout, b_gate_up=biases[0], b_down=biases[1]
    )
