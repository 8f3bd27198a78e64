"""The tensors of a checkpoint that are matrices of feed-forward layers, and all layers with them.

    layers_of(checkpoint)     every layer that fc.load knows, with all its blocks
    matrices_of(layers)       their gate, up and down by the name in the file, each once

Routers, norms, biases and what no layer uses are none of these. Layers that fc.load refuses are
refused here, too, and those that are quantised. Tests: tests/models/writing/test_matrices.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ...arrays.shapes import Array
from .. import blocks, mixture_loading
from ..blocks import Block
from ..files.checkpoint import Checkpoint
from ..files.config import Config
from ..finding import Found, found_layers, why_none
from ..layer_tensors import LayerTensors
from ..loading import layers
from ..mixture_loading import Plan

# The matrices of FFNWeights that a stored tensor has.
FIELDS = {"gate": ("gate",), "up": ("up",), "down": ("down",), "gate_up": ("gate", "up")}


@dataclass(frozen=True)
class Layer:
    """A layer and its blocks: the main one first, and of a mixture the experts.

    plan  that of a mixture
    """

    found: Found
    config: Config
    plan: Plan | None
    blocks: tuple[tuple[LayerTensors, Block], ...]


@dataclass(frozen=True)
class Matrix:
    """One stored tensor of matrices.

    name    in the checkpoint
    fields  what it is: ("up",), or ("gate", "up") for both in one tensor
    swap    whether it is stored as [..., in, out]
    split   the number of rows of each expert, if experts follow each other in [E f, d]
    shape   [out, in] or [E, out, in]
    """

    name: str
    fields: tuple[str, ...]
    swap: bool
    split: int | None
    shape: tuple[int, ...]

    def read(self, checkpoint: Checkpoint) -> Array:
        """The weights as [out, in] or [E, out, in], in their dtype."""
        array = checkpoint.read(self.name, None)
        if self.split is not None:
            array = array.reshape(-1, self.split, array.shape[1])
        return array.swapaxes(-1, -2) if self.swap else array


def layers_of(checkpoint: Checkpoint, family: str | None = None) -> list[Layer]:
    """All layers. Raises ValueError if there is none, or if one is refused."""
    infos = layers(checkpoint, family)
    for info in infos:
        if info.packing is not None:
            raise ValueError(
                f"{checkpoint.names_file} has layer {info.layer} quantised by {info.packing}; "
                f"expected weights that are numbers"
            )
        if info.problem is not None:
            raise ValueError(info.problem)
    if not infos:
        raise ValueError(why_none(checkpoint, family))
    return [_layer(found) for found in found_layers(checkpoint, family)]


def _layer(found: Found) -> Layer:
    config = found.config.at(found.layer, found.row.by_layer)
    tensors, mixture = found.tensors, found.mixture
    plan = None
    if mixture is not None:
        plan = mixture_loading.plan(tensors, mixture, config)
        whole = [b for b in (plan.experts, plan.shared, plan.joined) if b is not None]
    else:
        whole = [blocks.plan(tensors, found.forms, optional_biases=True)]
    made = [(tensors, block) for block in whole]
    for forms in found.parts.values():
        # Its sizes are those of another block, so it has a LayerTensors of its own.
        own = LayerTensors(found.tensors.checkpoint, tensors.start, tensors.names)
        made.append((own, blocks.plan(own, forms, optional_biases=True)))
    return Layer(found, config, plan, tuple(made))


def matrices_of(layers: Iterable[Layer]) -> dict[str, Matrix]:
    """The matrices of all blocks, by the name in the checkpoint."""
    found: dict[str, Matrix] = {}
    for layer in layers:
        for tensors, block in layer.blocks:
            for role, names in block.matrices.items():
                for name in names:
                    full = tensors.start + name
                    if full not in found:
                        found[full] = _matrix(tensors, block, role, name)
    return found


def _matrix(tensors: LayerTensors, block: Block, role: str, name: str) -> Matrix:
    flat = block.form.flat
    shape = tensors.shape(name)
    split = shape[0] // (block.experts or 1) if flat else None
    if split is not None:
        shape = (shape[0] // split, split, shape[1])
    swap = block.in_out or (flat and role == "down")
    if swap:
        shape = (*shape[:-2], shape[-1], shape[-2])
    return Matrix(tensors.start + name, FIELDS[role], swap, split, shape)
