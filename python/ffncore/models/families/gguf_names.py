"""The rows of the table of families as GGUF files name and store their layers.

    blk.N.ffn_gate, ffn_up, ffn_down                     .weight, .bias
    blk.N.ffn_gate_exps, ffn_up_exps, ffn_down_exps      stacks of experts
    blk.N.ffn_gate_shexp, ffn_up_shexp, ffn_down_shexp   the shared expert
    blk.N.ffn_gate_inp, ffn_gate_inp_shexp               the router, the gate of the shared expert
    blk.N.exp_probs_b                                    the correction bias

All models have these names, and all matrices are [out, in]. What a layer computes is that of the
family's row. Tests: tests/models/test_gguf.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .row import Family, MoEFamily, Names

LAYER = "blk.{}."
_CORRECTION = ("exp_probs_b.bias", "exp_probs_b")
_WHY = "the model's family does not have it"


def in_gguf(row: Family, fused: bool) -> Family:
    """The row with the names of GGUF files.

    fused  whether ffn_up of dense layers has the rows of gate, too
    """
    changed: dict[str, Any] = {
        "layer": LAYER,
        "forms": _forms(row.forms, "", fused),
        "parts": {},
        "refuses": {},
        "shared_layers": False,
    }
    if isinstance(row, MoEFamily):
        shared = _forms(row.shared, "_shexp", False)
        changed |= {
            "router": ("ffn_gate_inp.weight",),
            "router_bias": ("ffn_gate_inp.bias",) if row.router_bias else (),
            "correction_bias": _optional(row.correction_bias),
            "experts": _forms(row.experts, "_exps", False),
            "shared": shared,
            "shared_gate": ("ffn_gate_inp_shexp.weight",) if row.shared_gate else (),
        }
        unknown = {} if row.correction_bias else dict.fromkeys(_CORRECTION, _WHY)
        if not shared:
            unknown |= {f"ffn_{role}_shexp.weight": _WHY for role in ("gate", "up", "down")}
        changed["refuses"] = unknown
    return replace(row, **changed)


def _optional(names: Sequence[str]) -> tuple[str, ...]:
    """The names of the correction bias: one that need not exist stays so."""
    mark = "?" if names and names[0].endswith("?") else ""
    return tuple(name + mark for name in _CORRECTION) if names else ()


def _forms(forms: Sequence[Names], end: str, fused: bool) -> tuple[Names, ...]:
    if not forms:
        return ()
    first = forms[0]
    common: dict[str, Any] = {
        "down": f"ffn_down{end}",
        "biases": first.biases,
        "norm": first.norm,
        "activation": first.activation,
    }
    up, gate = f"ffn_up{end}", f"ffn_gate{end}"
    if not any(form.gated for form in forms):
        return (Names(up=up, **common),)
    if fused:
        return (Names(gate_up=up, **common),)
    both = f"ffn_gate_up{end}"
    return (Names(gate=gate, up=up, **common), Names(gate_up=both, **common))
