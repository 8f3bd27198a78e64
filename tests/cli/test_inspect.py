"""`python -m ffncore inspect`: its table and its JSON objects."""

import json

import numpy as np
import pytest
from support_checkpoints import DEEPSEEK_V3, LLAMA, deepseek_v3, llama, write

import ffncore as fc
from ffncore import models
from ffncore.__main__ import main
from ffncore.cli.inspect import described, inspection
from ffncore.layers.around import Around

HEAD = "layers kind d_model d_ff activation dtype parameters ratio matched"


def mixtral(layers, experts=3):
    shapes = {"w1": (6, 4), "w2": (4, 6), "w3": (6, 4)}
    tensors = {}
    for layer in range(layers):
        start = f"model.layers.{layer}.block_sparse_moe."
        tensors[start + "gate.weight"] = np.ones((experts, 4), np.float32)
        for e in range(experts):
            for name, shape in shapes.items():
                tensors[f"{start}experts.{e}.{name}.weight"] = np.ones(shape, np.float32)
    return tensors


MIXTRAL = {"model_type": "mixtral", "hidden_act": "silu", "num_experts_per_tok": 2}


def table(folder, capsys, *options):
    assert main(["inspect", str(folder), *options]) == 0
    return capsys.readouterr().out.splitlines()


def test_dense_layers(tmp_path, capsys):
    write(tmp_path, llama(3, 8, 24), LLAMA)
    lines = table(tmp_path, capsys)
    assert lines[0] == "model_type llama, family llama, prefix model."
    assert " ".join(lines[1].split()) == HEAD
    assert " ".join(lines[2].split()) == "0-2 dense, gated 8 24 silu float32 576 3 4.5"
    assert lines[3:] == [
        "around: a norm of its input",
        "",
        "3 layers, 1,728 parameters in them",
        "ratio is d_ff / d_model; matched is that of a plain layer with as many parameters",
    ]


def test_a_layer_whose_activation_is_unknown(tmp_path, capsys):
    tensors = {
        "encoder.layer.0.intermediate.dense.weight": np.zeros((24, 8), "f4"),
        "encoder.layer.0.output.dense.weight": np.zeros((8, 24), "f4"),
        "encoder.layer.0.intermediate.dense.bias": np.zeros(24, "f4"),
        "encoder.layer.0.output.dense.bias": np.zeros(8, "f4"),
    }
    write(tmp_path, tensors, {"model_type": "ernie", "hidden_act": "squareplus"})
    lines = table(tmp_path, capsys)
    assert lines[0] == "model_type ernie, family bert"
    assert lines[2].split()[:7] == ["0", "dense,", "plain", "8", "24", "squareplus", "float32"]
    with pytest.raises(ValueError, match="activation 'squareplus' is not known"):
        fc.load(tmp_path)
    assert fc.load(tmp_path, activation="relu").activation.name == "relu"


def test_it_says_how_to_load_a_layer_without_an_activation(tmp_path, capsys):
    write(tmp_path, llama(1), {"model_type": "other"})
    lines = table(tmp_path, capsys, "--family", "llama")
    assert lines[2].split()[5] == "unknown"
    assert lines[-3].startswith("1 layer, ")
    assert (
        lines[-2] == "activation unknown: config.json does not name it; pass activation= to fc.load"
    )


def test_mixtures(tmp_path, capsys):
    write(tmp_path, mixtral(2), MIXTRAL)
    row = table(tmp_path, capsys)[2].split()
    assert row[:5] == ["0-1", "mixture", "of", "3,", "gated"]
    assert row[5:10] == ["4", "6", "silu", "float32", "228"]


def test_numbers_are_aligned_at_their_ends(tmp_path, capsys):
    dense = {n.replace("layers.0", "layers.1"): t for n, t in llama(1, f=24).items()}
    write(tmp_path, {**deepseek_v3(1), **dense}, DEEPSEEK_V3)
    head, *rows = table(tmp_path, capsys)[1:4]
    assert [row.split()[1] for row in rows] == ["mixture", "dense,"]
    for column in ("d_model", "d_ff", "parameters", "ratio"):
        end = head.index(column) + len(column)
        assert all(row[end - 1].isdigit() and row[end] == " " for row in rows)


def test_damaged_layers(tmp_path, capsys):
    """Layers that can be read are listed, and the others with their problem."""
    tensors = llama(4)
    del tensors["model.layers.2.mlp.up_proj.weight"]
    tensors["model.layers.3.mlp.up_proj.weight"] = np.ones((6, 5), np.float32)
    tensors |= {f"\x1b[31m.{n}": t for n, t in llama(1).items()}
    write(tmp_path, tensors, {"model_type": "llama"})
    lines = table(tmp_path, capsys)
    assert lines[0] == "model_type llama, family llama, prefix \\x1b[31m.model."
    assert lines[2].split()[:7] == ["0", "dense,", "gated", "4", "6", "silu", "float32"]
    assert lines[5] == "model_type llama, family llama, prefix model."
    assert lines[7].split()[:7] == ["0-1", "dense,", "gated", "4", "6", "silu", "float32"]
    assert lines[10] == "3 layers, 216 parameters in them"
    file = tmp_path / "model.safetensors"
    assert lines[12:] == [
        f"2  not read: {file} has no tensor model.layers.2.mlp.up_proj.weight; expected one",
        f"3  not read: {file}: model.layers.3.mlp.up_proj.weight has shape (6, 5); expected [f, d] "
        "with f = 6, d = 4",
    ]
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert main(["inspect", str(tmp_path)]) == 2
    assert "it has 0 bytes" in capsys.readouterr().err


