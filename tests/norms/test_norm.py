"""fc.Norm: its checks, its text, copies and pickles."""

import copy
import pickle

import numpy as np
import pytest

import ffncore as fc

GAIN = np.array([1.0, 2.0, 3.0], "f4")


def test_defaults():
    assert fc.Norm("rms").eps == 1e-6
    assert fc.Norm("layer").eps == 1e-5
    assert fc.Norm("layer", eps=0).eps == 0
    assert fc.Norm("rms").arrays() == {}
    norm = fc.Norm("layer", gain=GAIN, bias=GAIN + 1, gain_offset=1)
    assert norm.gain is GAIN
    assert [*norm.arrays()] == ["gain", "bias"]


def test_repr():
    norm = fc.Norm("rms", gain=GAIN, gain_offset=1)
    assert repr(norm) == "Norm('rms', gain=(3,), eps=1e-06, gain_offset=1)"
    assert repr(fc.Norm("layer")) == "Norm('layer', eps=1e-05)"


@pytest.mark.parametrize("again", [copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))])
def test_copies_and_pickles(again):
    norm = fc.Norm("layer", gain=GAIN, bias=GAIN + 1, eps=0.5, gain_offset=1)
    made = again(norm)
    assert repr(made) == repr(norm)
    assert made.gain is not norm.gain
    np.testing.assert_array_equal(made.bias, norm.bias)
    assert copy.copy(norm).gain is norm.gain


def test_it_cannot_be_changed():
    with pytest.raises(AttributeError):
        fc.Norm("rms").eps = 1


@pytest.mark.parametrize(
    "options, error, sentence",
    [
        ({"kind": "rmss"}, ValueError, "kind 'rmss' is not known; the nearest known name is 'rms'"),
        ({"kind": 1}, TypeError, "kind is of type int; expected a name"),
        ({"gain": [1.0]}, TypeError, "gain is of type list"),
        ({"gain": GAIN[None]}, ValueError, r"gain has shape \(1, 3\); expected 1-dimensional"),
        ({"gain": GAIN.astype("i4")}, TypeError, "gain has dtype int32"),
        ({"gain": GAIN, "bias": GAIN[:2]}, ValueError, r"bias has shape \(2,\); expected \(3,\)"),
        ({"gain": GAIN, "bias": GAIN.astype("f8")}, TypeError, "bias has dtype float64"),
        ({"eps": -1.0}, ValueError, "eps is -1.0; expected a number from 0"),
        ({"eps": np.nan}, ValueError, "eps is nan"),
        ({"gain_offset": np.inf}, ValueError, "gain_offset is inf"),
        ({"gain_offset": 1}, ValueError, "gain_offset is 1.0 and gain is None; expected a gain"),
    ],
)
def test_errors(options, error, sentence):
    with pytest.raises(error, match=sentence):
        fc.Norm(**{"kind": "rms", **options})
