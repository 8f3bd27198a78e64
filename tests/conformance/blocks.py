"""What the comparisons share: a block of the transformers library beside a layer of ours.

A block class is built alone, in float64, and filled with numbers of ours: experts start as
uninitialized memory, routers as zeros. A function `arrays` says which of its tensors are which of
our layer's; it only slices, stacks and transposes, so the same function takes the block's gradients
to ours. Every parameter of the block must take part, or be named as one that does not.

The library rounds routers to float32 here and there, hence the tolerance.
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

import ffncore as fc

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5
# Logits nearer than this may be ordered otherwise in the library's float32.
NEAR_TIE = 1e-4
# Of the small blocks. The library's validators want d to be a multiple of the heads.
D, F, E, K = 16, 12, 8, 3
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}

Arrays = dict[str, np.ndarray]
Get = Callable[[str], np.ndarray]


class Tensors:
    """A block's tensors by name, as numpy arrays of our own; remembers which were read."""

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        self._tensors = tensors
        self.read: set[str] = set()

    def __call__(self, name: str) -> np.ndarray:
        self.read.add(name)
        return self._tensors[name].detach().numpy().copy()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors


def configuration(module: str, name: str, **arguments: Any) -> Any:
    package = f"transformers.models.{module}"
    config = getattr(importlib.import_module(f"{package}.configuration_{module}"), name)
    made = config(**arguments)
    made._experts_implementation = "eager"  # loops over experts: the plainest of its ways
    return made


def block_of(module: str, name: str, *arguments: Any) -> Any:
    models = importlib.import_module(f"transformers.models.{module}.modeling_{module}")
    return getattr(models, name)(*arguments)


def generator(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def fill(
    block: Any,
    rng: np.random.Generator,
    dtype: Any = torch.float64,
    selection: float = -0.6,
) -> Any:
    """Numbers that keep outputs near 1, in parameters and buffers alike.

    Biases of selection, around `selection`, make some scores negative: what groups that are not
    chosen count as, -inf or 0, makes a difference then.
    """
    block = block.to(dtype).eval()
    for name, tensor in [*block.named_parameters(), *block.named_buffers()]:
        if tensor.is_floating_point():
            selects = name.endswith(("e_score_correction_bias", "expert_bias"))
            numbers = rng.normal(selection if selects else 0, 0.35, tuple(tensor.shape))
            tensor.data.copy_(torch.from_numpy(np.asarray(numbers)))
    return block


def compare(
    block: Any,
    layer: Any,
    arrays: Callable[[Get], Arrays],
    x: np.ndarray,
    rng: np.random.Generator,
    *,
    without: tuple[str, ...] = (),
    call: Callable[[Any, Any], Any] = lambda block, x: block(x),
) -> None:
    """Output and gradients. without: the block's parameters whose gradients are not compared."""
    given = torch.from_numpy(x.copy()).requires_grad_(True)
    expected = call(block, given)
    expected = expected[0] if isinstance(expected, tuple) else expected
    grad_y = rng.standard_normal(x.shape).astype(x.dtype)
    (expected.reshape(x.shape) * torch.from_numpy(grad_y)).sum().backward()

    y, saved = layer.forward(x)
    near(y, expected.detach().numpy().reshape(x.shape), "y")
    found = layer.backward(grad_y, saved)

    parameters = dict(block.named_parameters())
    grads = Tensors(
        {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in parameters.items()}
    )
    named = {**arrays(grads), "x": given.grad.numpy()}
    assert set(found.arrays()) == set(named)
    for name, array in found.arrays().items():
        near(array, named[name], f"gradient of {name}")
    assert set(parameters) - grads.read == set(without)


def near(ours: np.ndarray, theirs: np.ndarray, what: str) -> None:
    assert ours.shape == theirs.shape, what
    scale = np.abs(theirs).max()
    assert scale > 0, f"{what}: nothing to compare"
    error = np.abs(ours - theirs).max() / scale
    assert error <= TOLERANCE, f"{what}: {error:.1e}"


def no_near_ties(layer: fc.MoE, x: np.ndarray) -> None:
    """A condition on the test's own numbers: no other choice of experts is as good."""
    logits = np.sort(layer.router.logits(x), axis=-1)
    assert np.diff(logits, axis=-1).min() > NEAR_TIE
