"""A test of an installation that takes one second."""

import numpy as np

import ffncore as fc


def test_forward_backward_pack():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 16)).astype(np.float32)
    gate, up = rng.standard_normal((2, 24, 16)).astype(np.float32)
    down = rng.standard_normal((16, 24)).astype(np.float32)
    w = fc.FFNWeights(gate=gate, up=up, down=down)

    y, saved = fc.ffn_forward(x, w, activation="silu")
    grads = fc.ffn_backward(np.ones_like(y), saved)

    p, q = x @ gate.T, x @ up.T
    np.testing.assert_allclose(y, (p / (1 + np.exp(-p)) * q) @ down.T, rtol=1e-4, atol=1e-4)
    assert np.array_equal(fc.ffn(x, fc.pack(w), activation="silu"), y)
    assert grads.x.shape == x.shape
    assert grads.weights.down.shape == down.shape


def test_version_and_isas():
    assert fc.__version__.count(".") == 2
    assert fc.active_isa() in fc.available_isas()
    assert fc.available_isas()[0] == "scalar"


def test_public_names_exist():
    for name in fc.__all__:
        assert getattr(fc, name) is not None
