"""Reads a layer with experts from a checkpoint, as its MoEFamily says.

plan() checks the headers and config.json, and says which tensors are needed; models.layers stops
there. read() reads these tensors and makes the fc.MoE. Tests: tests/models/test_models_moe.py,
tests/models/test_mixtures.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays.shapes import MaybeArray
from ..layers.around import Around
from ..layers.ffn import FFN
from ..layers.moe import MoE
from ..layers.router import Router
from ..values.activation import Activation
from ..values.weights import FFNWeights
from . import blocks
from .blocks import Block
from .families.row import MoEFamily
from .files.config import Config
from .layer_tensors import LayerTensors


@dataclass(frozen=True)
class Plan:
    """The names of a layer's tensors, and the options of its router."""

    router: str
    router_bias: str | None
    correction: str | None
    experts: Block
    shared: Block | None
    shared_gate: str | None
    extra: dict[str, str]  # arguments of fc.MoE
    router_extra: dict[str, str]
    options: dict[str, Any]  # of fc.Router
    null: int
    joined: Block | None = None  # shared experts that the router weights

    @property
    def blocks(self) -> tuple[str, ...]:
        """Starts of names that only tensors of the mixture have."""
        return starts(self.router, self.experts.form.blocks, self.shared and self.shared.form)


def starts(router: str, experts: tuple[str, ...], shared: Any = None) -> tuple[str, ...]:
    own = () if shared is None else shared.blocks
    return tuple(dict.fromkeys((router.rpartition(".")[0] + ".", *experts, *own)))


def found_blocks(tensors: LayerTensors, row: MoEFamily) -> tuple[str, ...]:
    """Plan.blocks, also of a layer that is damaged or quantised."""
    experts = blocks.choose(tensors, row.experts)
    shared = None
    if blocks.there(tensors, row.shared):
        shared = blocks.choose(tensors, row.shared)
    return starts(_name(tensors, row.router, experts.blocks), experts.blocks, shared)


def plan(tensors: LayerTensors, row: MoEFamily, config: Config) -> Plan:
    """Check a layer and return its Plan.

    Raises ValueError if a tensor is missing, damaged, has another shape or is not known.
    """
    form = blocks.choose(tensors, row.experts)
    router = _name(tensors, row.router, form.blocks)
    tensors.take(router, "E d")
    n = tensors.sizes["E"]
    null = 0
    if row.null_experts is not None:
        null = config.integer(row.null_experts, 0, n - 1, "one less than the rows of the router")
    more = config.integer(row.joined_key, 1, n - 1) if row.joined else 0
    tensors.sizes["E"] = n - null - more
    if more:
        tensors.sizes["J"] = more
    router_bias = _maybe(tensors, row.router_bias, form.blocks)
    correction = _maybe(tensors, row.correction_bias, form.blocks)
    for bias in (router_bias, correction):
        if bias is not None:
            wide = bias in tensors and len(tensors.shape(bias)) == 2
            tensors.take(bias, f"1 {n}" if wide else (str(n) if null else "E"))
    latent = any(told.endswith(":l d?") and told[:-5] in tensors for told in row.extra.values())
    width = "l" if latent else "d"
    own = n - null - more
    experts = blocks.plan(tensors, (form,), experts=own, null=null, width=width)
    joined = None
    if row.joined:
        joined = blocks.plan(tensors, row.joined, experts=more, count="J")
    if row.joint_scale is not None:
        tensors.take_number(row.joint_scale)
    shared = None
    if _has_shared(tensors, row, config):
        biased = config.reads(row.bias_key) and config.flag(row.bias_key)
        shared = blocks.plan(tensors, row.shared, size="s", biased=biased)
    gate = _name(tensors, row.shared_gate, form.blocks) if shared and row.shared_gate else None
    if gate is not None and not config.knows and gate not in tensors:
        gate = None  # some models, such as Flint, have the names of Qwen, but no gate
    if gate is not None:
        tensors.take(gate, "1 d")
    extra = _take_extra(tensors, row.extra)
    router_extra = _take_extra(tensors, row.router_extra)
    options = routing(config, row, n)
    if row.root_scale:
        options["logit_scale"] = tensors.sizes["d"] ** -0.5
    made = Plan(
        router,
        router_bias,
        correction,
        experts,
        shared,
        gate,
        extra,
        router_extra,
        options,
        null,
        joined,
    )
    tensors.left_over(made.blocks)
    return made


def _take_extra(tensors: LayerTensors, told: Mapping[str, str]) -> dict[str, str]:
    """The names of further tensors by argument; "name:d l?" is one that need not exist."""
    found = {}
    for argument, text in told.items():
        name, axes = text.split(":")
        if name in tensors or not axes.endswith("?"):
            tensors.take(name, axes.rstrip("?"))
            found[argument] = name
    return found


def _name(tensors: LayerTensors, names: tuple[str, ...], parents: tuple[str, ...]) -> str:
    """The name that the layer has; else the one whose parent has other tensors of the layer."""
    for name in names:
        if name in tensors:
            return name
    return next((name for name in names if name.startswith(parents)), names[0])


def _maybe(tensors: LayerTensors, names: tuple[str, ...], parents: tuple[str, ...]) -> str | None:
    """The name of a tensor of the router; None if the family has none, or need not have it."""
    if not names:
        return None
    needed = [name for name in names if not name.endswith("?")]
    name = _name(tensors, tuple(name.rstrip("?") for name in names), parents)
    return name if name in tensors or needed else None


