"""REFUSED: model types that fc.load does not read, and why. Tests: tests/models/test_refused.py."""

from __future__ import annotations

_MUSE = "its experts have a norm of each expert's output, which fc.MoE does not compute"

REFUSED: dict[str, str] = {
    "muse_spark": _MUSE,
    "muse_spark_text": _MUSE,
    "zaya": "its router is a network of several layers, with a state that layers pass on",
    "nllb-moe": "its capacity is counted over all tokens of a batch, and transformers 5 does not "
    "compute it as the released model does",
}
