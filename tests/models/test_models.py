"""fc.load and fc.FFN: small checkpoints of every family against plain numpy."""

import json
import math

import numpy as np
import pytest

import ffncore as fc
from ffncore import models

safetensors = pytest.importorskip("safetensors.numpy")

D, F, LAYERS = 12, 40, 3
erf = np.vectorize(math.erf)


def gelu(v):
    return v / 2 * (1 + erf(v / np.sqrt(2)))


def gelu_tanh(v):
    return v / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (v + 0.044715 * v**3)))


def silu(v):
    return v / (1 + np.exp(-v))


def bert(rng, dtype=np.float32):
    tensors = {"bert.embeddings.word_embeddings.weight": rng.standard_normal((5, D))}
    for i in range(LAYERS):
        start = f"bert.encoder.layer.{i}."
        tensors[start + "intermediate.dense.weight"] = rng.standard_normal((F, D))
        tensors[start + "intermediate.dense.bias"] = rng.standard_normal(F)
        tensors[start + "output.dense.weight"] = rng.standard_normal((D, F))
        tensors[start + "output.dense.bias"] = rng.standard_normal(D)
        tensors[start + "attention.output.dense.weight"] = rng.standard_normal((D, D))
    return {n: t.astype(dtype) for n, t in tensors.items()}, {
        "model_type": "bert",
        "hidden_act": "gelu",
    }


def gpt2(rng, dtype=np.float32):
    tensors = {}
    for i in range(LAYERS):
        start = f"h.{i}.mlp."
        tensors[start + "c_fc.weight"] = rng.standard_normal((D, F))  # [in, out]
        tensors[start + "c_fc.bias"] = rng.standard_normal(F)
        tensors[start + "c_proj.weight"] = rng.standard_normal((F, D))
        tensors[start + "c_proj.bias"] = rng.standard_normal(D)
    return {n: t.astype(dtype) for n, t in tensors.items()}, {
        "model_type": "gpt2",
        "activation_function": "gelu_new",
    }


def llama(rng, dtype=np.float32):
    tensors = {}
    for i in range(LAYERS):
        start = f"model.layers.{i}.mlp."
        tensors[start + "gate_proj.weight"] = rng.standard_normal((F, D))
        tensors[start + "up_proj.weight"] = rng.standard_normal((F, D))
        tensors[start + "down_proj.weight"] = rng.standard_normal((D, F))
    return {n: t.astype(dtype) for n, t in tensors.items()}, {
        "model_type": "llama",
        "hidden_act": "silu",
    }


def formula(tensors, layer, x):
    """The layer in plain numpy, from the tensors by their names."""
    t = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    start = f"bert.encoder.layer.{layer}."
    if start + "output.dense.bias" in t:
        h = gelu(
            x @ t[start + "intermediate.dense.weight"].T + t[start + "intermediate.dense.bias"]
        )
        return h @ t[start + "output.dense.weight"].T + t[start + "output.dense.bias"]
    start = f"h.{layer}.mlp."
    if start + "c_fc.bias" in t:
        h = gelu_tanh(x @ t[start + "c_fc.weight"] + t[start + "c_fc.bias"])
        return h @ t[start + "c_proj.weight"] + t[start + "c_proj.bias"]
    start = f"model.layers.{layer}.mlp."
    h = silu(x @ t[start + "gate_proj.weight"].T) * (x @ t[start + "up_proj.weight"].T)
    return h @ t[start + "down_proj.weight"].T