def _has_shared(tensors: LayerTensors, row: MoEFamily, config: Config) -> bool:
    if not row.shared:
        return False
    if not config.knows:
        return blocks.there(tensors, row.shared)
    condition = row.shared_if.get(config.model_type, False)
    if not isinstance(condition, str):
        return condition
    size = config.integer(condition, 0)
    if size == 0 and blocks.there(tensors, row.shared):
        form = blocks.choose(tensors, row.shared)
        names = [stem + form.weight for stem in form.stems.values()]
        raise tensors.wrong(
            next((name for name in names if name in tensors), names[0]),
            f"exists, but {config.path} has {condition} 0; expected no such tensor, or a number "
            f"above 0",
        )
    return size > 0


def routing(config: Config, row: MoEFamily, n_experts: int) -> dict[str, Any]:
    """The options of fc.Router, from config.json and the row."""
    for key, value in row.only.items():
        config.require(key, value)
    experts = "the number of experts"
    options = dict(row.routing)
    for option, key in row.told.items():
        if config.knows and option == "norm_topk_prob" and not config.reads(key):
            continue  # its code always normalizes
        if option == "top_k":
            options[option] = config.integer(key, 1, n_experts, experts)
        elif option == "norm_topk_prob":
            options[option] = config.flag(key)
        else:
            options[option] = config.number(key)
    if row.route is not None:
        options |= row.route(config)
    if row.norm_eps and options.get("norm_topk_prob", True):
        options["norm_eps"] = row.norm_eps
    method = row.group_method
    if row.groups is None:
        return options
    if method is not None and config.text("topk_method", ("greedy", method)) != method:
        return options
    of_groups, of_best = row.group_keys
    if row.null_groups and not config.has(of_groups):
        return options
    n_group = config.integer(of_groups, 1, n_experts, experts)
    topk_group = config.integer(of_best, 1, n_group, of_groups)
    if n_experts % n_group:
        raise config.wrong(of_groups, f"a number that divides {experts}, {n_experts}")
    if n_group > 1:
        options |= {"n_group": n_group, "topk_group": topk_group, **row.groups}
    return options


def same_dtypes(tensors: LayerTensors, plan: Plan) -> None:
    """Raise ValueError if the stored dtypes of the tensors do not fit each other."""
    matrices, biases = plan.experts.matrix_names, plan.experts.bias_names
    matrices = matrices + ([] if plan.joined is None else plan.joined.matrix_names)
    shared = [] if plan.shared is None else plan.shared.matrix_names
    biases = biases + ([] if plan.shared is None else plan.shared.bias_names)
    tensors.same_dtype([*matrices, *shared], tuple(biases))
    others = (plan.router, plan.router_bias, plan.shared_gate, plan.correction)
    for name in (*others, *plan.extra.values(), *plan.router_extra.values()):
        if name is not None:
            # A float32 correction bias is widened if the experts are float64.
            tensors.same_precision(name, matrices[0], widened=name == plan.correction)


def read(
    tensors: LayerTensors,
    row: MoEFamily,
    plan: Plan,
    dtype: str | None,
    activations: tuple[Activation, Activation],
    config: Config,
    around: Around,
    held: Sequence[int] | None = None,
) -> MoE:
    """Read the layer.

    activations  of the experts and of the shared expert
    held         the numbers of the experts to read; None: all
    """
    first = held is None or 0 in held  # only this part has what the layer has once

    def maybe(name: str | None) -> MaybeArray:
        return None if name is None else tensors.read(name, dtype)

    options = dict(plan.options)
    if plan.correction is not None:
        # It is added to float32 scores, and stored as float32 even in 16-bit checkpoints, so that
        # it is not converted to 16 bits.
        stored = tensors.taken[plan.correction]
        to = dtype if "float64" in (dtype, stored) else None
        to = "float32" if to in ("float16", "bfloat16") else to
        options["e_score_correction_bias"] = tensors.read(plan.correction, to).reshape(-1)
    weight, bias = tensors.read(plan.router, dtype), maybe(plan.router_bias)
    options |= {name: tensors.read(told, dtype) for name, told in plan.router_extra.items()}
    if row.joint_scale is not None:
        scale = tensors.read(row.joint_scale, dtype).reshape(1)
        options["per_expert_scale"] = np.repeat(scale, len(weight))
    try:
        router = Router(weight, bias=bias, **options)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{config.path} and {tensors.checkpoint.place(tensors.start + plan.router)} do not "
            f"fit: {error}"
        ) from None
    shared = None
    if plan.shared is not None and first:
        weights = blocks.weights(tensors, plan.shared, dtype)
        name = tensors.start + plan.shared.form.start.rstrip(".")
        shared = FFN(weights, activations[1], name)
    shared_gate = maybe(plan.shared_gate) if shared is not None else None
    more: dict[str, Any] = {name: tensors.read(told, dtype) for name, told in plan.extra.items()}
    if not first:
        more = {n: a for n, a in more.items() if n not in ("output_bias", "b_latent_out")}
    if row.assembly is not None:
        more |= row.assembly(config)
    experts = blocks.weights(tensors, plan.experts, dtype, held)
    if plan.joined is not None and first:
        experts = _joined(experts, blocks.weights(tensors, plan.joined, dtype))
        if held is not None:
            held = (*held, *range(len(weight) - tensors.sizes["J"], len(weight)))
    return MoE(
        experts,
        activations[0],
        router,
        shared=shared,
        shared_gate=None if shared_gate is None else shared_gate[0],
        n_null_experts=plan.null,
        null_experts="identity" if first else "skip",
        apply_router_weight_on_input=row.on_input,
        expert_ids=held,
        name=tensors.start + plan.experts.form.blocks[0].rstrip("."),
        around=around,
        **more,
    )


def _joined(experts: FFNWeights, more: FFNWeights) -> FFNWeights:
    """One stack of both."""
    others = more.arrays()
    return FFNWeights(**{n: np.concatenate([a, others[n]]) for n, a in experts.arrays().items()})
