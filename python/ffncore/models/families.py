"""FAMILIES: how model families name and store their dense feed-forward layers, one row each.

The name of a tensor is, after any prefix,

    layer.format(number) + up + ".weight"          "h." + "3" + ".mlp.c_fc" + ".weight" in GPT-2

and ".bias" in place of ".weight"; likewise with gate and down. mixture_families.py has the families
with experts, files/defaults.py the defaults of keys that config.json leaves out.
Tests: tests/models/test_models.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Family:
    """How a model family names and stores its dense layers.

    name             of the family, for family= of fc.load
    model_types      the values of model_type in config.json that belong to it
    layer            the first part of the names, after any prefix; {} stands for the layer's number
    up, down, gate   the parts of the names for these matrices; gate is None in plain layers
    in_out           whether matrices are stored as [in, out], and so have to be transposed
    biases           whether every layer has biases; if not, they are used where they exist
    activation_keys  keys of config.json for the activation; the first one that exists is used
    """

    name: str
    model_types: tuple[str, ...]
    layer: str
    up: str
    down: str
    gate: str | None = None
    in_out: bool = False
    biases: bool = False
    activation_keys: tuple[str, ...] = ("hidden_act",)

    @property
    def stems(self) -> dict[str, str]:
        """The parts of the names for the family's matrices, by the fields of FFNWeights."""
        stems = {"gate": self.gate, "up": self.up, "down": self.down}
        return {field: stem for field, stem in stems.items() if stem is not None}

    @property
    def blocks(self) -> tuple[str, ...]:
        """Starts of names that only the tensors of the feed-forward layer have."""
        parents = {stem.split(".")[0] + "." for stem in self.stems.values()}
        # BERT's matrices have different parents, which also hold norms.
        return tuple(parents) if len(parents) == 1 else self.starts

    @property
    def starts(self) -> tuple[str, ...]:
        """Starts of names that show that the layer is of this family."""
        return tuple(stem + "." for stem in self.stems.values())


FAMILIES = (
    Family(
        "bert",
        ("bert", "roberta", "xlm-roberta", "camembert", "electra", "mpnet", "esm", "deberta")
        + ("deberta-v2", "layoutlm", "megatron-bert", "ernie", "vit", "deit"),
        "encoder.layer.{}.",
        up="intermediate.dense",
        down="output.dense",
        biases=True,
    ),
    Family(
        "gpt2",  # its class Conv1D stores [in, out]
        ("gpt2", "imagegpt", "decision_transformer"),
        "h.{}.",
        up="mlp.c_fc",
        down="mlp.c_proj",
        in_out=True,
        biases=True,
        activation_keys=("activation_function",),
    ),
    Family(
        "llama",
        ("llama", "mistral", "ministral", "qwen2", "qwen3", "olmo", "olmo2", "olmo3", "smollm3")
        + ("granite", "cohere", "cohere2", "stablelm", "exaone4"),
        "layers.{}.",
        gate="mlp.gate_proj",
        up="mlp.up_proj",
        down="mlp.down_proj",
    ),
    Family(
        "gemma",  # the names of llama, another key for the activation
        ("gemma", "gemma2", "gemma3", "gemma3_text"),
        "layers.{}.",
        gate="mlp.gate_proj",
        up="mlp.up_proj",
        down="mlp.down_proj",
        activation_keys=("hidden_activation", "hidden_act"),
    ),
)


@dataclass(frozen=True)
class LayerInfo:
    """A feed-forward layer of a checkpoint, described from the headers of the files.

    family      a Family, or a MoEFamily
    prefix      of the tensors' names, with its dot; "" if there is none
    layer       the number of the layer
    d_model     the last dimension of x and y; 0 if it is not known
    d_ff        the number of hidden units, of each expert; 0 if it is not known
    activation  as config.json names it, which may be one that ffncore does not have; None if it is
                not known
    dtype       of the matrices; "" if it is not known
    parameters  their number, with biases, all experts and the router; 0 if the layer has a problem
    gated       whether the layer has a gate
    n_experts   the number of experts; None for a dense layer
    nbytes      the bytes of the layer's tensors in the files
    packing     the name of the quantisation, such as "GPTQ", if the layer is quantised; fc.load
                does not read such layers
    problem     the error of fc.load, if it refuses the layer for another reason than an activation
                that ffncore does not have
    """

    family: Any
    prefix: str
    layer: int
    d_model: int
    d_ff: int
    activation: str | None
    dtype: str
    parameters: int
    gated: bool
    n_experts: int | None = None
    nbytes: int = 0
    packing: str | None = None
    problem: str | None = None
    model_type: str | None = None

    @property
    def ratio(self) -> float:
        """d_ff / d_model; 0 if it is not known."""
        return self.d_ff / self.d_model if self.d_model else 0.0

    @property
    def matched_ratio(self) -> float:
        """d_ff / d_model of a layer without a gate that has as many matrix elements.

        For a layer with a gate, which has three matrices instead of two, it is 1.5 times ratio.
        """
        return self.ratio * (1.5 if self.gated else 1.0)
