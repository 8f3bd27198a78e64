"""Checkpoints of many files: their index, and the files that a layer needs."""

import json

import numpy as np
import pytest
from support_checkpoints import (
    DEEPSEEK_V3,
    LLAMA,
    deepseek_v3,
    file_bytes,
    llama,
    shards,
    write,
    write_files,
)

import ffncore as fc
from ffncore import models
from ffncore.models.files import checkpoint, safetensors

INDEX = "model.safetensors.index.json"


def by_layer(tensors):
    """A folder with a file for each layer and an index."""
    files, weight_map = {}, {}
    for number in sorted({name.split(".")[2] for name in tensors}):
        file = f"layer-{number}.safetensors"
        part = {n: t for n, t in tensors.items() if n.split(".")[2] == number}
        files[file] = file_bytes(part)
        weight_map |= dict.fromkeys(part, file)
    return files, weight_map


@pytest.fixture
def folder(tmp_path):
    """A checkpoint of two layers in two files."""
    files, weight_map = by_layer(llama())
    write_files(tmp_path, files)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA), "utf-8")
    write_index(tmp_path, weight_map)
    return tmp_path


def write_index(folder, weight_map):
    text = weight_map if isinstance(weight_map, str) else json.dumps({"weight_map": weight_map})
    (folder / INDEX).write_text(text, "utf-8")


def read_index(folder):
    return json.loads((folder / INDEX).read_text("utf-8"))["weight_map"]


def loads_whole(folder, layer):
    weights = fc.load(folder, layer).weights
    start = f"model.layers.{layer}.mlp."
    return np.array_equal(weights.up, llama()[start + "up_proj.weight"])


def test_many_files(folder):
    assert loads_whole(folder, 0)
    assert loads_whole(folder, 1)
    assert loads_whole(folder / INDEX, 1)


UP = "model.layers.1.mlp.up_proj.weight"


def damaged_index(folder, name, value):
    write_index(folder, {**read_index(folder), name: value})


@pytest.mark.parametrize(
    "value, sentence",
    [
        ("layer-0.safetensors", rf"layer-0\.safetensors has no tensor {UP}; .*{INDEX} lists"),
        ("../layer-1.safetensors", r"expected a file in the same folder; .*up_proj"),
        ("/layer-1.safetensors", "expected a file in the same folder"),
        ("..", r"is a folder; expected a file; .*up_proj"),
        ("", "names ''; expected a file in the same folder"),
        ("config.json", r"config\.json is not a safetensors file.*; .*up_proj.* should be in it"),
        (None, rf"{INDEX} names the file None for {UP}; expected one name"),
        (7, "names the file 7 for"),
        (["layer-1.safetensors"], "names the file "),
    ],
)
def test_an_index_that_is_wrong_about_one_tensor(folder, value, sentence):
    damaged_index(folder, UP, value)
    with pytest.raises(ValueError, match=sentence):
        fc.load(folder, 1)
    assert loads_whole(folder, 0)
    good, bad = models.layers(folder)
    assert (good.problem, good.parameters) == (None, 72)
    assert "up_proj" in bad.problem


@pytest.mark.parametrize("value", ["layer-9.safetensors", "a\0b", "\ud800", "x" * 5000])
def test_a_file_that_is_not_there(folder, value):
    damaged_index(folder, UP, value)
    with pytest.raises(FileNotFoundError, match=rf"{INDEX} names .*, which does not exist; {UP}"):
        fc.load(folder, 1)
    assert loads_whole(folder, 0)
    assert "which does not exist" in models.layers(folder)[1].problem


def test_a_name_that_stands_twice_in_the_index(folder):
    pairs = [*read_index(folder).items(), (UP, "layer-0.safetensors")]
    text = ", ".join(f'"{name}": "{file}"' for name, file in pairs)
    write_index(folder, f'{{"weight_map": {{{text}}}}}')
    with pytest.raises(ValueError, match=f"names two files for {UP}; expected one name"):
        fc.load(folder, 1)
    assert loads_whole(folder, 0)


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("", "is not JSON"),
        ('{"weight_map": {"a"', "is not JSON"),
        ("[]", "is a JSON array; expected an object"),
        ('"model.safetensors"', "is a JSON string"),
        ("[" * 100_000, "is (nested too deeply|not JSON)"),
        ("{}", "has no object weight_map"),
        ('{"weight_map": null}', "has no object weight_map"),
        ('{"weight_map": []}', "has no object weight_map"),
        ('{"weight_map": {}, "weight_map": {}}', "has two entries weight_map"),
    ],
)
def test_no_index(folder, text, sentence):
    write_index(folder, text)
    for call in (fc.load, models.layers):
        with pytest.raises(ValueError, match=rf"{INDEX} {sentence}"):
            call(folder)


def test_an_index_that_cannot_be_read(folder):
    (folder / INDEX).write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match=f"{INDEX} is not in UTF-8"):
        fc.load(folder)
    (folder / INDEX).unlink()
    with pytest.raises(ValueError, match=r"has 2 \.safetensors files and no model\.safe"):
        fc.load(folder)
    (folder / INDEX).mkdir()
    with pytest.raises(ValueError, match=f"{INDEX} is a folder; expected a file"):
        fc.load(folder)


