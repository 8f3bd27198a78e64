"""How model families name and store their dense feed-forward layers: a row of FAMILIES each.

    layer.format(number) + up + ".weight", or ".bias"        behind any prefix

What a model_type's code takes where config.json is silent: files/defaults.py. Families with
experts: mixture_families.py. Tests: tests/models/test_models.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Family:
    """One way to name and store a layer; [in, out] weights are transposed."""

    name: str
    model_types: tuple[str, ...]  # of config.json
    layer: str  # what stands before the names, behind any prefix; {} is the number
    up: str
    down: str
    gate: str | None = None
    in_out: bool = False
    biases: bool = False  # every layer has them; else they are taken where they are there
    activation_keys: tuple[str, ...] = ("hidden_act",)  # of config.json, the first that is read

    @property
    def stems(self) -> dict[str, str]:
        """Of the matrices that the family has, by field of FFNWeights."""
        stems = {"gate": self.gate, "up": self.up, "down": self.down}
        return {field: stem for field, stem in stems.items() if stem is not None}

    @property
    def blocks(self) -> tuple[str, ...]:
        """What the names of a layer's tensors start with, and no others' of the model."""
        parents = {stem.split(".")[0] + "." for stem in self.stems.values()}
        # BERT's matrices have a parent each, where norms are, too.
        return tuple(parents) if len(parents) == 1 else self.starts

    @property
    def starts(self) -> tuple[str, ...]:
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
        "gpt2",  # its Conv1D stores [in, out]
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
        "gemma",  # the same names
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
    """A feed-forward layer of a checkpoint, told from the files' headers alone.

    Where a layer is packed or damaged, sizes that cannot be told are 0.
    """

    family: Any  # a Family, or a MoEFamily of mixture_families.py
    prefix: str  # "" or what stands before family.layer, with its dot
    layer: int
    d_model: int
    d_ff: int  # of one expert
    activation: str | None  # None: not told; a name that ffncore lacks: as it is there
    dtype: str  # "" where it cannot be told
    parameters: int  # biases included; of all experts, and their router
    gated: bool
    n_experts: int | None = None  # None: a dense layer
    nbytes: int = 0  # of its tensors in the files
    packing: str | None = None  # who quantised it: "GPTQ", say; such a layer is not read
    problem: str | None = None  # why fc.load refuses it, beside an activation that ffncore lacks
    model_type: str | None = None  # of config.json

    @property
    def ratio(self) -> float:
        return self.d_ff / self.d_model if self.d_model else 0.0

    @property
    def matched_ratio(self) -> float:
        """d_ff / d_model of the plain layer with as many matrix entries: a gate is a third one."""
        return self.ratio * (1.5 if self.gated else 1.0)
