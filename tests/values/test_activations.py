"""fc.Activation: defaults, aliases, values, and options that do not fit into a dtype."""

import dataclasses
import pickle

import numpy as np
import pytest
from support import make_weights, normal

import ffncore as fc


def test_options_have_their_defaults():
    act = fc.Activation("silu")
    assert (act.alpha, act.limit, act.clamp, act.gate_multiplier) == (1.0, None, None, 1.0)
    assert act.negative_slope is None
    assert fc.Activation("leaky_relu").negative_slope == 0.01
    assert fc.Activation("silu", limit=7).clamp == "pre"


def test_aliases_are_the_same_activation():
    assert fc.Activation("swish") == fc.Activation("silu")
    assert fc.Activation("gelu_new").name == "gelu_tanh"
    assert fc.Activation("linear").name == "identity"


def test_names_in_any_case():
    assert fc.Activation("SiLU") == fc.Activation("silu")
    assert fc.Activation("GELU_New").name == "gelu_tanh"


@pytest.mark.parametrize(
    "name, of_gate", [("swiglu", "silu"), ("GEGLU", "gelu"), ("glu", "sigmoid")]
)
def test_names_of_gated_blocks_say_what_to_pass(name, of_gate):
    with pytest.raises(ValueError, match=f"expected activation='{of_gate}' and weights with gate="):
        fc.Activation(name)


def test_is_a_frozen_value():
    act = fc.Activation("silu", limit=7.0, alpha=1.702)
    assert act == fc.Activation("silu", alpha=np.float32(1.702).item() * 0 + 1.702, limit=7)
    assert hash(act) == hash(fc.Activation("silu", alpha=1.702, limit=7))
    assert repr(act) == "Activation('silu', alpha=1.702, limit=7.0, clamp='pre')"
    assert pickle.loads(pickle.dumps(act)) == act
    assert dataclasses.replace(act, limit=5.0).limit == 5.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        act.alpha = 2.0


def test_numpy_numbers_are_numbers():
    assert fc.Activation("silu", alpha=np.float32(2)) == fc.Activation("silu", alpha=2)
    assert type(fc.Activation("silu", alpha=np.int64(2)).alpha) is float


# ---- options that become 0 or infinite in the dtype of the computation -------------------------

TOO_SMALL = [
    {"gate_softcap": 1e-300},
    {"up_softcap": 1e-40},  # its inverse is infinite
    {"limit": 1e-60},
    {"alpha": 1e-50},
    {"gate_multiplier": -1e-80},
]
TOO_LARGE = [
    {"limit": 1e39},
    {"alpha": 3e38},  # as an exponent of 2
    {"alpha": -1e300},
    {"up_offset": -1e40},
    {"gate_softcap": 1e100},
]


@pytest.mark.parametrize(
    "size, options",
    [("small", o) for o in TOO_SMALL] + [("large", o) for o in TOO_LARGE],
    ids=str,
)
def test_options_beyond_float32_are_refused_there(size, options, rng):
    act = fc.Activation("silu", **options)
    (name,) = options
    w = make_weights(rng, 3, 4, dtype=np.float32)
    x = normal(rng, 2, 3, dtype=np.float32)
    sentence = rf"option {name} is .*, which is too {size} for float32; expected a number that"
    for call in (
        lambda: fc.ffn(x, w, activation=act),
        lambda: fc.ffn(x, fc.pack(w), activation=act),
        lambda: fc.ffn_forward(x, w, activation=act),
        lambda: fc.activation(x, x, activation=act),
        lambda: fc.activation_backward(x, x, x, activation=act),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()
    double = make_weights(rng, 3, 4)
    y = fc.ffn(normal(rng, 2, 3), double, activation=act)
    if size == "small":
        assert np.isfinite(y).all()


def test_a_softcap_whose_inverse_is_infinite_is_refused(rng):
    act = fc.Activation("silu", gate_softcap=1e-310)
    with pytest.raises(ValueError, match="too small for float64"):
        fc.activation(normal(rng, 3), activation=act)


def test_small_options_that_float32_holds_are_taken(rng):
    x = normal(rng, 100, dtype=np.float32)
    for options in ({"gate_softcap": 1e-30}, {"alpha": 1e-30}, {"gate_multiplier": 1e-30}):
        assert np.isfinite(fc.activation(x, activation=fc.Activation("silu", **options))).all()


def test_options_survive_pickling_and_replacing(rng):
    act = pickle.loads(pickle.dumps(fc.Activation("silu", limit=0.5)))
    x = normal(rng, 5)
    with pytest.raises(ValueError, match="option limit is for layers with a gate"):
        fc.activation(x, activation=act)
    assert (fc.activation(x, np.ones(5), activation=act) <= 0.5).all()
    other = dataclasses.replace(act, limit=None, clamp=None)
    assert np.array_equal(fc.activation(x, activation=other), fc.activation(x, activation="silu"))
