"""Names, Family and MoEFamily: the form of the rows of the table of model families.

The name of a tensor is, after any prefix,

    layer.format(number) + start + stem + ".weight"     "h.3." + "mlp." + "c_fc" + ".weight"

and ".bias" in place of ".weight". A family has several forms where its layers are stored in several
ways, such as the released names and those of transformers 5; the form whose tensors are there is
used. The rows are in dense.py, vision.py, softmax.py and sigmoid.py. Tests:
tests/models/test_families.py, tests/models/test_mixtures.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..files.config import Config


@dataclass(frozen=True)
class Names:
    """One way in which the matrices of a block are named and stored.

    start       what the names begin with, after the layer's part. In experts that are stored one by
                one, {} stands for the number of the expert; experts without {} are stacked
    up, down    the stems of the names of these matrices
    gate        that of the gate; None in plain layers and where gate_up is given
    gate_up     that of one matrix with both gate and up; None: there are two
    order       of gate_up: "gate_first" or "up_first"
    layout      of gate_up: "concat" or "interleaved"
    in_out      whether matrices are [in, out]; None: their shapes tell
    biases      whether all biases have to exist; if not, they are used where they exist
    weight      the end of the names of matrices
    bias        the end of the names of biases
    layer       the first part of the names, if it is not that of the family
    activation  the activation of blocks of this form, whatever config.json says
    norm        the stem of a norm between activation and down: "rms:ffn_sub_norm" or "layer:..."
    flat        whether matrices of experts are [E f, d], in_out for down
    null_rows   whether gate_up has rows for null experts, too, which are not used
    scale       the name of a number that multiplies the output
    tower       the only tower that has the form; None: any
    """

    start: str = ""
    up: str = ""
    down: str = ""
    gate: str | None = None
    gate_up: str | None = None
    order: str = "gate_first"
    layout: str = "concat"
    in_out: bool | None = False
    biases: bool = False
    weight: str = ".weight"
    bias: str = ".bias"
    layer: str | None = None
    activation: str | None = None
    norm: str | None = None
    flat: bool = False
    null_rows: bool = False
    scale: str | None = None
    tower: str | None = None

    @property
    def stems(self) -> dict[str, str]:
        """The whole stems of the matrices, by the arguments of FFNWeights or from_gate_up."""
        up = {"gate": self.gate, "up": self.up} if self.gate_up is None else {}
        found = {**up, "gate_up": self.gate_up, "down": self.down}
        return {role: self.start + stem for role, stem in found.items() if stem is not None}

    @property
    def starts(self) -> tuple[str, ...]:
        """Starts of names that show that a layer has a block of this form."""
        if self.singly:
            return tuple(self.start.split("{}")[0] + str(digit) for digit in range(10))
        dot = "." if self.weight[:1] == "." else ""
        return tuple(stem + dot for stem in self.stems.values())

    @property
    def singly(self) -> bool:
        """Whether the form is that of experts that are stored one by one."""
        return "{}" in self.start

    @property
    def blocks(self) -> tuple[str, ...]:
        """Starts of names that only tensors of the block have."""
        own = self.start.split("experts")[0]
        if own:
            return (own,)
        return ("experts.",) if self.start else self.starts

    @property
    def gated(self) -> bool:
        return self.gate is not None or self.gate_up is not None


@dataclass(frozen=True)
class Family:
    """How a model family names and stores its dense layers.

    name                of the family, for family= of fc.load
    model_types         the values of model_type in config.json that belong to it
    layer               the first part of the names, after any prefix; {} stands for the number
    forms               the ways in which its blocks are stored, the released one first
    parts               other blocks of a layer, by the name that part= of fc.load takes
    activation_keys     keys of config.json for the activation; the first one that exists is used
    activation_options  options of fc.Activation: numbers, or keys of config.json that have them
    activation_tensors  options of fc.Activation that are tensors, by their names
    bias_key            the key of config.json that says whether there are biases
    by_layer            keys of config.json whose value may be a list with an entry for each layer
    told_activation     a function that returns the key and the name of the activation; None: that
                        of activation_keys
    options             a function that returns further options of fc.Activation, for the "experts",
                        the "shared" expert or a "dense" layer
    inner               a function that returns options of fc.Inner
    multiplier          the key of config.json for a factor of the block's output
    norm_eps_key        the key of config.json for the eps of the norm inside the block
    equal_towers        whether no stack of the model is the main one, as in CLIP
    shared_layers       whether layers share their tensors, as in ALBERT: {} in `layer` stands for
                        the number of a group of layers
    refuses             tensors with which fc.load refuses a layer, and the reason
    keys                further keys of config.json, which the functions read
    """

    name: str
    model_types: tuple[str, ...]
    layer: str
    forms: tuple[Names, ...]
    parts: Mapping[str, tuple[Names, ...]] = field(default_factory=dict)
    activation_keys: tuple[str, ...] = ("hidden_act",)
    activation_options: Mapping[str, float | str] = field(default_factory=dict)
    activation_tensors: Mapping[str, str] = field(default_factory=dict)
    bias_key: str = "mlp_bias"
    by_layer: tuple[str, ...] = ()
    told_activation: Callable[[Config], tuple[str, str]] | None = None
    options: Callable[[Config, str], dict[str, Any]] | None = None
    inner: Callable[[Config], dict[str, Any]] | None = None
    multiplier: str | None = None
    norm_eps_key: str = "rms_norm_eps"
    equal_towers: bool = False
    shared_layers: bool = False
    refuses: Mapping[str, str] = field(default_factory=dict)
    keys: tuple[str, ...] = ()

    def __hash__(self) -> int:
        return hash(self.name)  # the mappings cannot be hashed

    @property
    def layers(self) -> tuple[str, ...]:
        """The first parts of names of all forms."""
        return tuple(dict.fromkeys(form.layer or self.layer for form in self.forms))

    @property
    def plain(self) -> bool:
        """Whether names of tensors alone say what a layer computes, but for its activation."""
        more = (self.told_activation, self.options, self.inner, self.multiplier)
        return more == (None,) * 4 and not self.activation_tensors and not self.shared_layers

    def __reduce__(self) -> tuple[Any, ...]:
        """A row is pickled as its name, and becomes the row of the table again."""
        return row_named, (self.name,)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Pickles of rows with other fields have the name, too."""
        self.__dict__.update(row_named(state["name"]).__dict__)

    def __deepcopy__(self, _: object) -> Family:
        return self

    # The names of the first form.

    @property
    def stems(self) -> dict[str, str]:
        """The stems of the matrices in the first form."""
        return self.forms[0].stems

    @property
    def starts(self) -> tuple[str, ...]:
        """Starts of names that show that the layer is of this family, in the first form."""
        return self.forms[0].starts

    @property
    def blocks(self) -> tuple[str, ...]:
        """Starts of names that only the tensors of the block have, in the first form."""
        return self.forms[0].blocks

    @property
    def up(self) -> str:
        """The stem of up in the first form."""
        return self.stems.get("up", self.stems.get("gate_up", ""))

    @property
    def down(self) -> str:
        """The stem of down in the first form."""
        return self.stems["down"]

    @property
    def gate(self) -> str | None:
        """The stem of gate in the first form; None in plain layers."""
        return self.stems.get("gate", self.stems.get("gate_up"))

    @property
    def in_out(self) -> bool:
        """Whether matrices are [in, out] in the first form."""
        return bool(self.forms[0].in_out)

    @property
    def biases(self) -> bool:
        """Whether all biases have to exist in the first form."""
        return self.forms[0].biases


