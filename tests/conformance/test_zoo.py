"""fc.load of small random models of the transformers library, in both layouts that it writes.

Every layer of every row of the zoo is compared with the library's own block: the output in both
layouts, and the gradients of x and of all weights. not_covered.py has the model types that are not
in the zoo, and the reasons; both are printed at the end of a run.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from blocks import NEAR_TIE, generator, near, torch
from not_covered import REFUSED, covered, not_covered
from zoo import LAYOUTS, output, saved
from zoo_dense import DENSE
from zoo_images import IMAGE_MODELS
from zoo_mixtures import MIXTURES
from zoo_towers import TOWERS

import ffncore as fc

ZOO = [*DENSE, *MIXTURES, *TOWERS, *IMAGE_MODELS]


@pytest.fixture(scope="module", params=ZOO, ids=lambda row: row.name)
def model(request, tmp_path_factory):
    return saved(request.param, tmp_path_factory.mktemp("zoo"))


def inputs(model, block, number, layer):
    """Random x for which no other choice of experts is equally good."""
    rng = generator(f"{model.row.name} {block.path} {number}")
    x = rng.standard_normal((2, 5, block.d)).astype(layer.dtype)
    while block.mixture and np.diff(np.sort(layer.router.logits(x)), axis=-1).min() <= NEAR_TIE:
        x = rng.standard_normal((2, 5, block.d)).astype(layer.dtype)
    return x, rng


def layers(model, folder):
    """Every layer of the model: its block, its number, what fc.load returns, and x."""
    for block in model.row.blocks:
        for number in block.layers:
            layer = fc.load(folder, layer=number, **block.load)
            assert isinstance(layer, fc.MoE if block.mixture else fc.FFN)
            yield block, number, layer, *inputs(model, block, number, layer)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layers_lists_every_layer(model, layout):
    found = fc.models.layers(model.path(layout))
    assert [info.problem for info in found] == [None] * len(found)
    for block in model.row.blocks:
        if "part" not in block.load:
            kinds = [info for info in found if (info.n_experts is not None) == block.mixture]
            assert {*block.layers} <= {info.layer for info in kinds if info.d_model == block.d}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_output(model, layout):
    for block, number, layer, x, _ in layers(model, model.path(layout)):
        _, y = output(model, block, number, x)
        near(layer(x), y.detach().numpy().reshape(x.shape), f"{block.path} of layer {number}")


def test_gradients(model):
    compared = {}
    for block, number, layer, x, rng in layers(model, model.path("released")):
        module = block.path.format(number)
        if (module, block.call) in compared:  # layers that share their weights
            continue
        given, expected = output(model, block, number, x)
        grad_y = rng.standard_normal(x.shape).astype(x.dtype)
        (expected.reshape(x.shape) * torch.from_numpy(grad_y)).sum().backward()
        _, saved_activations = layer.forward(x)
        found = layer.backward(grad_y, saved_activations).arrays()
        near(found.pop("x"), given.grad.numpy(), f"gradient of x of {module}")
        compared[module, block.call] = (block, number, found)
    folder = model.write_gradients()
    for (module, _), (block, number, found) in compared.items():
        expected = fc.load(folder, layer=number, **block.load).parameters()
        assert set(found) == set(expected)
        for name in set(found) - set(model.row.without):
            near(found[name], expected[name], f"gradient of {name} of {module}")


BFLOAT16 = ("mixtral", "deepseek_v3", "gpt_oss", "llama4_text")


@pytest.mark.parametrize("row", [r for r in ZOO if r.name in BFLOAT16], ids=lambda row: row.name)
def test_bfloat16(row, tmp_path):
    """In bfloat16, as most checkpoints are stored; the library computes with rounded numbers."""
    pytest.importorskip("ml_dtypes")
    model = saved(replace(row, dtype=torch.bfloat16), tmp_path)
    model.model.double()
    for layout in LAYOUTS:
        stored = fc.load(model.path(layout), layer=1)
        assert stored.dtype.name == "bfloat16"
        layer = fc.load(model.path(layout), layer=1, dtype="float64")
        x, _ = inputs(model, row.blocks[-1], 1, layer)
        _, y = output(model, row.blocks[-1], 1, x)
        near(layer(x), y.detach().numpy().reshape(x.shape), "y")
        # The same weights, not converted, with float32 x.
        single = x.astype(np.float32)
        near(stored(single).astype(np.float64), layer(single.astype(np.float64)), "float32")


@pytest.mark.parametrize("row, words", REFUSED, ids=[row.name for row, _ in REFUSED])
def test_what_is_refused(row, words, tmp_path):
    model = saved(row, tmp_path)
    for layout in LAYOUTS:
        for block in row.blocks:
            with pytest.raises(ValueError, match=words or fc.models.REFUSED[row.model_type]):
                fc.load(model.path(layout), layer=1, **block.load)


def test_every_model_type_of_the_table_is_covered():
    rows = (*fc.models.FAMILIES, *fc.models.MOE_FAMILIES)
    known = {model_type for row in rows for model_type in row.model_types}
    assert known - covered(ZOO) - set(not_covered()) == set()
    assert len({row.model_type for row in ZOO}) >= 60
    assert covered(ZOO).isdisjoint(not_covered())
