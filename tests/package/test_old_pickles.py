"""Old pickles can be loaded, and the objects compute the same as new ones."""

import importlib
import pickle

import numpy as np
import old_pickles
import pytest
from support import BFLOAT16, same_bits
from support_copying import ALL

import ffncore as fc
from ffncore import reference

OLD = old_pickles.read()

# Cases with parts that numpy computes, whose bits depend on the BLAS of the machine that made the
# file. All others have the same bits everywhere.
BY_NUMPY = {"GradientError", "GradientReport", "MoELayerGrads", "MoELayerSaved", "RouterGrads"}


# Types that came after the file was written.
NEWER = {
    *("BlockGrads", "BlockSaved", "FakeQuantizeGrads", "FakeQuantizeSaved", "FormatInfo"),
    *("Norm", "NormGrads", "QuantizedTensor", "PersistentAttentionGrads"),
    *("PersistentAttentionSaved", "PositionalLambdaGrads"),
}


def test_every_type_that_users_hold_is_there():
    kinds = {name.partition("-")[0] for name in OLD}
    expected = {name for name in fc.__all__ if is_value(getattr(fc, name))}
    assert expected - NEWER <= kinds


def test_types_that_have_moved_are_found_where_pickles_look_for_them():
    dense = importlib.import_module("ffncore.reference.dense")
    assert dense.Gradients is reference.Gradients
    assert dense.XieluParameters is reference.XieluParameters


def is_value(kind):
    return isinstance(kind, type) and kind is not fc.num_threads


@pytest.mark.parametrize("name", OLD)
def test_an_old_pickle_computes_the_same_bits(name):
    if b"ml_dtypes" in OLD[name] and not BFLOAT16:
        pytest.skip("ml_dtypes is not installed")
    case = ALL[name]
    found, expected = case.use(pickle.loads(OLD[name])), case.use(case.make())
    assert list(found) == list(expected)
    numbers_of_numpy = name.partition("-")[0] in BY_NUMPY
    for key, value in expected.items():
        if isinstance(value, np.ndarray) and numbers_of_numpy:
            np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-6)
        elif isinstance(value, np.ndarray):
            assert same_bits(found[key], value), key
        elif numbers_of_numpy:
            assert type(found[key]) is type(value), key
        else:
            assert type(found[key]) is type(value), key
            assert found[key] == value, key
