"""Quantised safetensors files: names, metadata, parts, and tensors that stay as they are."""

import json

import numpy as np
import pytest
from support_checkpoints import LLAMA, file_bytes, llama, shards, write, write_files

import ffncore as fc
from ffncore.models.files.checkpoint import Checkpoint
from ffncore.models.files.safetensors import SafetensorsFile
from ffncore.models.writing.quantize import quantize_checkpoint

UP = "model.layers.0.mlp.up_proj.weight"


def contents(path):
    """The tensors of a file with what the metadata tells of them, and the whole metadata."""
    file = SafetensorsFile(path)
    try:
        arrays = {name: file.read(name) for name in file}
        return arrays, file.metadata
    finally:
        file.close()


def read_back(arrays, metadata, name, format):
    """The QuantizedTensor of a matrix, as a reader of the description makes it."""
    start = f"{name}.{format}"
    told = json.loads(metadata[start])
    assert told["format"] == format
    if start in arrays:
        assert arrays[start].dtype == np.uint8
        return fc.QuantizedTensor.from_bytes(format, arrays[start], told["shape"])
    parts = {n.removeprefix(start + "."): a for n, a in arrays.items() if n.startswith(start + ".")}
    return fc.QuantizedTensor.from_parts(format, told["shape"], **parts)


@pytest.mark.parametrize("format", [n for n, info in fc.formats().items() if info.can_quantize])
def test_every_format(tmp_path, format):
    tensors = llama(1, 256, 512)
    write(tmp_path, {**tensors, "other": np.arange(5)}, LLAMA)
    quantize_checkpoint(tmp_path, tmp_path / "out.safetensors", format)
    arrays, metadata = contents(tmp_path / "out.safetensors")
    assert np.array_equal(arrays.pop("other"), np.arange(5))
    assert metadata.keys() == {f"{name}.{format}" for name in tensors}
    for name, w in tensors.items():
        assert read_back(arrays, metadata, name, format) == fc.quantize(w, format)
    assert all(name.startswith(tuple(metadata)) for name in arrays)


def test_other_tensors_and_the_metadata_are_copied(tmp_path):
    tensors = llama(1, 256, 256)
    others = {"a": np.arange(7), "b": ("F8_E4M3", np.arange(5, dtype=np.uint8))}
    others["bias"] = np.float16([1.5, 2])
    data = file_bytes({**others, **tensors})
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    body = data[8 + int.from_bytes(data[:8], "little") :]
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + body)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    quantize_checkpoint(tmp_path, tmp_path / "out.safetensors", {"up": "q8_0"})
    before = SafetensorsFile(tmp_path / "model.safetensors")
    after = SafetensorsFile(tmp_path / "out.safetensors")
    assert after.metadata.pop("format") == "pt"
    assert after.metadata.keys() == {f"{UP}.q8_0"}
    assert set(after) == set(before) - {UP} | {f"{UP}.q8_0"}
    for name in set(before) - {UP}:
        bytes_of = []
        for file in (before, after):
            entry = file.entry(name)
            told = entry.dtype, entry.shape
            bytes_of.append((told, file.path.read_bytes()[entry.begin : entry.end]))
        assert bytes_of[0] == bytes_of[1]
    before.close()
    after.close()


def test_stacked_experts_have_one_tensor(tmp_path):
    rng = np.random.default_rng(0)
    start = "model.layers.0.mlp."
    shapes = {"gate_up_proj": (3, 256, 64), "down_proj": (3, 64, 128)}
    tensors = {
        f"{start}experts.{name}": rng.standard_normal(shape).astype("f4")
        for name, shape in shapes.items()
    }
    tensors[f"{start}gate.weight"] = rng.standard_normal((3, 64)).astype("f4")
    config = {"model_type": "qwen3_moe", "hidden_act": "silu", "num_experts_per_tok": 2}
    write(tmp_path, tensors, {**config, "norm_topk_prob": True})
    quantize_checkpoint(tmp_path, tmp_path / "out.safetensors", "q8_0")
    arrays, metadata = contents(tmp_path / "out.safetensors")
    assert f"{start}gate.weight" in arrays
    for name in shapes:
        full = f"{start}experts.{name}"
        expected = fc.quantize(tensors[full], "q8_0")
        assert expected.shape == shapes[name]
        assert read_back(arrays, metadata, full, "q8_0") == expected


