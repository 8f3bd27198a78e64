"""SafetensorsWriter: its files have the bytes of the arrays, and other readers accept them."""

import json

import numpy as np
import pytest
from support_checkpoints import file_bytes

from ffncore.models.files.safetensors import SafetensorsFile
from ffncore.models.writing.safetensors_file import SafetensorsWriter

rng = np.random.default_rng(0)
ARRAYS = {
    "a": rng.standard_normal((3, 5)).astype("f4"),
    "b": rng.integers(0, 256, 7, dtype=np.uint8),
    "c": rng.standard_normal((2, 3, 4)).astype("f2"),
    'd "é': np.arange(3),
    "e": np.float64(1.5).reshape(()),
    "f": np.empty((0, 4), "i1"),
}


@pytest.fixture
def opened():
    """Opens files, and closes them after the test."""
    files = []

    def open_file(path):
        files.append(SafetensorsFile(path))
        return files[-1]

    yield open_file
    for file in files:
        file.close()


def written(path, arrays, metadata=None, more=()):
    expected = {name: array.ndim for name, array in arrays.items()} | dict.fromkeys(more, 3)
    with SafetensorsWriter(path, expected, metadata or {}) as writer:
        for name, array in arrays.items():
            writer.write(name, array)
    return path


@pytest.mark.parametrize("more", [(), [f"absent {i}" for i in range(1000)]], ids=["", "room"])
def test_what_is_written_is_read(tmp_path, more, opened):
    path = written(tmp_path / "a.safetensors", ARRAYS, {"key": "value"}, more)
    file = opened(path)
    assert list(file) == list(ARRAYS)
    assert file.metadata == {"key": "value"}
    for name, array in ARRAYS.items():
        entry = file.entry(name)
        assert (entry.shape, entry.dtype) == (array.shape, array.dtype.name)
        if array.size:
            assert np.array_equal(file.read(name), array)
    assert file.entry("a").begin % 64 == 0
    last = max(file.entry(name).end for name in ARRAYS)
    assert last == path.stat().st_size


def test_safetensors_reads_it(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    path = written(tmp_path / "a.safetensors", ARRAYS, {"key": "value"}, ["absent"])
    found = safetensors.load_file(path)
    assert found.keys() == ARRAYS.keys()
    assert all(np.array_equal(found[name], array) for name, array in ARRAYS.items())


def test_arrays_with_gaps(tmp_path, opened):
    wide = ARRAYS["a"][:, ::2].T
    file = opened(written(tmp_path / "a.safetensors", {"a": wide}))
    assert np.array_equal(file.read("a"), wide)


def test_a_copy_has_the_bytes_whatever_the_dtype(tmp_path, monkeypatch, opened):
    monkeypatch.setattr("ffncore.models.writing.safetensors_file._COPIED", 4)
    source = tmp_path / "source.safetensors"
    raw = rng.integers(0, 256, 10, dtype=np.uint8)
    half = np.float16([1, 2, 3])
    tensors = {"eight": ("F8_E4M3", raw), "bf": ("BF16", half), "half": half}
    source.write_bytes(file_bytes(tensors))
    read = opened(source)
    path = tmp_path / "copy.safetensors"
    with SafetensorsWriter(path, dict.fromkeys(tensors, 1), {}) as writer:
        for name in tensors:
            writer.copy(name, source, read.entry(name))
    file = opened(path)
    assert file.entry("eight").dtype == "F8_E4M3"
    assert file.entry("bf").dtype == "bfloat16"
    data = path.read_bytes()
    for name, array in (("eight", raw), ("bf", half), ("half", half)):
        entry = file.entry(name)
        assert data[entry.begin : entry.end] == array.tobytes()


def test_a_source_that_is_cut_off(tmp_path, opened):
    source = tmp_path / "source.safetensors"
    source.write_bytes(file_bytes({"a": ARRAYS["a"]}))
    entry = opened(source).entry("a")
    source.write_bytes(source.read_bytes()[:-1])
    with (
        pytest.raises(ValueError, match="was cut off while it was read"),
        SafetensorsWriter(tmp_path / "copy", {"a": 2}, {}) as writer,
    ):
        writer.copy("a", source, entry)


def test_no_metadata_and_no_tensors(tmp_path):
    data = written(tmp_path / "a.safetensors", {}).read_bytes()
    assert json.loads(data[8:]) == {}