@dataclass(frozen=True)
class MoEFamily(Family):
    """How a model family names, stores and routes its experts, and its dense layers.

    Where the names differ between forms, a field has several, and the one that is there is used.

    routing          options of fc.Router
    told             options of fc.Router and the keys of config.json that have them
    norm_eps         the option norm_eps, if the weights are divided by their sum
    groups           options of fc.Router if there are groups
    group_keys       the keys of config.json for n_group and topk_group
    null_groups      whether null for the number of groups means that there are none
    group_method     the topk_method in config.json with which there are groups; None: always
    only             keys of config.json, and the only value of each that ffncore computes
    router           names of the router's matrix
    router_bias      names of its bias
    correction_bias  names of e_score_correction_bias
    experts          the ways in which experts are stored
    shared           those of the shared expert
    joined           the ways in which shared experts are stored that the router weights as further
                     experts, after the others
    joined_key       the key of config.json for their number
    joint_scale      the name of a number that multiplies all weights
    shared_gate      names of its gate
    shared_if        by model_type, whether there is a shared expert: True, False, or a key of
                     config.json that is above 0 if there is one. With any other model_type, there
                     is one if its tensors exist
    null_experts     the key of config.json for the number of identity experts
    extra            arguments of fc.MoE that are tensors, and their names
    router_extra     arguments of fc.Router that are tensors, and their names
    on_input         the option apply_router_weight_on_input of fc.MoE
    root_scale       whether logits are multiplied by d_model ** -0.5
    route            a function that returns further options of fc.Router
    assembly         a function that returns further arguments of fc.MoE
    """

    routing: Mapping[str, Any] = field(default_factory=dict)
    told: Mapping[str, str] = field(default_factory=dict)
    norm_eps: float = 0.0
    groups: Mapping[str, Any] | None = None
    group_keys: tuple[str, str] = ("n_group", "topk_group")
    null_groups: bool = False
    group_method: str | None = None
    only: Mapping[str, str] = field(default_factory=dict)
    router: tuple[str, ...] = ("mlp.gate.weight",)
    router_bias: tuple[str, ...] = ()
    correction_bias: tuple[str, ...] = ()
    experts: tuple[Names, ...] = ()
    shared: tuple[Names, ...] = ()
    joined: tuple[Names, ...] = ()
    joined_key: str = "n_shared_experts"
    joint_scale: str | None = None
    shared_gate: tuple[str, ...] = ()
    shared_if: Mapping[str, bool | str] = field(default_factory=dict)
    null_experts: str | None = None
    extra: Mapping[str, str] = field(default_factory=dict)
    router_extra: Mapping[str, str] = field(default_factory=dict)
    on_input: bool = False
    root_scale: bool = False
    route: Callable[[Config], dict[str, Any]] | None = None
    assembly: Callable[[Config], dict[str, Any]] | None = None

    __hash__ = Family.__hash__

    @property
    def layers(self) -> tuple[str, ...]:
        own = tuple(form.layer or self.layer for form in self.experts)
        return tuple(dict.fromkeys((*own, *super().layers)))

    @property
    def starts(self) -> tuple[str, ...]:
        """Starts of names that show that the layer has experts of this family."""
        routers = tuple(name.removesuffix("weight") for name in self.router)
        return (*routers, *(start for form in self.experts for start in form.starts))

    @property
    def dense(self) -> Family:
        """The row of layers without experts: this one."""
        return self

    @property
    def stacked(self) -> tuple[str, ...]:
        """The names of stacked experts, or none."""
        forms = (form for form in self.experts if not form.singly)
        return tuple(stem + form.weight for form in forms for stem in form.stems.values())

    @property
    def stacked_bias(self) -> str | None:
        """What is added to the names of stacked experts for their biases."""
        return next((form.bias for form in self.experts if form.biases), None)

    @property
    def layout(self) -> str:
        """The layout of gate and up in one tensor."""
        return self.experts[0].layout


# All rows by name; __init__.py fills it.
TABLE: dict[str, Family] = {}


def row_named(name: str) -> Family:
    """The row of the table that has this name."""
    return TABLE[name]
