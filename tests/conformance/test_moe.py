"""fc.MoE against the blocks with experts of the transformers library: output and every gradient."""

import numpy as np
import pytest
from blocks import D, Tensors, compare, generator, no_near_ties, torch
from families_sigmoid import FAMILIES as SIGMOID
from families_softmax import FAMILIES as SOFTMAX

FAMILIES = {**SOFTMAX, **SIGMOID}


CASES = [
    (name, dtype)
    for name, family in FAMILIES.items()
    for dtype in (torch.float64, torch.float32)
    if not (family.float32_alone and dtype == torch.float64)
]


@pytest.mark.parametrize("name, dtype", CASES, ids=lambda part: str(part).removeprefix("torch."))
def test_block(name, dtype):
    family, rng = FAMILIES[name], generator(name)
    block = family.make(rng, dtype)
    layer = family.layer(Tensors(block.state_dict()))
    x = rng.standard_normal((2, 5, D)).astype(layer.dtype)
    no_near_ties(layer, x)
    compare(block, layer, family.arrays, x, rng, without=family.without)


def test_the_table_is_long_enough():
    assert len(FAMILIES) >= 25
    assert np.unique([(f.module, f.block) for f in FAMILIES.values()], axis=0).shape[0] >= 25