def test_outputs_are_rows_also_where_they_were_columns(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {
        f"h.0.mlp.{name}": rng.standard_normal(shape).astype("f4")
        for name, shape in (
            *(("c_fc.weight", (64, 96)), ("c_proj.weight", (96, 64))),
            *(("c_fc.bias", (96,)), ("c_proj.bias", (64,))),
        )
    }
    write(tmp_path, tensors, {"model_type": "gpt2", "activation_function": "gelu_new"})
    quantize_checkpoint(tmp_path, tmp_path / "out.safetensors", "q8_0")
    arrays, metadata = contents(tmp_path / "out.safetensors")
    q = read_back(arrays, metadata, "h.0.mlp.c_fc.weight", "q8_0")
    assert q.shape == (96, 64)
    assert q == fc.quantize(tensors["h.0.mlp.c_fc.weight"].T, "q8_0")
    assert np.array_equal(arrays["h.0.mlp.c_fc.bias"], tensors["h.0.mlp.c_fc.bias"])


@pytest.mark.parametrize("indexed", [True, False])
def test_shards_keep_their_names(tmp_path, indexed):
    source = tmp_path / "in"
    source.mkdir()
    files = shards({**llama(2, 256, 256), "other": np.arange(3)}, 3)
    index = files.pop("model.safetensors.index.json")
    write_files(source, files)
    if indexed:
        write_files(source, {"model.safetensors.index.json": index})
    for name in ("config.json", "tokenizer.json"):
        (source / name).write_text(json.dumps(LLAMA))
    for name in ("merges.txt", "tokenizer.model", "chat_template.jinja", "pytorch_model.bin"):
        (source / name).write_bytes(name.encode())
    (source / "folder.json").mkdir()
    out = tmp_path / "out"
    quantize_checkpoint(source, out, "q4_k")
    beside = {"config.json", "tokenizer.json", "merges.txt", "tokenizer.model"}
    expected = {*files, *beside, "chat_template.jinja"}
    expected |= {"model.safetensors.index.json"} if indexed else set()
    assert {path.name for path in out.iterdir()} == expected
    assert (out / "merges.txt").read_bytes() == b"merges.txt"
    with Checkpoint(out) as checkpoint:
        names = {n if n == "other" else f"{n}.q4_k" for n in (*llama(2), "other")}
        assert set(checkpoint) == names
        for name in names - {"other"}:
            file, stored = checkpoint.stored(name)
            assert json.loads(file.metadata[stored])["shape"] == [256, 256]
    if indexed:
        told = json.loads((out / "model.safetensors.index.json").read_text())
        sizes = sum(path.stat().st_size for path in out.glob("*.safetensors"))
        assert told["metadata"]["total_size"] == sizes


def test_shards_become_one_file(tmp_path):
    write_files(tmp_path, shards(llama(2, 256, 256), 3))
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    quantize_checkpoint(tmp_path, tmp_path / "one.safetensors", "tq2_0")
    arrays, _ = contents(tmp_path / "one.safetensors")
    assert arrays.keys() == {f"{name}.tq2_0" for name in llama(2)}


def test_prefixes_of_training_tools_stay(tmp_path):
    tensors = {f"_orig_mod.{name}": w for name, w in llama(1, 256, 256).items()}
    write(tmp_path, tensors, LLAMA)
    quantize_checkpoint(tmp_path, tmp_path / "out.safetensors", "q4_0")
    arrays, _ = contents(tmp_path / "out.safetensors")
    assert arrays.keys() == {f"{name}.q4_0" for name in tensors}
