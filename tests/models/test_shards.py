"""Checkpoints in several files without an index: their names tell whether they are complete."""

import json

import numpy as np
import pytest
from support_checkpoints import LLAMA, file_bytes, llama, shards, write_files

import ffncore as fc
from ffncore import models
from ffncore.models.files.shards import INDEX
from ffncore.models.files.shards import shards as found

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path):
    """A checkpoint of two layers in three files, without an index."""
    files = shards(llama(), 3)
    del files[INDEX]
    write_files(tmp_path, files)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA), "utf-8")
    return tmp_path


def shard(number, count=3, stem="model"):
    return f"{stem}-{number:05}-of-{count:05}.safetensors"


def loads_whole(folder):
    return all(
        np.array_equal(
            fc.load(folder, i).weights.up, llama()[f"model.layers.{i}.mlp.up_proj.weight"]
        )
        for i in range(2)
    )


def test_all_shards_are_read(folder):
    assert loads_whole(folder)
    assert [info.problem for info in models.layers(folder)] == [None, None]


def test_one_shard_of_one(tmp_path):
    write_files(tmp_path, {shard(1, 1): file_bytes(llama())})
    (tmp_path / "config.json").write_text(json.dumps(LLAMA), "utf-8")
    assert loads_whole(tmp_path)


def test_an_index_and_a_single_file_come_first(folder):
    (folder / INDEX).write_text('{"weight_map": {}}', "utf-8")
    with pytest.raises(ValueError, match=f"{INDEX} has no feed-forward layer"):
        fc.load(folder)
    (folder / INDEX).unlink()
    (folder / shard(2)).unlink()
    (folder / "model.safetensors").write_bytes(file_bytes(llama()))
    assert loads_whole(folder)


def test_other_files_may_stand_beside_shards_named_model(folder):
    (folder / "adapter.safetensors").write_bytes(b"damaged")
    (folder / shard(1, 2, "consolidated")).write_bytes(b"damaged")
    assert loads_whole(folder)


def test_shards_of_another_name_stand_alone(folder):
    for number in range(1, 4):
        (folder / shard(number)).rename(folder / shard(number, stem="weights.fp32"))
    assert loads_whole(folder)
    (folder / "adapter.safetensors").write_bytes(file_bytes(llama(1)))
    with pytest.raises(
        ValueError, match=r"has 4 \.safetensors files and no model\.safetensors\.in"
    ):
        fc.load(folder)


def test_a_missing_shard_is_named(folder):
    (folder / shard(2)).unlink()
    sentence = rf"{folder.name} has 2 of 3 shards and no {INDEX}; expected {shard(2)}, too"
    for call in (fc.load, models.layers):
        with pytest.raises(FileNotFoundError, match=sentence):
            call(folder)
    (folder / shard(3)).unlink()
    with pytest.raises(FileNotFoundError, match="has 1 of 3 shards"):
        fc.load(folder)


def test_a_shard_is_read_alone_by_its_own_path(folder):
    (folder / shard(2)).unlink()
    with pytest.raises(ValueError, match=f"{shard(1)} has no tensor"):
        fc.load(folder / shard(1), 0)


@pytest.mark.parametrize(
    "names, sentence",
    [
        (
            [shard(1, 2), shard(2, 3)],
            f"has {shard(1, 2)} and {shard(2, 3)}; expected one number of",
        ),
        ([shard(1, 2), shard(1, 3)], "expected one number of shards"),
        ([shard(0), shard(1), shard(2)], rf"has {shard(0)}; expected a number from 1 to 3"),
        ([shard(1), shard(2), shard(4)], rf"has {shard(4)}; expected a number from 1 to 3"),
        ([shard(1, 2), "model-1-of-2.safetensors"], "expected each number once"),
        (
            [shard(1, 999_999_999)],
            r"has 1 of 999999999 shards .* expected model-00002-of-999999999",
        ),
        ([shard(1, 0)], "expected a number from 1 to 0"),
    ],
)
def test_names_that_are_not_consistent(tmp_path, names, sentence):
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        found(tmp_path, names)


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["a.safetensors"],
        ["model-1-of-x.safetensors"],
        ["model-1-of-\u0661.safetensors"],  # a digit, but not of ASCII
        [shard(1, 1, "weights"), "a.safetensors"],
        [shard(1, 1, "weights"), shard(1, 1, "others")],
    ],
)
def test_other_names_are_none_of_shards(tmp_path, names):
    assert found(tmp_path, names) == []


def test_shards_are_sorted_by_number(tmp_path):
    names = [f"model-{number}-of-11.safetensors" for number in range(1, 12)]
    assert found(tmp_path, sorted(names)) == names


def test_a_tensor_in_two_shards(folder):
    (folder / shard(2)).write_bytes(file_bytes({UP: np.ones((6, 4), np.float32)}))
    sentence = f"has {UP} in {shard(2)} and in {shard(3)}; expected it in one file, or a {INDEX}"
    with pytest.raises(ValueError, match=sentence):
        fc.load(folder)


def test_a_damaged_shard_is_named(folder):
    (folder / shard(2)).write_bytes(b"1234567")
    with pytest.raises(ValueError, match=rf"{shard(2)} is not a safetensors file: it has 7 bytes"):
        fc.load(folder)
