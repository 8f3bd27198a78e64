"""The arrays of an FFNWeights from the tensors in which transformers' blocks store experts.

Each function gets a reader of tensors by name; `start` is the first part of the names.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from blocks import Arrays, D, E, F, Get, block_of, torch


def concat(get: Get, start: str = "experts.") -> Arrays:
    """[E, 2 f, d], gate first; [E, d, f]"""
    gate_up = get(start + "gate_up_proj")
    down = get(start + "down_proj")
    return {"gate": gate_up[:, :F], "up": gate_up[:, F:], "down": down}


def concat_in_out(get: Get) -> Arrays:
    gate_up = get("experts.gate_up_proj").swapaxes(1, 2)
    down = get("experts.down_proj").swapaxes(1, 2)
    return {"gate": gate_up[:, :F], "up": gate_up[:, F:], "down": down}


def with_biases(get: Get, first: Any, second: Any) -> Arrays:
    """[E, d, 2 f] and its bias: gate and up at `first` and `second` of the last axis."""
    gate_up, bias = get("experts.gate_up_proj"), get("experts.gate_up_proj_bias")
    return {
        "gate": gate_up[..., first].swapaxes(1, 2),
        "up": gate_up[..., second].swapaxes(1, 2),
        "down": get("experts.down_proj").swapaxes(1, 2),
        "b_gate": bias[:, first],
        "b_up": bias[:, second],
        "b_down": get("experts.down_proj_bias"),
    }


def interleaved(get: Get) -> Arrays:
    return with_biases(get, slice(0, None, 2), slice(1, None, 2))


def halves(get: Get) -> Arrays:
    return with_biases(get, slice(F), slice(F, None))


def plain(get: Get) -> Arrays:
    return {"up": get("experts.up_proj"), "down": get("experts.down_proj")}


def linears(get: Get) -> Arrays:
    gate_up = get("input_linear.weight")
    down = get("output_linear.weight")
    return {"gate": gate_up[:, :F], "up": gate_up[:, F:], "down": down}


def flat(get: Get) -> Arrays:
    """[E f, d] each, down too."""
    gate, up, down = (get(f"experts.mlp.{n}").reshape(E, F, D) for n in ("w1", "v1", "w2"))
    return {"gate": gate, "up": up, "down": down.swapaxes(1, 2)}


def modules(get: Get) -> Arrays:
    return {
        ours: np.stack([get(f"experts.expert_{e}.{name}.weight") for e in range(E)])
        for ours, name in (("up", "wi"), ("down", "wo"))
    }


def with_identity(get: Get) -> Arrays:
    """gate_up also has rows for the identity experts, which are never read."""
    return {name: array[:E] for name, array in concat(get).items()}


def separate(get: Get, start: str) -> Arrays:
    names = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
    return {ours: get(f"{start}{name}.weight") for ours, name in names.items()}


def shared_plain(get: Get, start: str) -> Arrays:
    return {"up": get(f"{start}up_proj.weight"), "down": get(f"{start}down_proj.weight")}


def shared_fused(get: Get, start: str) -> Arrays:
    gate_up = get(f"{start}gate_up_proj.weight")
    half = len(gate_up) // 2
    down = get(f"{start}down_proj.weight")
    return {"gate": gate_up[:half], "up": gate_up[half:], "down": down}


def granite_experts(get: Get) -> Arrays:
    return concat(get, "block_sparse_moe.experts.")


def granite_shared(get: Get, start: str) -> Arrays:
    gate_up = get(start + "input_linear.weight")
    half = len(gate_up) // 2
    down = get(start + "output_linear.weight")
    return {"gate": gate_up[:half], "up": gate_up[half:], "down": down}


# ---- blocks that are no single class, or that have to be prepared before they are filled ---------


def identity_router(block: Any) -> Any:
    """Gemma 4 normalizes and scales the input of its router, which is not a part of fc.MoE."""
    block.norm = torch.nn.Identity()
    return block


class Gemma4(torch.nn.Module):
    """Router and experts, which its decoder layer calls one after the other."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.router = identity_router(block_of("gemma4", "Gemma4TextRouter", config))
        self.experts = block_of("gemma4", "Gemma4TextExperts", config)

    def forward(self, x: Any) -> Any:
        rows = x.reshape(-1, D)
        self.router.scale.data.fill_(D**0.5)
        _, weights, ids = self.router(rows)
        return self.experts(rows, ids, weights).reshape(x.shape)


class GraniteShared(torch.nn.Module):
    """The two parts that its decoder layer adds."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.block_sparse_moe = block_of("granitemoeshared", "GraniteMoeSharedMoE", config)
        self.shared_mlp = block_of("granitemoeshared", "GraniteMoeSharedMLP", config)

    def forward(self, x: Any) -> Any:
        return self.block_sparse_moe(x) + self.shared_mlp(x)


def float64_router(block: Any) -> Any:
    block.router.dtype = torch.float64
    return block
