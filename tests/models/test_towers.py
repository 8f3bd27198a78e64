"""Models of several towers: which stack fc.load takes, and its part of config.json."""

import numpy as np
import pytest
from support_checkpoints import llama, write

import ffncore as fc
from ffncore import models
from ffncore.models.files.config import Config
from ffncore.models.files.towers import TOWERS, tower_of

D, F = 4, 6


def tensors(start, layers, *names, d=D, f=F, bias=True):
    """Plain blocks up, down, or gated ones gate, up, down, of different sizes for each tower."""
    rng = np.random.default_rng(len(start) + layers)
    found = {}
    for i in range(layers):
        for name in names:
            shape = (d, f) if name == names[-1] else (f, d)
            found[f"{start.format(i)}{name}.weight"] = rng.standard_normal(shape)
            if bias:
                found[f"{start.format(i)}{name}.bias"] = rng.standard_normal(shape[0])
    return found


def clip_tower(start, layers, **sizes):
    return tensors(start + "encoder.layers.{}.mlp.", layers, "fc1", "fc2", **sizes)


def text_tower(start, layers, **sizes):
    names = ("gate_proj", "up_proj", "down_proj")
    return tensors(start + "layers.{}.mlp.", layers, *names, bias=False, **sizes)


LLAVA = text_tower("language_model.model.", 2) | clip_tower("vision_tower.vision_model.", 3, f=9)
CONFIG = {
    "model_type": "llava",
    "text_config": {"model_type": "mistral", "hidden_act": "relu"},
    "vision_config": {"model_type": "clip_vision_model", "hidden_act": "gelu"},
}


def test_the_language_model_is_meant(tmp_path):
    write(tmp_path, LLAVA, CONFIG)
    layer = fc.load(tmp_path, layer=1)
    assert (layer.name, layer.d_ff) == ("language_model.model.layers.1", F)
    assert layer.activation.name == "relu"
    # Layer 2 is in the vision tower alone, which is not taken for it.
    with pytest.raises(
        ValueError, match=r"layer 2 with prefix 'language_model\.model\.' is not in"
    ):
        fc.load(tmp_path, layer=2)


@pytest.mark.parametrize(
    "prefix",
    [
        *("vision", "vision_tower", "vision_model", "vision_model.", "vision_tower.vision_model"),
        *("vision_tower.vision_model.encoder", "vision_tower.vision_model.encoder."),
    ],
)
def test_another_tower(tmp_path, prefix):
    write(tmp_path, LLAVA, CONFIG)
    layer = fc.load(tmp_path, layer=2, prefix=prefix)
    assert (layer.d_ff, layer.gated, layer.activation.name) == (9, False, "gelu")


@pytest.mark.parametrize("prefix", ["text", "language_model", "language_model.model"])
def test_the_language_model_by_name(tmp_path, prefix):
    write(tmp_path, LLAVA, CONFIG)
    assert fc.load(tmp_path, prefix=prefix).d_ff == F


def test_a_prefix_that_is_not_there(tmp_path):
    write(tmp_path, LLAVA, CONFIG)
    sentence = (
        r"prefix is 'audio'; expected one of 'language_model\.model\.' \(text\), "
        r"'vision_tower\.vision_model\.encoder\.' \(vision\), the prefixes in"
    )
    with pytest.raises(ValueError, match=sentence):
        fc.load(tmp_path, prefix="audio")


def test_layers_of_all_towers_are_listed(tmp_path):
    infos = models.layers(write(tmp_path, LLAVA, CONFIG))
    found = [(info.tower, info.layer, info.model_type, info.activation) for info in infos]
    assert found == [
        *(("text", i, "mistral", "relu") for i in range(2)),
        *(("vision", i, "clip_vision_model", "gelu") for i in range(3)),
    ]


def test_parts_without_a_model_type_have_that_of_the_class(tmp_path):
    config = {"model_type": "llava", "text_config": {}, "vision_config": {}}
    write(tmp_path, LLAVA, config)
    assert fc.load(tmp_path).activation.name == "silu"
    assert fc.load(tmp_path, prefix="vision").activation.name == "quick_gelu"
    write(tmp_path, LLAVA, {"model_type": "llava"})
    assert fc.load(tmp_path, prefix="vision").activation.name == "quick_gelu"


def test_a_tower_whose_model_type_is_not_known(tmp_path):
    config = {**CONFIG, "vision_config": {"model_type": "mine"}}
    write(tmp_path, LLAVA, config)
    assert fc.load(tmp_path).d_ff == F
    assert {info.tower for info in models.layers(tmp_path)} == {"text"}
    with pytest.raises(
        ValueError, match=r"has model_type 'mine', which ffncore\.models does not know"
    ):
        fc.load(tmp_path, prefix="vision")


def test_two_towers_of_which_none_is_the_main_one(tmp_path):
    both = clip_tower("text_model.", 2) | clip_tower("vision_model.", 2, f=9)
    write(tmp_path, both, {"model_type": "clip", "vision_config": {"hidden_act": "gelu"}})
    sentence = (
        r"has 2 stacks of layers, and none of them is the main one; expected prefix= with one of "
        r"'text_model\.encoder\.' \(text\), 'vision_model\.encoder\.' \(vision\)"
    )
    with pytest.raises(ValueError, match=sentence):
        fc.load(tmp_path)
    assert fc.load(tmp_path, prefix="text_model").activation.name == "quick_gelu"
    assert fc.load(tmp_path, prefix="vision_model").activation.name == "gelu"


