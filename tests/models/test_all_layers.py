"""fc.load_all: the layers of fc.load, from files opened once, one layer's memory at a time."""

import gc
import io
import json
import sys
import tracemalloc
import weakref

import numpy as np
import pytest
from support_checkpoints import (
    DEEPSEEK_V3,
    LLAMA,
    aligned_bytes,
    deepseek_v3,
    described,
    llama,
    packed,
    shards,
    write,
    write_files,
)

import ffncore as fc
from ffncore import models
from ffncore.models.files import safetensors

DENSE = (llama, LLAMA)
MIXTURE = (deepseek_v3, DEEPSEEK_V3)


def arrays(layer):
    return layer.parameters() if isinstance(layer, fc.MoE) else layer.weights.arrays()


def write_aligned(folder, tensors, config):
    write(folder, tensors, config)
    (folder / "model.safetensors").write_bytes(aligned_bytes(tensors))


@pytest.mark.parametrize("make, config", [DENSE, MIXTURE])
@pytest.mark.parametrize("dtype", [None, "float64", "float16"])
def test_the_layers_are_those_of_load(make, config, dtype, tmp_path):
    write(tmp_path, make(3), config)
    found = fc.load_all(tmp_path, dtype=dtype)
    assert len(found) == 3
    assert found.infos == models.layers(tmp_path)
    for number, layer in enumerate(found):
        expected = fc.load(tmp_path, number, dtype=dtype)
        assert repr(layer) == repr(expected)
        told = arrays(expected)
        for name, array in arrays(layer).items():
            assert array.dtype == told[name].dtype
            assert np.array_equal(array, told[name])
        x = np.ones((2, layer.d_model), layer.dtype)
        assert np.array_equal(layer(x), expected(x))
    assert number == 2
    assert list(found) == []


def test_options_are_those_of_load(tmp_path):
    write(tmp_path, llama(2), {"model_type": "other"})
    with pytest.raises(ValueError, match=r"model_type 'other', which ffncore.* does not know"):
        fc.load_all(tmp_path)
    layers = list(fc.load_all(tmp_path, family="llama", activation="relu", progress=False))
    assert [layer.activation.name for layer in layers] == ["relu", "relu"]


@pytest.mark.parametrize(
    "options, error, sentence",
    [
        ({"dtype": "int8"}, TypeError, "dtype is int8"),
        ({"activation": "swoosh"}, ValueError, "activation 'swoosh' is not known"),
        ({"family": "lama"}, ValueError, "family is 'lama'; expected one of"),
        ({"family": "bert"}, ValueError, "has no feed-forward layer that ffncore knows"),
        ({"prefix": "x."}, ValueError, r"prefix is 'x\.'; expected one of 'model\.', the prefixes"),
        ({"progress": 1}, TypeError, "progress is of type int"),
    ],
)
def test_wrong_arguments_are_refused_at_the_call(options, error, sentence, tmp_path):
    write(tmp_path, llama(), LLAMA)
    with pytest.raises(error, match=sentence):
        fc.load_all(tmp_path, **options)


def test_a_path_that_does_not_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist; expected a folder"):
        fc.load_all(tmp_path / "absent")


def test_several_models_in_one_file(tmp_path):
    tensors = llama(2)
    write(tmp_path, {**tensors, **{f"draft.{n}": t + 1 for n, t in tensors.items()}}, LLAMA)
    with pytest.raises(
        ValueError, match=r"has 2 stacks of layers, .* 'draft\.model\.', 'model\.'$"
    ):
        fc.load_all(tmp_path)
    first, _ = fc.load_all(tmp_path, prefix="draft.model.")
    assert np.array_equal(first.weights.up, tensors["model.layers.0.mlp.up_proj.weight"] + 1)


def test_a_damaged_layer_is_refused_and_the_next_one_is_read(tmp_path):
    tensors = llama(3)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    write(tmp_path, tensors, LLAMA)
    layers = fc.load_all(tmp_path)
    assert next(layers).name == "model.layers.0"
    with pytest.raises(ValueError, match=r"has no tensor model\.layers\.1\.mlp\.up_proj\.weight"):
        next(layers)
    assert next(layers).name == "model.layers.2"


