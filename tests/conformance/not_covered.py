"""The model types of shared tables that the zoo does not compare, each with the reason."""

from __future__ import annotations

from collections.abc import Iterable

from zoo import Model, parts

import ffncore as fc

NO_CLASS = "transformers has no class for it"

REASONS = {
    "step3": NO_CLASS,
    "internvl_chat": NO_CLASS,
    "inkling2": "it runs in float32 only, and its row of test_moe.py compares the block",
    "gemma3n_vision": "it is a convolutional network of another package",
    "gemma3n_audio": "it is a conformer, whose feed-forward layers are between norms",
}


def covered(zoo: Iterable[Model]) -> set[str]:
    """The model types of the zoo, and those of the parts of its models."""
    return {
        part["model_type"]
        for row in zoo
        for part in parts({"model_type": row.model_type, **row.config})
    }


def not_covered() -> dict[str, str]:
    return {**fc.models.REFUSED, **REASONS}