def write(folder, tensors, config=None):
    safetensors.save_file(tensors, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


def write_shards(folder, tensors, config):
    """Two files and their index; every other tensor is in the second file."""
    names = sorted(tensors)
    files = {
        "model-00001-of-00002.safetensors": names[::2],
        "model-00002-of-00002.safetensors": names[1::2],
    }
    for file, part in files.items():
        safetensors.save_file({n: tensors[n] for n in part}, folder / file)
    index = {"metadata": {}, "weight_map": {n: file for file, part in files.items() for n in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


@pytest.mark.parametrize("make", [bert, gpt2, llama])
@pytest.mark.parametrize("save", [write, write_shards])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_families(make, save, dtype, rng, tmp_path):
    tensors, config = make(rng, dtype)
    save(tmp_path, tensors, config)
    x = rng.standard_normal((4, D)).astype(dtype)
    for number in range(LAYERS):
        layer = fc.load(tmp_path, layer=number)
        assert layer.dtype == dtype
        assert (layer.d_model, layer.d_ff, layer.gated) == (D, F, make is llama)
        expected = formula(tensors, number, x)
        error = np.abs(layer(x) - expected).max() / np.abs(expected).max()
        assert error < (1e-6 if dtype is np.float32 else 1e-14)


def test_gpt2_is_not_copied(rng, tmp_path):
    layer = fc.load(write(tmp_path, *gpt2(rng)), layer=1)
    assert layer.weights.up.T.flags.c_contiguous  # a view of the stored matrix


def test_single_file_and_its_config(rng, tmp_path):
    write(tmp_path, *bert(rng))
    by_file = fc.load(tmp_path / "model.safetensors", layer=2)
    assert np.array_equal(by_file.weights.up, fc.load(tmp_path, 2).weights.up)
    assert by_file.activation.name == "gelu"


def test_without_config(rng, tmp_path):
    tensors, _ = bert(rng)
    write(tmp_path, tensors)
    with pytest.raises(
        ValueError, match=r"config\.json, which would name the activation, does not"
    ):
        fc.load(tmp_path)
    assert fc.load(tmp_path, activation="relu").activation.name == "relu"


def test_conversion_is_explicit(rng, tmp_path):
    tensors, config = llama(rng)
    halves = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    write(tmp_path, halves, config)
    assert fc.load(tmp_path).dtype == np.float16
    layer = fc.load(tmp_path, dtype="float32")
    assert np.array_equal(
        layer.weights.up, halves["model.layers.0.mlp.up_proj.weight"].astype("f4")
    )
    assert fc.load(tmp_path, dtype="float64").dtype == np.float64
    assert fc.load(tmp_path, dtype="float16").dtype == np.float16
    with pytest.raises(TypeError, match="dtype is int8"):
        fc.load(tmp_path, dtype="int8")


def test_bfloat16(rng, tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    tensors, config = llama(rng)
    rounded = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in tensors.items()}
    write(tmp_path, rounded, config)
    assert fc.load(tmp_path).dtype == ml_dtypes.bfloat16
    layer = fc.load(tmp_path, layer=1, dtype="float32")
    assert np.array_equal(
        layer.weights.down, rounded["model.layers.1.mlp.down_proj.weight"].astype("f4")
    )


def test_optional_biases(rng, tmp_path):
    tensors, config = llama(rng)
    tensors["model.layers.0.mlp.down_proj.bias"] = rng.standard_normal(D).astype("f4")
    weights = fc.load(write(tmp_path, tensors, config)).weights
    assert weights.b_down is not None
    assert weights.b_up is None


def test_gemma_uses_its_own_key(rng, tmp_path):
    tensors, _ = llama(rng)
    text = {"model_type": "gemma3_text", "hidden_activation": "gelu_pytorch_tanh"}
    write(tmp_path, tensors, {"model_type": "gemma3", "text_config": text})
    assert fc.load(tmp_path).activation.name == "gelu_tanh"
    write(
        tmp_path, tensors, {"model_type": "gemma", "hidden_act": "gelu"}
    )  # the mistake of old files
    assert fc.load(tmp_path).activation.name == "gelu_tanh"


def test_unknown_model_type_is_refused(rng, tmp_path):
    tensors, _ = llama(rng)
    write(tmp_path, tensors, {"model_type": "lamma", "hidden_act": "relu2"})
    with pytest.raises(
        ValueError,
        match=r"model_type 'lamma', which ffncore\.models does not know; its tensors are named as "
        r"in llama; expected family='llama' if its layers are computed that way",
    ):
        fc.load(tmp_path)
    assert fc.load(tmp_path, family="llama").activation.name == "relu2"
    with pytest.raises(ValueError, match="family is 'lama'; expected one of bert"):
        fc.load(tmp_path, family="lama")


def test_two_models_in_one_file(rng, tmp_path):
    tensors, config = bert(rng)
    tensors |= {"other." + name: tensor + 1 for name, tensor in tensors.items()}
    write(tmp_path, tensors, config)
    sentence = (
        r"has 2 stacks of layers, .*; expected prefix= with one of 'bert\.', 'other\.bert\.'$"
    )
    with pytest.raises(ValueError, match=sentence):
        fc.load(tmp_path, layer=1)
    with pytest.raises(ValueError, match=r"prefix is .brt.; expected one of .*, .other\.bert\.."):
        fc.load(tmp_path, layer=1, prefix="brt")
    up = fc.load(tmp_path, layer=1, prefix="bert").weights.up  # the whole prefix counts first
    assert np.array_equal(up, tensors["bert.encoder.layer.1.intermediate.dense.weight"])
    up = fc.load(tmp_path, layer=1, prefix="other.bert.").weights.up
    assert np.array_equal(up, tensors["other.bert.encoder.layer.1.intermediate.dense.weight"])


def test_errors(rng, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist; expected a folder"):
        fc.load(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"has 0 \.safetensors files"):
        fc.load(tmp_path)
    tensors, config = bert(rng)
    write(tmp_path, tensors, config)
    with pytest.raises(ValueError, match=r"layer 7 is not in .*; expected one of 0-2"):
        fc.load(tmp_path, layer=7)
    write(tmp_path, {"head.weight": np.ones((2, 2), "f4")}, config)
    with pytest.raises(ValueError, match=r"layer that ffncore knows; .* named as in bert$"):
        fc.load(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"layer that ffncore knows; .* named as in \w+, "):
        fc.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no checkpoint at all")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        fc.load(tmp_path)
    tensors["bert.encoder.layer.1.output.dense.weight"] = np.ones((D, F + 1), "f4")
    write(tmp_path, tensors, config)
    with pytest.raises(
        ValueError,
        match=r"safetensors: bert\..*\.output\.dense\.weight has shape \(12, 41\)",
    ):
        fc.load(tmp_path, layer=1)


def test_sentences_of_a_first_try(rng, tmp_path, monkeypatch):
    with pytest.raises(TypeError, match="layer is of type str; expected an integer"):
        fc.load(tmp_path, "1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="a model name on a hub is not a path"):
        fc.load("meta-llama/Llama-3.1-8B")
    with pytest.raises(FileNotFoundError) as caught:
        fc.load("folder/model.safetensors")
    assert "hub" not in str(caught.value)
    with pytest.raises(FileNotFoundError) as caught:
        fc.load("./google/gemma-2-2b")
    assert "hub" not in str(caught.value)
    up, down = rng.standard_normal((6, 4)), rng.standard_normal((4, 6))
    with pytest.raises(ValueError, match=r"expected \(4, 6\) .* \(transposed\? pass down.T\)"):
        fc.FFNWeights(up=up, down=down.T)


def test_index_that_leads_elsewhere(rng, tmp_path):
    write_shards(tmp_path, *bert(rng))
    index = tmp_path / "model.safetensors.index.json"
    good = index.read_text("utf-8")
    index.write_text(good.replace("model-00001", "../model-00001"), "utf-8")
    with pytest.raises(ValueError, match="expected a file in the same folder"):
        fc.load(tmp_path)
    index.write_text(good.replace("00002-of", "00003-of"), "utf-8")
    with pytest.raises(FileNotFoundError, match="which does not exist"):
        fc.load(tmp_path)


def test_layers(rng, tmp_path):
    write(tmp_path, *llama(rng, np.float16))
    found = models.layers(tmp_path)
    assert [info.layer for info in found] == [0, 1, 2]
    info = found[0]
    assert (info.d_model, info.d_ff, info.activation, info.dtype) == (D, F, "silu", "float16")
    assert info.parameters == 3 * D * F
    assert info.gated
    assert info.ratio == F / D
    # A layer without a gate and with that ratio has the same number of parameters.
    assert 2 * D * (info.matched_ratio * D) == info.parameters


def test_layer_object(rng, tmp_path):
    layer = fc.load(write(tmp_path, *llama(rng)), layer=1)
    assert repr(layer) == "FFN(model.layers.1: 12 -> 40 -> 12, silu, gated, float32)"
    x, grad_y = rng.standard_normal((2, 5, D)).astype("f4")
    packed = layer.packed()
    assert "packed" in repr(packed)
    assert packed.packed() is packed
    out = np.empty_like(x)
    assert layer(x, out=out) is out
    assert np.array_equal(packed(x), out)
    y, saved = layer.forward(x, save="input")
    assert np.array_equal(y, out)
    grads = layer.backward(grad_y, saved, needs=("x", "down"))
    expected = fc.reference.ffn_backward(grad_y, x, layer.weights, activation="silu")
    np.testing.assert_allclose(
        grads.x, expected["x"], rtol=0, atol=1e-5 * np.abs(expected["x"]).max()
    )
    assert grads.weights.up is None


def test_every_family_row_is_whole():
    seen = [model_type for row in models.FAMILIES for model_type in row.model_types]
    assert len(seen) == len(set(seen))
    for row in models.FAMILIES:
        for layer in row.layers:
            assert layer.count("{}") == 1
            assert layer.endswith(".")
        assert row.forms