# ---- memory and files ----------------------------------------------------------------------------


def test_each_file_is_opened_once(tmp_path, monkeypatch):
    files = shards(deepseek_v3(4), 5)
    write_files(tmp_path, files)
    (tmp_path / "config.json").write_text(json.dumps(DEEPSEEK_V3), "utf-8")
    opened = []
    right = safetensors.SafetensorsFile.__init__

    def counted(self, path, *args):
        opened.append(path.name)
        right(self, path, *args)

    monkeypatch.setattr(safetensors.SafetensorsFile, "__init__", counted)
    assert len(list(fc.load_all(tmp_path))) == 4
    assert sorted(opened) == sorted(name for name in files if name.endswith(".safetensors"))


def test_weights_are_views_of_the_file(tmp_path):
    write_aligned(tmp_path, llama(2, d=64, f=256), LLAMA)
    tracemalloc.start()
    try:
        layers = list(fc.load_all(tmp_path))
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < 100_000 < sum(layer.weights.up.nbytes for layer in layers)
    for layer in layers:
        assert not layer.weights.up.flags.writeable
        assert not layer.weights.up.flags.owndata
    # The files are closed; the mapping lives as long as the weights.
    gc.collect()
    assert (
        layers[1].weights.up[0, 0]
        == llama(2, d=64, f=256)["model.layers.1.mlp.up_proj.weight"][0, 0]
    )


@pytest.mark.parametrize("make, config", [DENSE, MIXTURE])
@pytest.mark.parametrize("dtype", [None, "float64"])
def test_one_layer_at_a_time(make, config, dtype, tmp_path):
    """Nothing but the caller holds a layer, and reading another one makes no second copy."""
    write_aligned(tmp_path, make(4, d=32, f=128), config)
    before = []
    tracemalloc.start()
    try:
        for layer in fc.load_all(tmp_path, dtype=dtype):
            assert [ref for ref in before if ref() is not None] == []
            size = sum(array.nbytes for array in arrays(layer).values())
            before += [weakref.ref(layer), *(weakref.ref(a) for a in arrays(layer).values())]
            del layer
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(before) >= 4 * 4
    assert most < 1.7 * size  # float64 router weights of one expert and small objects, no layer


def test_unaligned_tensors_are_read(tmp_path):
    header, data = described(llama(1))
    text = json.dumps(header).encode()
    text += b" " * ((3 - len(text)) % 8)  # the tensors begin at 8 + len(text)
    (tmp_path / "model.safetensors").write_bytes(packed(text, data))
    (tmp_path / "config.json").write_text(json.dumps(LLAMA), "utf-8")
    (layer,) = fc.load_all(tmp_path)
    assert layer.weights.up.flags.aligned
    assert np.array_equal(layer.weights.up, llama(1)["model.layers.0.mlp.up_proj.weight"])


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_files_are_closed(tmp_path, taken, monkeypatch):
    """At the end, and if the iterator is dropped before: an open file would give a warning."""
    closed = []
    right = safetensors.SafetensorsFile.close
    monkeypatch.setattr(
        safetensors.SafetensorsFile, "close", lambda self: (closed.append(1), right(self))
    )
    write(tmp_path, llama(2), LLAMA)
    layers = fc.load_all(tmp_path)
    for _ in range(taken):
        next(layers)
    assert closed == []
    del layers
    gc.collect()
    assert closed == [1]


def test_a_bar_on_a_terminal(tmp_path, monkeypatch):
    pytest.importorskip("tqdm")
    write(tmp_path, llama(2), LLAMA)
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    assert len(list(fc.load_all(tmp_path))) == 2
    assert file.getvalue() == ""
    assert len(list(fc.load_all(tmp_path, progress=True))) == 2
    assert "layers: 100%" in file.getvalue()
