"""Calibration rows and second moments: the same knowledge in two forms, and bad ones."""

import re

import numpy as np
import pytest
from support import normal

import ffncore as fc
from ffncore.quantisation.calibration import Calibration


def test_rows_and_their_second_moment_tell_the_same_error(rng):
    x, d = normal(rng, 50, 8, dtype=np.float32), normal(rng, 3, 8, dtype=np.float32)
    rows, moment = Calibration(x, None), Calibration(None, x.T.astype("f8") @ x)
    exact = float((x.astype("f8") @ d.T.astype("f8")).ravel() @ (x.astype("f8") @ d.T).ravel())
    assert rows.error(d) == pytest.approx(exact, rel=1e-5)
    assert moment.error(d) == pytest.approx(exact, rel=1e-5)
    np.testing.assert_allclose(rows.moment(), moment.moment())
    np.testing.assert_allclose(rows.magnitudes(), np.abs(x).mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(moment.magnitudes(), np.sqrt((x.astype("f8") ** 2).sum(axis=0)))


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_gptq_gets_the_same_codes_from_either(rng, dtype):
    w, x = normal(rng, 4, 64, dtype=np.float32), normal(rng, 300, 64).astype(dtype)
    moment = x.astype("f4").astype("f8")
    q = fc.quantize(w, "q4_0", method="gptq", inputs=x)
    assert q == fc.quantize(w, "q4_0", method="gptq", second_moment=moment.T @ moment)
    assert q != fc.quantize(w, "q4_0")


W, X = np.ones((4, 64), "f4"), np.ones((9, 64), "f4")
LAYER = fc.FFNWeights(up=W, gate=W, down=W.T.copy())
BAD = [
    ({}, ValueError, "inputs and second_moment are None; expected one of them for method 'gptq'"),
    ({"inputs": X, "second_moment": X}, ValueError, "inputs and second_moment are both given"),
    ({"method": "rtn", "inputs": X}, ValueError, "inputs is given; expected None for method 'rtn'"),
    ({"inputs": X[:, 1:]}, ValueError, "inputs has shape (9, 63); expected [tokens, 64]"),
    ({"inputs": X[:0]}, ValueError, "inputs has shape (0, 64); expected [tokens, 64]"),
    ({"inputs": X[None]}, ValueError, "inputs has shape (1, 9, 64); expected [tokens, 64]"),
    ({"inputs": X.astype(int)}, TypeError, "inputs has dtype int64; expected float32"),
    ({"inputs": X * np.float32(np.nan)}, ValueError, "inputs has numbers that are infinite or NaN"),
    ({"inputs": [1.0]}, TypeError, "inputs is of type list; expected a numpy array"),
    ({"second_moment": X}, ValueError, "second_moment has shape (9, 64); expected [64, 64]"),
    ({"second_moment": -np.eye(64)}, ValueError, "second_moment has a negative diagonal entry"),
    ({"second_moment": 1 - np.eye(64)}, ValueError, "the second moment for w is not positive"),
    ({"inputs": X, "activation": "silu"}, ValueError, "activation is given; expected None for a"),
]


@pytest.mark.parametrize("options, error, sentence", BAD)
def test_bad_calibration(options, error, sentence):
    with pytest.raises(error, match="^" + re.escape(sentence)):
        fc.quantize(W, "q4_0", **{"method": "gptq", **options})


BAD_LAYER = [
    ({"inputs": X}, "inputs has no entry for down, and activation is None; expected inputs of x"),
    ({"second_moment": np.eye(64)}, "second_moment has no entry for down, and activation is None"),
    ({"inputs": {"down": X}}, "inputs has no entry for gate; expected one"),
    ({"inputs": {"up": X, "side": X}}, "inputs has 'side', which is not known"),
    ({"inputs": {"up": X, "down": X}}, "inputs['down'] has shape (9, 64); expected [tokens, 4]"),
]


@pytest.mark.parametrize("options, sentence", BAD_LAYER)
def test_bad_calibration_of_a_layer(options, sentence):
    with pytest.raises(ValueError, match="^" + re.escape(sentence)):
        fc.quantize(LAYER, "int8", method="gptq", **options)


def test_awq_scales_the_inputs_of_gate_and_up_together():
    formats = {"up": "int8", "down": "int8"}
    with pytest.raises(ValueError, match=r"^format has up, down; expected gate and up, too"):
        fc.quantize(LAYER, formats, method="awq", inputs=X, activation="silu")
