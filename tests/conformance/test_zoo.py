"""fc.load of small random models of the transformers library, in both layouts that it writes.

Every layer of every row of the zoo is compared with the library's own block: the output in both
layouts, and the gradients of x and of all weights.
"""

from __future__ import annotations

import pytest
from blocks import generator, near, no_near_ties, torch
from zoo import LAYOUTS, output, saved
from zoo_dense import DENSE
from zoo_mixtures import MIXTURES
from zoo_towers import TOWERS

import ffncore as fc

ZOO = [*DENSE, *MIXTURES, *TOWERS]


@pytest.fixture(scope="module", params=ZOO, ids=lambda row: row.name)
def model(request, tmp_path_factory):
    return saved(request.param, tmp_path_factory.mktemp("zoo"))


def layers(model, folder):
    """Every layer of the model: its block, its number, what fc.load returns, and x."""
    for block in model.row.blocks:
        for number in block.layers:
            layer = fc.load(folder, layer=number, **block.load)
            assert isinstance(layer, fc.MoE if block.mixture else fc.FFN)
            rng = generator(f"{model.row.name} {block.path} {number}")
            x = rng.standard_normal((2, 5, block.d)).astype(layer.dtype)
            if block.mixture:
                no_near_ties(layer, x)
            yield block, number, layer, x, rng


@pytest.mark.parametrize("layout", LAYOUTS)
def test_output(model, layout):
    for block, number, layer, x, _ in layers(model, model.path(layout)):
        _, y = output(model, block, number, x)
        near(layer(x), y.detach().numpy().reshape(x.shape), f"layer {number}")


def test_gradients(model):
    compared = []
    for block, number, layer, x, rng in layers(model, model.path("released")):
        given, expected = output(model, block, number, x)
        grad_y = rng.standard_normal(x.shape).astype(x.dtype)
        (expected.reshape(x.shape) * torch.from_numpy(grad_y)).sum().backward()
        _, saved_activations = layer.forward(x)
        found = layer.backward(grad_y, saved_activations).arrays()
        near(found.pop("x"), given.grad.numpy(), f"gradient of x, layer {number}")
        compared.append((block, number, found))
    if model.row.only_x:
        return
    folder = model.write_gradients()
    for block, number, found in compared:
        loaded = fc.load(folder, layer=number, **block.load)
        named = loaded.parameters() if block.mixture else loaded.weights.arrays()
        assert set(found) == set(named)
        for name, array in found.items():
            near(array, named[name], f"gradient of {name}, layer {number}")