@pytest.mark.parametrize("damage", [b"", b"1234567", b"\xff" * 40, None], ids=repr)
def test_a_file_that_is_damaged_matters_to_its_layers(folder, damage):
    path = folder / "layer-1.safetensors"
    path.write_bytes(path.read_bytes()[:20] if damage is None else damage)
    with pytest.raises(ValueError, match=r"layer-1\.safetensors is not a safetensors file.*_proj"):
        fc.load(folder, 1)
    assert loads_whole(folder, 0)
    good, bad = models.layers(folder)
    assert good.problem is None
    assert "layer-1.safetensors is not a safetensors file" in bad.problem
    assert (bad.layer, bad.parameters, bad.nbytes) == (1, 0, 0)


def test_links(folder):
    target = folder / "layer-1.safetensors"
    target.rename(folder / "blob")
    target.symlink_to("blob")
    assert loads_whole(folder, 1)
    (folder / "blob").unlink()
    with pytest.raises(ValueError, match=r"layer-1\.safetensors is neither a file nor a link to"):
        fc.load(folder, 1)


def test_names_that_are_no_layer(tmp_path):
    more = {
        f"model.layers.{number}.mlp.up_proj.weight": np.ones((2, 2), "f4")
        for number in ("01", "-1", "1e3", "٣", "9" * 5000, "", "x")
    }
    write(tmp_path, {**llama(), **more, "layers": np.ones(1, "f4")}, LLAMA)
    assert [info.layer for info in models.layers(tmp_path)] == [0, 1]


def test_config_json_that_is_no_file(folder):
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    with pytest.raises(ValueError, match=r"config\.json is a folder; expected a file"):
        fc.load(folder)


# ---- counts of work: loading a layer does not depend on the number of other layers ---------------


@pytest.fixture
def work(monkeypatch):
    """Counts how often files are opened, names are grouped, and tensors are checked and read."""
    counts = dict.fromkeys(("files", "grouped", "entries", "reads"), 0)

    def counted(owner, name, key):
        right = getattr(owner, name)

        def call(self, *args):
            counts[key] += 1
            return right(self, *args)

        monkeypatch.setattr(owner, name, call)

    counted(safetensors.SafetensorsFile, "_read_header", "files")
    counted(checkpoint.Checkpoint, "_grouped", "grouped")
    counted(safetensors.SafetensorsFile, "_checked", "entries")
    counted(safetensors.SafetensorsFile, "read", "reads")
    return counts


@pytest.mark.parametrize("save", ["one", "shards"])
@pytest.mark.parametrize("layers", [2, 12])
def test_loading_a_layer_looks_at_that_layer(tmp_path, work, layers, save):
    tensors = deepseek_v3(layers)
    write_files(
        tmp_path,
        shards(tensors, 5) if save == "shards" else {"model.safetensors": file_bytes(tensors)},
    )
    (tmp_path / "config.json").write_text(json.dumps(DEEPSEEK_V3), "utf-8")
    fc.load(tmp_path, 1)
    each = len(tensors) // layers
    files = 5 if save == "shards" else 1
    assert work == {"files": files, "grouped": 1, "entries": each, "reads": each}


def test_inspecting_looks_once_at_each_tensor(tmp_path, work):
    tensors = deepseek_v3(6)
    write(tmp_path, tensors, DEEPSEEK_V3)
    assert len(models.layers(tmp_path)) == 6
    assert work == {"files": 1, "grouped": 1, "entries": len(tensors), "reads": 0}


def test_a_file_is_opened_where_a_tensor_in_it_is_needed(folder, work):
    fc.load(folder, 0)
    assert work["files"] == 1


# ---- prefixes of training tools


@pytest.mark.parametrize(
    "rename",
    [
        lambda n: "_orig_mod." + n,
        lambda n: "module._orig_mod." + n,
        lambda n: "base_model.model." + n,
        lambda n: n.replace("mlp.", "_orig_mod.mlp."),
        lambda n: n.replace("mlp.", "mlp._fsdp_wrapped_module.").replace(
            "model.l", "model.module.l"
        ),
    ],
)
@pytest.mark.parametrize("indexed", [False, True])
def test_prefixes_of_tools_are_ignored(tmp_path, rename, indexed):
    tensors = {rename(name): tensor for name, tensor in llama().items()}
    if indexed:
        write_files(tmp_path, shards(tensors))
        (tmp_path / "config.json").write_text(json.dumps(LLAMA), "utf-8")
    else:
        write(tmp_path, tensors, LLAMA)
    layer = fc.load(tmp_path, layer=1)
    assert np.array_equal(layer.weights.up, llama()["model.layers.1.mlp.up_proj.weight"])
    assert layer.name == "model.layers.1"
    assert {info.prefix for info in models.layers(tmp_path)} == {"model."}
    # Errors show the names in the file.
    name = rename("model.layers.1.mlp.up_proj.weight")
    write_files(
        tmp_path, {"model.safetensors": file_bytes(tensors | {name: np.ones((2, 2), "f4")})}
    )
    for path in (tmp_path / "model.safetensors",):
        with pytest.raises(ValueError, match=rf": {name} has shape \(2, 2\)"):
            fc.load(path, layer=1)


def test_two_tensors_that_differ_in_the_prefix_alone(tmp_path):
    tensors = llama()
    name = "model.layers.1.mlp.up_proj.weight"
    tensors["_orig_mod." + name] = tensors[name] + 1
    write(tmp_path, tensors, LLAMA)
    with pytest.raises(ValueError, match=r"has 2 stacks of layers, .*'_orig_mod\.model\.'"):
        fc.load(tmp_path, layer=1)
    assert np.array_equal(fc.load(tmp_path, 1, prefix="model.").weights.up, tensors[name])
