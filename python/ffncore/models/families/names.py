"""Names of blocks that many families share, for the rows of the table. Tests:
tests/models/test_families.py.
"""

from __future__ import annotations

from .row import Names


def gated(start: str, **more: object) -> Names:
    """gate_proj, up_proj and down_proj, as in LLaMA."""
    return _names(start, gate="gate_proj", up="up_proj", down="down_proj", **more)


def numbered(start: str, **more: object) -> Names:
    """w1 is the gate, w3 up and w2 down, as in LLaMA's first code and in Mixtral."""
    return _names(start, gate="w1", up="w3", down="w2", **more)


def fused(start: str, **more: object) -> Names:
    """gate_up_proj, of gate and up, and down_proj."""
    return _names(start, gate_up="gate_up_proj", down="down_proj", **more)


def plain(start: str, up: str, down: str, **more: object) -> Names:
    """A block without a gate."""
    return _names(start, up=up, down=down, **more)


def stacked(start: str, **more: object) -> Names:
    """All experts in gate_up_proj and down_proj, as transformers 5 names its modules."""
    return fused(start, weight="", bias="_bias", **more)


def _names(start: str, **fields: object) -> Names:
    return Names(start, **fields)  # type: ignore[arg-type]
