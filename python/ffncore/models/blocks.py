"""One block of matrices in a checkpoint: which tensors it has, and the FFNWeights made of them.

A block is a dense layer, the shared expert of a mixture, or all of its experts. plan() checks the
headers and stops there, for models.layers; weights() reads the tensors. models/families/row.py says
what a form is. Tests: tests/models/test_models.py, tests/models/test_families.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..arrays.shapes import Array
from ..encodings.tensor import QuantizedTensor
from ..values.weights import FFNWeights
from .families.row import Names
from .layer_tensors import LayerTensors
from .stacking import rows, select, stacked

_AXES = {"gate": "f d", "up": "f d", "gate_up": "2f d", "down": "d f"}


@dataclass(frozen=True)
class Block:
    """The names of the tensors of a block."""

    form: Names
    in_out: bool
    experts: int | None  # their number; None: the block is a single layer
    matrices: dict[str, list[str]] = field(default_factory=dict)  # of each expert, or one name
    biases: dict[str, list[str]] = field(default_factory=dict)
    norm: tuple[str, ...] = ()  # weight, and bias of a LayerNorm
    scale: str | None = None

    @property
    def gated(self) -> bool:
        return self.form.gated

    @property
    def matrix_names(self) -> list[str]:
        return [name for names in self.matrices.values() for name in names]

    @property
    def bias_names(self) -> list[str]:
        return [name for names in self.biases.values() for name in names]

    @property
    def others(self) -> tuple[str, ...]:
        return (*self.norm, *((self.scale,) if self.scale is not None else ()))


def choose(tensors: LayerTensors, forms: Sequence[Names]) -> Names:
    """The form of which the layer has the largest part; without any, one with a known parent."""

    return max(forms, key=lambda form: share(tensors, form))  # the first of several


def share(tensors: LayerTensors, form: Names) -> tuple[float, bool]:
    """The share of the form's matrices that the layer has, and whether it has their parent."""
    if form.singly:
        return float(tensors.have(form.starts)), tensors.have(form.blocks)
    found = sum(tensors.have((start,)) for start in form.starts)
    return found / len(form.starts), tensors.have(form.blocks)


def there(tensors: LayerTensors, forms: Sequence[Names]) -> bool:
    """Whether the layer has a tensor of one of these forms."""
    return any(tensors.have(form.starts) for form in forms)


def plan(
    tensors: LayerTensors,
    forms: Sequence[Names],
    *,
    biased: bool = False,
    optional_biases: bool = False,
    size: str = "f",
    experts: int | None = None,
    null: int = 0,
    width: str = "d",
    count: str = "E",
) -> Block:
    """Check the tensors of a block, and return their names.

    biased   whether all biases have to exist, because config.json says so
    optional_biases  whether biases are used where they exist
    size     the letter of its d_ff in error messages and tensors.sizes
    experts  their number, if the block is a stack of experts
    width    the letter of its d_model
    count    the letter of the number of experts
    null     the number of null experts, for which some forms have rows, too

    Raises ValueError if a tensor is missing, damaged or has another shape.
    """
    form = choose(tensors, forms)
    singly = form.singly
    in_out = bool(form.in_out) if form.in_out is not None else _is_in_out(tensors, form)
    made = Block(form, in_out, experts)
    for role, stem in form.stems.items():
        stems = [stem.format(e) for e in range(experts or 0)] if singly else [stem]
        made.matrices[role] = [stem + form.weight for stem in stems]
        found = optional_biases and any(stem + form.bias in tensors for stem in stems)
        if form.biases or biased or found:
            made.biases[role] = [stem + form.bias for stem in stems]
    every = [*made.matrices.items()]
    for names in zip(*(names for _, names in every), strict=True):  # expert by expert
        for (role, _), name in zip(every, names, strict=True):
            axes = _AXES[role].replace("d", width).replace("f", size)
            if _swapped(tensors, form, in_out, role, name):
                axes = " ".join(reversed(axes.split()))
            if form.flat:
                axes = f"{experts}{size} d"
            elif experts is not None and not singly:
                rows = experts + null if form.null_rows and role == "gate_up" else count
                axes = f"{rows} {axes}"
            tensors.take(name, axes)
    if null and form.singly:
        _take_unused(tensors, form, range(experts or 0, (experts or 0) + null))
    for role, all_names in made.biases.items():
        axes = _AXES[role].split()[0].replace("d", width).replace("f", size)
        stacked = experts is not None and not singly
        for name in all_names:
            tensors.take(name, f"{count} {axes}" if stacked else axes)
    if form.norm is None and form.scale is None:
        return made
    norm: tuple[str, ...] = ()
    if form.norm is not None:
        kind, stem = form.norm.split(":")
        norm = (f"{form.start}{stem}.weight",)
        norm += (f"{form.start}{stem}.bias",) if kind == "layer" else ()
        for name in norm:
            tensors.take(name, size)
    scale = None if form.scale is None else form.start + form.scale
    if scale is not None:
        tensors.take_number(scale)
    return Block(form, in_out, experts, made.matrices, made.biases, norm, scale)


