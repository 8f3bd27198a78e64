"""Helpers to compare a block of the transformers library with a layer of ffncore.

A block is built alone, in float64, and filled with random numbers, because its experts begin as
uninitialized memory and its router as zeros. A function `arrays` makes the arrays of our layer from
the block's tensors. It only slices, stacks and transposes, so that it also makes our gradients from
those of the block. Every parameter of the block has to be used, or named as one that is not.

The tolerance allows for the library's routers, some of which round to float32.
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
# Logits that are closer than this may have another order in the library's float32.
NEAR_TIE = 1e-4
# The sizes of the small blocks. The library requires d to be a multiple of the number of heads.
D, F, E, K = 16, 12, 8, 3
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}

Arrays = dict[str, np.ndarray]
Get = Callable[[str], np.ndarray]


class Tensors:
    """Copies of a block's tensors by name, as numpy arrays; remembers which were read."""

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
    made._experts_implementation = "eager"  # a loop over experts: the simplest implementation
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
    """Fill parameters and buffers with random numbers that keep outputs near 1.

    Biases of the selection are around `selection`, so that some scores are negative. Then it makes
    a difference whether groups that are not chosen count as -inf or 0.
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
    """Compare output and gradients. without: parameters whose gradients are not compared."""
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
    """Check the test's random numbers: no other choice of experts is equally good."""
    logits = np.sort(layer.router.logits(x), axis=-1)
    assert np.diff(logits, axis=-1).min() > NEAR_TIE