def test_encoder_and_decoder(tmp_path):
    both = tensors("model.encoder.layers.{}.", 2, "fc1", "fc2")
    both |= tensors("model.decoder.layers.{}.", 3, "fc1", "fc2", f=9)
    write(tmp_path, both, {"model_type": "whisper"})
    for layer in (1, 2):  # layer 2 is in the decoder alone
        with pytest.raises(ValueError, match=r"'model\.decoder\.' \(decoder\), 'model\.encoder\.'"):
            fc.load(tmp_path, layer=layer)
    assert fc.load(tmp_path, 1, prefix="encoder").d_ff == F
    assert fc.load(tmp_path, 1, prefix="model.decoder").d_ff == 9
    write(tmp_path, {n: t for n, t in both.items() if "decoder" in n}, {"model_type": "whisper"})
    assert fc.load(tmp_path).d_ff == 9


def test_encoder_and_decoder_have_their_own_keys(tmp_path):
    both = {}
    for side in ("encoder", "decoder"):
        start = f"{side}.layers.0.mlp."
        both |= {
            start + "gate_up_proj.weight": np.ones((4, 3)),
            start + "down_proj.weight": np.ones((3, 2)),
        }
    config = {"model_type": "dia", "encoder_config": {"hidden_act": "relu"}}
    write(tmp_path, both, {**config, "decoder_config": {"hidden_act": "gelu"}})
    for side, name in (("encoder", "relu"), ("decoder", "gelu")):
        assert fc.load(tmp_path, prefix=side).activation.name == name


def test_layers_that_predict_further_tokens_stand_beside_the_model(tmp_path):
    both = text_tower("model.language_model.", 2) | text_tower("mtp.", 1, f=9)
    write(tmp_path, both, {"model_type": "qwen3_5", "text_config": {"model_type": "qwen3_5_text"}})
    assert fc.load(tmp_path).d_ff == F
    assert fc.load(tmp_path, prefix="mtp").d_ff == 9


def test_towers_with_the_same_names(tmp_path):
    """In Voxtral's realtime model both towers are named as in llama."""
    both = text_tower("language_model.model.", 1) | text_tower("audio_tower.", 2, f=9)
    audio = {"model_type": "voxtral_realtime_encoder", "hidden_act": "gelu"}
    write(tmp_path, both, {"model_type": "voxtral_realtime", "audio_config": audio})
    assert fc.load(tmp_path).activation.name == "silu"
    layer = fc.load(tmp_path, layer=1, prefix="audio_tower")
    assert (layer.d_ff, layer.activation.name) == (9, "gelu")


@pytest.mark.parametrize("key", ["text_config", "llm_config", "thinker_config"])
def test_names_of_the_part_with_the_text_model(tmp_path, key):
    text = {"model_type": "qwen3", "hidden_act": "relu"}
    part = {"text_config": text} if key == "thinker_config" else text
    write(tmp_path, llama(), {"model_type": "mine", key: part})
    assert fc.load(tmp_path).activation.name == "relu"


def test_keys_of_flat_models(tmp_path):
    """Their text model has the outer keys, beside those of the other towers."""
    write(tmp_path, llama(), {"model_type": "qwen2_vl", "hidden_act": "relu", "vision_config": {}})
    assert fc.load(tmp_path).activation.name == "relu"


def test_a_part_that_is_no_object(tmp_path):
    write(tmp_path, llama(), {"model_type": "llava", "vision_config": 7})
    with pytest.raises(ValueError, match="has vision_config 7; expected an object"):
        fc.load(tmp_path)


@pytest.mark.parametrize(
    "prefix, tower",
    [
        ("", ""),
        ("model.", ""),
        ("model.language_model.", "text"),
        ("thinker.model.", "text"),
        ("thinker.audio_tower.", "audio"),
        ("vision_model.encoder.", "vision"),
        ("text_model.encoder.", "text"),
        ("model.encoder.", "encoder"),
        ("model.mtp.", "mtp"),
        ("talker.model.", "talker"),
    ],
)
def test_tower_of(prefix, tower):
    assert tower_of(prefix) == tower


def test_paths_into_config_json(tmp_path):
    whole = {"model_type": "mine", "a": {"b": [1, {"c": True}]}, "old": 3}
    config = Config(tmp_path / "config.json", whole)
    assert config.integer("a.b.0", 0) == 1
    assert config.flag("a.b.1.c")
    assert config.integer("new|old", 0) == 3
    assert not config.has("a.b.2")
    for key in ("a.b.2", "a.c", "a.b.1.c.d", "x.y"):
        with pytest.raises(ValueError, match=f"has no {key}"):
            config.integer(key, 0)
    with pytest.raises(ValueError, match="has old 3; expected true or false"):
        config.flag("new|old")


def test_every_tower_has_one_of_the_names_that_config_json_has():
    known = {"text", "vision", "audio", "encoder", "decoder"}
    assert set().union(*TOWERS.values()) <= known