def _swapped(tensors: LayerTensors, form: Names, in_out: bool, role: str, name: str) -> bool:
    """Whether a matrix is stored as [in, out]. Most quantisers write [out, in] for all models;
    codes that are stored like numbers cannot be turned, because their groups lie along one axis.
    """
    swap = in_out or (form.flat and role == "down")
    if not tensors.quantized(name) or not (swap or form.flat):
        return swap
    if form.flat or not tensors.turned(name):
        raise tensors.wrong(name, "is quantised and stored as [in, out]; expected [out, in]")
    return False


def _take_unused(tensors: LayerTensors, form: Names, numbers: range) -> None:
    """Check the matrices of null experts, which some files have and no code uses."""
    for stem in form.stems.values():
        for e in numbers:
            name = stem.format(e) + form.weight
            if name in tensors:
                tensors.take(name, "f d" if form.stems["down"] != stem else "d f")


def _is_in_out(tensors: LayerTensors, form: Names) -> bool:
    """Whether stacks are [E, in, out], by their shapes: down is [E, f, d] then."""
    d = tensors.sizes.get("d")
    shapes = {
        role: tensors.shape(stem + form.weight)
        for role, stem in form.stems.items()
        if stem + form.weight in tensors
    }
    down = shapes.get("down", ())
    if len(down) == 3 and (down[1] == d) != (down[2] == d):
        return down[2] == d
    first = next((shape for role, shape in shapes.items() if role != "down"), ())
    return len(first) == 3 and first[1] == d and first[2] != d


def weights(
    tensors: LayerTensors, block: Block, dtype: str | None, held: Sequence[int] | None = None
) -> FFNWeights:
    """Read the tensors of a block.

    held  numbers of the experts to read, in increasing order; None: all
    """
    form = block.form
    if held is None and form.null_rows and block.experts is not None:
        held = range(block.experts)

    def read(names: list[str]) -> Any:
        if dtype is None and any(tensors.quantized(name) for name in names):
            return _codes(tensors, names, block.experts is not None, held)
        if form.singly:
            chosen = names if held is None else [names[e] for e in held]
            return _stack(tensors, chosen, dtype)
        if block.experts is None or held is None:
            array = tensors.read(names[0], dtype)
        else:
            size = tensors.sizes["f"] if form.flat else 1
            runs = [range(r.start * size, r.stop * size) for r in _runs(held)]
            parts = [tensors.read(names[0], dtype, run) for run in runs]
            array = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return array.reshape(-1, tensors.sizes["f"], array.shape[1]) if form.flat else array

    arrays: dict[str, Any] = {}
    for role, names in block.matrices.items():
        array = read(names)
        swap = _swapped(tensors, form, block.in_out, role, names[0])
        arrays[role] = array.swapaxes(-1, -2) if swap else array
    arrays |= {f"b_{role}": read(names) for role, names in block.biases.items()}
    if form.gate_up is None:
        return FFNWeights(**arrays)
    gate_up, down = arrays.pop("gate_up"), arrays.pop("down")
    if isinstance(gate_up, QuantizedTensor) or isinstance(down, QuantizedTensor):
        return _divided(form, gate_up, down, arrays)
    return FFNWeights.from_gate_up(gate_up, down, layout=form.layout, order=form.order, **arrays)


def _codes(
    tensors: LayerTensors, names: list[str], experts: bool, held: Sequence[int] | None
) -> QuantizedTensor:
    """Read a quantised matrix, or those of experts."""
    if len(names) == 1:
        whole = tensors.read_codes(names[0])
        if whole.ndim == 3:
            return whole if held is None else select(whole, held)
        return stacked([whole]) if experts else whole
    chosen = names if held is None else [names[e] for e in held]
    plain = next((name for name in chosen if not tensors.quantized(name)), None)
    if plain is not None:
        raise tensors.wrong(
            plain, "is not quantised as other experts are; expected one format, or dtype="
        )
    return stacked([tensors.read_codes(name) for name in chosen])


def _divided(form: Names, gate_up: Any, down: Any, biases: dict[str, Any]) -> FFNWeights:
    """gate and up of a fused matrix, where that or down is quantised."""
    half = gate_up.shape[-2] // 2
    pair = (slice(half), slice(half, None))
    if form.layout == "interleaved":
        pair = (slice(0, None, 2), slice(1, None, 2))
    pair = pair if form.order == "gate_first" else pair[::-1]
    made: dict[str, Any] = {"down": down, "b_down": biases.get("b_down")}
    for name, part in zip(("gate", "up"), pair, strict=True):
        quantized = isinstance(gate_up, QuantizedTensor)
        made[name] = rows(gate_up, part) if quantized else gate_up[..., part, :]
        if "b_gate_up" in biases:
            made[f"b_{name}"] = biases["b_gate_up"][..., part]
    return FFNWeights(**made)


def _stack(tensors: LayerTensors, names: list[str], dtype: str | None) -> Array:
    """Read one tensor per expert into one array [E, ...]."""
    first = tensors.read(names[0], dtype)
    stack = np.empty((len(names), *first.shape), first.dtype)
    stack[0] = first
    for e, name in enumerate(names[1:], 1):
        stack[e] = tensors.read(name, dtype)
    return stack


def _runs(numbers: Sequence[int]) -> list[range]:
    """Increasing numbers as ranges of neighbours."""
    runs: list[range] = []
    for n in numbers:
        if runs and n == runs[-1].stop:
            runs[-1] = range(runs[-1].start, n + 1)
        else:
            runs.append(range(n, n + 1))
    return runs