def test_nothing(tmp_path, capsys):
    write(tmp_path, llama(1), {"model_type": "llama"})
    assert main(["inspect", str(tmp_path), "--family", "bert"]) == 0
    told = capsys.readouterr().out
    assert told.endswith("that ffncore knows; expected tensors named as in bert\n")
    assert main(["inspect", str(tmp_path), "--family", "bert", "--json"]) == 0
    told = capsys.readouterr()
    assert told.out == "[]\n"
    assert told.err.endswith("expected tensors named as in bert\n")
    assert main(["inspect", str(tmp_path / "absent")]) == 2
    assert "does not exist" in capsys.readouterr().err


# ---- JSON


def test_json_of_a_dense_layer(tmp_path, capsys):
    write(tmp_path, llama(2, 8, 24), LLAMA)
    assert main(["inspect", str(tmp_path), "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    keys = {
        "layer": 0,
        "prefix": "model.",
        "kind": "dense",
        "gated": True,
        "n_experts": None,
        "d_model": 8,
        "d_ff": 24,
        "activation": "silu",
        "format": "float32",
        "dtype": "float32",
        "packing": None,
        "parameters": 576,
        "nbytes": 2304,
        "ratio": 3.0,
        "matched_ratio": 4.5,
        "family": "llama",
        "model_type": "llama",
        "problem": None,
    }
    assert first.items() >= keys.items()
    assert second == {**first, "layer": 1}


def test_json_of_a_mixture(tmp_path, capsys):
    write(tmp_path, mixtral(1), MIXTRAL)
    assert main(["inspect", str(tmp_path), "--json"]) == 0
    (layer,) = json.loads(capsys.readouterr().out)
    assert (layer["kind"], layer["n_experts"], layer["parameters"]) == ("mixture", 3, 228)


def test_json_of_what_cannot_be_read(tmp_path, capsys):
    tensors = llama(2)
    del tensors["model.layers.0.mlp.gate_proj.weight"]
    start = "model.layers.1.mlp.up_proj"
    del tensors[f"{start}.weight"]
    tensors |= {f"{start}.qweight": np.ones((4, 6), np.int32)}
    tensors |= {f"{start}.g_idx": np.ones(4, np.int32)}
    write(tmp_path, {f"\x1b{name}": t for name, t in tensors.items()}, LLAMA)
    assert main(["inspect", str(tmp_path), "--json"]) == 0
    text = capsys.readouterr().out
    assert text.isascii()
    assert text.replace("\n", "").isprintable()
    damaged, packed = json.loads(text)
    assert "gate_proj.weight'; expected one" in damaged["problem"]
    assert (damaged["parameters"], damaged["d_ff"], damaged["packing"]) == (None, None, None)
    assert (packed["format"], packed["packing"], packed["dtype"]) == ("GPTQ", "GPTQ", None)
    assert "is quantised by GPTQ" in packed["problem"]


# ---- what a LayerInfo tells besides


def more(layer, **options):
    told = ("model.", layer, 8, 24, "silu", "float32", 576, True)
    return models.LayerInfo(models.FAMILIES[0], *told, **options)


def test_what_stands_around_layers():
    pre, post = Around("pre", True, 0.5), Around("post")
    infos = [more(0, tower="text", around=pre), more(1, tower="text", around=pre)]
    lines = inspection(infos)
    assert lines[0] == f"family {models.FAMILIES[0].name}, tower text, prefix model."
    assert lines[3] == f"around: {pre}"
    lines = inspection([*infos, more(2, tower="text", around=post, parts=("mlp", "b"))])
    assert lines[3:6] == [f"around 0-1: {pre}", f"around 2: {post}", "parts 2: mlp, b"]
    told = {"norms": "pre", "parallel": True, "residual_multiplier": 0.5, "notes": ()}
    assert described(infos[0])["around"] == told
    assert described(infos[0])["tower"] == "text"


def test_a_shared_expert():
    lines = inspection([more(0, n_experts=8, shared_ff=48)])
    assert " ".join(lines[2].split()).startswith("0 mixture of 8, gated, shared 48 8 24 silu")
    assert described(more(0, n_experts=8, shared_ff=48))["shared_ff"] == 48


def test_lines_of_large_models_fit_into_100_columns():
    told = ("model.", 0, 16384, 53248, "gelu_tanh", "bfloat16", 2_617_245_696, True)
    infos = [models.LayerInfo(models.FAMILIES[0], *told)]
    told = ("model.", 3, 7168, 2048, "silu", "bfloat16", 11_320_164_352, True, 256)
    infos += [models.LayerInfo(models.FAMILIES[0], *told[:1], n, *told[2:]) for n in range(3, 61)]
    assert max(map(len, inspection(infos))) <= 100
