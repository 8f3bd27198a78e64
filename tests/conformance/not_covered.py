"""What the zoo does not compare: layers that fc.load refuses, and model types, with the reasons."""

from __future__ import annotations

from collections.abc import Iterable

from zoo import Model, parts
from zoo_mixtures import MIX
from zoo_towers import IMAGES, part, seen, tower

import ffncore as fc

# Small models all of whose blocks are refused, and a part of the error. For a model_type that
# fc.models.REFUSED has, it is the reason there.
REFUSED = [
    (Model("zaya", MIX, {"num_experts_per_tok": 1}), ""),
    (Model("muse_spark_text", MIX, {"moe_hidden_size": 8}, head="MuseSparkTextModel"), ""),
    (
        Model("deepseek_v4", MIX, {"mlp_layer_types": ["hash_moe"] * 2}, variant="hash"),
        "it chooses experts by a table of token ids",
    ),
    (
        Model(
            "gemma4",
            (seen("model.vision_tower.encoder.layers.{}.mlp", "vision_tower"),),
            {
                "text_config": part("gemma4_text"),
                "vision_config": tower("gemma4_vision", use_clipped_linears=True),
            },
            IMAGES,
            variant="clipped",
        ),
        "its linear layers clip their inputs and outputs",
    ),
]

NO_CLASS = "transformers has no class for it"

REASONS = {
    "step3": NO_CLASS,
    "internvl_chat": NO_CLASS,
    "inkling2": "it runs in float32 only, and its row of test_moe.py compares the block",
    "gemma3n_vision": "it is a convolutional network of another package",
    "gemma3n_audio": "it is a conformer, whose feed-forward layers are between norms",
}


def covered(zoo: Iterable[Model]) -> set[str]:
    """The model types of the zoo, and those of the parts of its models that fc.load knows."""
    rows = (*fc.models.FAMILIES, *fc.models.MOE_FAMILIES)
    known = {model_type for row in rows for model_type in row.model_types}
    inner = {part["model_type"] for row in zoo for part in parts(row.config)[1:]}
    return {row.model_type for row in zoo} | (inner & known)


def not_covered() -> dict[str, str]:
    layers = {row.name: words for row, words in REFUSED if words}
    return {**fc.models.REFUSED, **layers, **REASONS}
