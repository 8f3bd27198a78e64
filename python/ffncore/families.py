"""How model families name and store their dense feed-forward layers: a row of FAMILIES each.

    layer.format(number) + up + ".weight", or ".bias"        behind any prefix

Families with experts: models_moe.py. Tests: tests/test_models.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Family:
    """One way to name and store a layer. Biases are optional; [in, out] weights are transposed."""

    name: str
    model_types: tuple[str, ...]  # of config.json
    layer: str  # what stands before the names, behind any prefix; {} is the number
    up: str
    down: str
    gate: str | None = None
    in_out: bool = False
    activation_keys: tuple[str, ...] = ("hidden_act",)  # of config.json, the first that is set
    default_activation: str | None = None  # where config.json leaves it out


FAMILIES = (
    Family(
        "bert",
        ("bert", "roberta", "xlm-roberta", "camembert", "electra", "mpnet", "esm", "deberta")
        + ("deberta-v2", "layoutlm", "megatron-bert", "ernie", "vit", "deit"),
        "encoder.layer.{}.",
        up="intermediate.dense",
        down="output.dense",
        default_activation="gelu",
    ),
    Family(
        "gpt2",  # its Conv1D stores [in, out]
        ("gpt2", "imagegpt", "decision_transformer"),
        "h.{}.",
        up="mlp.c_fc",
        down="mlp.c_proj",
        in_out=True,
        activation_keys=("activation_function",),
        default_activation="gelu_new",
    ),
    Family(
        "llama",
        ("llama", "mistral", "ministral", "qwen2", "qwen3", "olmo", "olmo2", "olmo3", "smollm3")
        + ("granite", "cohere", "cohere2", "stablelm", "exaone4"),
        "layers.{}.",
        gate="mlp.gate_proj",
        up="mlp.up_proj",
        down="mlp.down_proj",
        default_activation="silu",
    ),
    Family(
        "gemma",  # the same names; hidden_act of old Gemma files is wrong, and unused by its code
        ("gemma", "gemma2", "gemma3", "gemma3_text"),
        "layers.{}.",
        gate="mlp.gate_proj",
        up="mlp.up_proj",
        down="mlp.down_proj",
        activation_keys=("hidden_activation",),
        default_activation="gelu_pytorch_tanh",
    ),
)


@dataclass(frozen=True)
class LayerInfo:
    """A feed-forward layer of a checkpoint, told from the files' headers alone."""

    family: Any  # a Family, or a MoEFamily of models_moe.py
    prefix: str  # "" or what stands before family.layer, with its dot
    layer: int
    d_model: int
    d_ff: int  # of one expert
    activation: str | None  # None: no config.json tells; a name that ffncore lacks: as it is there
    dtype: str
    parameters: int  # biases included; of all experts, and their router
    gated: bool
    n_experts: int | None = None  # None: a dense layer

    @property
    def ratio(self) -> float:
        return self.d_ff / self.d_model

    @property
    def matched_ratio(self) -> float:
        """d_ff / d_model of the plain layer with as many matrix entries: a gate is a third one."""
        return self.ratio * (1.5 if self.gated else 1.0)
