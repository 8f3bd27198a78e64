"""What stands around a block: data on the layer and in the list; the layer does not compute it."""

import copy

import numpy as np
import pytest
from support_checkpoints import LLAMA, llama, write

import ffncore as fc
from ffncore import models
from ffncore.layers.around import NORMS, Around
from ffncore.models.families import around as table
from ffncore.models.files.defaults import DEFAULTS


@pytest.mark.parametrize(
    "config, expected",
    [
        ({}, Around("pre")),
        ({"model_type": "granite", "residual_multiplier": 0.22}, Around("pre", False, 0.22)),
        ({"model_type": "cohere"}, Around("pre", True)),
        ({"model_type": "olmo2"}, Around("output")),
        ({"model_type": "gemma2", "hidden_activation": "silu"}, Around("pre and output")),
        ({"model_type": "stablelm", "use_parallel_residual": True}, Around("pre", True)),
        ({"model_type": "stablelm"}, Around("pre")),
        (
            {"model_type": "minicpm3", "scale_depth": 3.0, "num_hidden_layers": 9},
            Around("pre", False, 1.0),
        ),
        ({"model_type": "minicpm3"}, Around("pre", False, 1.4 / 62**0.5)),
    ],
)
def test_around(tmp_path, config, expected):
    write(tmp_path, llama(), {**LLAMA, **config})
    layer = fc.load(tmp_path)
    assert layer.around == expected
    assert layer.packed().around == expected
    assert {info.around for info in models.layers(tmp_path)} == {expected}
    x = np.ones((2, 4), "f4")
    plain = fc.load(write(tmp_path, llama(), LLAMA))
    assert np.array_equal(layer(x), plain(x))  # it is not computed


def test_keys_that_are_shown(tmp_path):
    start, rng = "model.layers.0.mlp.", np.random.default_rng(0)
    tensors = {start + "gate.weight": rng.standard_normal((3, 4))}
    tensors |= {start + "experts.gate_up_proj": rng.standard_normal((3, 10, 4))}
    tensors |= {start + "experts.down_proj": rng.standard_normal((3, 4, 5))}
    write(tmp_path, tensors, {"model_type": "minimax", "mlp_alpha_factor": 3.5})
    text = str(fc.load(tmp_path).around)
    assert text.endswith("mlp_alpha_factor 3.5, mlp_beta_factor 1")


@pytest.mark.parametrize("before, norms", [(True, "pre"), (False, "post")])
def test_norms_that_config_json_speaks_of(tmp_path, before, norms):
    tensors = {"layers.0.fc1.weight": np.ones((3, 2)), "layers.0.fc2.weight": np.ones((2, 3))}
    config = {"model_type": "opt", "enable_bias": False, "do_layer_norm_before": before}
    assert fc.load(write(tmp_path, tensors, config)).around == Around(norms)


def test_nothing_is_known_of_an_unknown_model(tmp_path):
    write(tmp_path, llama(), {"model_type": "mine", "hidden_act": "silu"})
    assert fc.load(tmp_path, family="llama").around == Around()


def test_a_wrong_multiplier_is_an_error(tmp_path):
    write(tmp_path, llama(), {"model_type": "granite", "residual_multiplier": "0.22"})
    with pytest.raises(
        ValueError, match=r"has residual_multiplier '0.22'; expected a finite number"
    ):
        fc.load(tmp_path)
    (info, _) = models.layers(tmp_path)
    assert "residual_multiplier" in info.problem


def test_text():
    assert str(Around()) == "unknown norms"
    told = Around("pre", True, 0.22, ("a layer scale",))
    assert str(told) == (
        "a norm of its input, parallel to attention, residual multiplier 0.22, a layer scale"
    )
    assert copy.deepcopy(told) == told


def test_the_table_has_known_model_types():
    names = {*table._NORM_OF, *table._PARALLEL, *table._PARALLEL_KEYS, *table._RESIDUAL_KEYS}
    names |= {*table._NOTES, *table._SHOWN_KEYS, *table._POST_UNLESS}
    assert names <= set(DEFAULTS)
    assert set(table._NORMS) <= set(NORMS)
