"""The reader of safetensors files: every kind of damage, and the undamaged tensors of the file."""

import json
import os
import sys

import numpy as np
import pytest
from support_checkpoints import aligned_bytes, described, file_bytes, packed

from ffncore.models.files.safetensors import MOST_HEADER_BYTES, SafetensorsFile

TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(4, dtype=np.float64),
    "c": np.arange(2, dtype=np.float16),
}


@pytest.fixture
def file(tmp_path):
    """Write bytes to a file and open it; it is closed at the end of the with block."""
    opened = []

    def open_bytes(data):
        path = tmp_path / "model.safetensors"
        path.write_bytes(data)
        opened.append(SafetensorsFile(path))
        return opened[-1]

    yield open_bytes
    for one in opened:
        one.close()


def test_reads_what_the_library_writes(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "model.safetensors"
    numpy.save_file(TENSORS, path, metadata={"format": "pt"})
    found = SafetensorsFile(path)
    assert sorted(found) == ["a", "b", "c"]
    for name, tensor in TENSORS.items():
        read = found.read(name)
        assert read.dtype == tensor.dtype
        assert np.array_equal(read, tensor)
    assert "__metadata__" not in found
    found.close()


def test_an_array_is_the_callers_own(file):
    found = file(file_bytes(TENSORS))
    a = found.read("a")
    found.close()
    a += 1  # writable, and valid after the file is closed
    assert np.array_equal(a, TENSORS["a"] + 1)


def test_bfloat16(file):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    tensor = np.arange(3).astype(ml_dtypes.bfloat16)
    read = file(file_bytes({"a": tensor})).read("a")
    assert read.dtype == tensor.dtype
    assert np.array_equal(read, tensor)


def test_bfloat16_needs_ml_dtypes(file, monkeypatch):
    header = {"a": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}
    found = file(packed(header, b"\0\0"))
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert found.entry("a").dtype == "bfloat16"
    with pytest.raises(ImportError, match="needs ml_dtypes; pip install ml_dtypes brings it"):
        found.read("a")


@pytest.mark.parametrize(
    "data, sentence",
    [
        (b"", "it has 0 bytes; expected at least 8"),
        (b"1234567", "it has 7 bytes"),
        (b"no checkpoint at all", "its header would have 7738140083766718318 bytes; expected at"),
        (file_bytes(TENSORS)[:100], "or is cut off: its header would have"),
        ((MOST_HEADER_BYTES + 1).to_bytes(8, "little"), "expected at most 0"),
        (packed(b"", b""), "its header is not JSON"),
        (packed(b"{", b""), "its header is not JSON"),
        (packed(b"\xff{}", b""), "its header is not in UTF-8"),
        (packed(b"[" * 100_000, b""), "its header is nested too deeply|not JSON"),
        (packed(b'{"a": ' * 100_000, b""), "its header is nested too deeply|not JSON"),
        (packed(b"[]", b""), "its header is a JSON array; expected an object"),
        (packed(b"null", b""), "is a JSON null"),
        (packed(b"3.5", b""), "is a JSON number"),
        (packed(b'{"a": ' + b"9" * 5000 + b"}", b""), "its header is not JSON"),
    ],
)
def test_no_file(file, data, sentence):
    with pytest.raises(ValueError, match=rf"model\.safetensors is not a safetensors.*{sentence}"):
        file(data)


def test_no_file_at_all(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors does not exist"):
        SafetensorsFile(tmp_path / "gone.safetensors")
    with pytest.raises(ValueError, match="is a folder; expected a file"):
        SafetensorsFile(tmp_path)
    link = tmp_path / "link.safetensors"
    link.symlink_to(tmp_path / "gone.safetensors")
    with pytest.raises(ValueError, match="is neither a file nor a link to a file"):
        SafetensorsFile(link)
    os.mkfifo(tmp_path / "pipe.safetensors")  # opening a pipe would wait for a writer
    with pytest.raises(ValueError, match="is neither a file"):
        SafetensorsFile(tmp_path / "pipe.safetensors")


def test_a_link_to_a_file_is_followed(tmp_path):
    (tmp_path / "blob").write_bytes(file_bytes(TENSORS))
    (tmp_path / "model.safetensors").symlink_to("blob")  # as in the cache of a hub
    found = SafetensorsFile(tmp_path / "model.safetensors")
    assert np.array_equal(found.read("a"), TENSORS["a"])
    found.close()


def entry(dtype="F64", shape=(4,), offsets=(24, 56), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


@pytest.mark.parametrize(
    "described_as, sentence",
    [
        (entry(offsets=(24, 10_000)), "has the offsets 24 and 10000; expected them within 60"),
        (entry(offsets=(56, 24)), "has the offsets 56 and 24"),
        (entry(offsets=(24, 55)), "has 31 bytes; expected as many as F64 of shape"),
        (entry(shape=(5,)), r"has 32 bytes; expected as many as F64 of shape \(5,\)"),
        (entry(shape=(2, 10**30)), "has 32 bytes"),
        (entry(dtype="F32"), "has 32 bytes; expected as many as F32"),
        (entry(dtype="F33"), "has the unknown dtype 'F33'"),
        (entry(dtype=""), "has the unknown dtype ''"),
        (entry(shape=[1] * 33, dtype="U8"), "has 33 dimensions; expected at most 32"),
        (entry(shape=(-4,)), "is not described"),
        (entry(shape=(4.0,)), "is not described"),
        (entry(shape=(True,)), "is not described"),
        (entry(shape=("4",)), "is not described"),
        (entry(shape=([4],)), "is not described"),
        (entry(offsets=(24,)), "is not described"),
        (entry(offsets=(24, 56, 60)), "is not described"),
        (entry(offsets=(-8, 24)), "is not described"),
        (entry(offsets=(24.0, 56.0)), "is not described"),
        (entry(offsets=(None, None)), "is not described"),
        (entry(dtype=["F64"]), "is not described"),
        ({**entry(), "shape": 4}, "is not described"),
        ({**entry(), "shape": {"4": 1}}, "is not described"),
        ({**entry(), "data_offsets": 24}, "is not described"),
        ({**entry(), "dtype": None}, "is not described|unknown dtype None"),
        ({"dtype": "F64", "shape": [4]}, "is not described"),
        ({}, "is not described"),
        ([], "is not described"),
        ("F64", "is not described"),
        (None, "is not described"),
        (7, "is not described"),
    ],
)
def test_a_damaged_description_is_that_tensors_own_matter(file, described_as, sentence):
    header, data = described(TENSORS)
    found = file(packed({**header, "b": described_as}, data))
    with pytest.raises(ValueError, match=rf"model\.safetensors: b {sentence}"):
        found.read("b")
    for name in ("a", "c"):
        assert np.array_equal(found.read(name), TENSORS[name])


def test_overlapping_tensors_are_refused_and_others_are_not(file):
    header, data = described(TENSORS)
    header["b"]["data_offsets"] = [16, 48]  # a ends at 24
    found = file(packed(header, data))
    for name in ("a", "b"):
        with pytest.raises(ValueError, match=f": {name} shares bytes with another tensor"):
            found.read(name)
    assert np.array_equal(found.read("c"), TENSORS["c"])


def test_a_tensor_that_holds_another_one(file):
    header, data = described(TENSORS)
    header |= {"all": entry("U8", (60,), (0, 60)), "end": entry("U8", (0,), (60, 60))}
    found = file(packed(header, data))
    for name in ("a", "b", "c", "all"):
        with pytest.raises(ValueError, match="shares bytes"):
            found.entry(name)
    assert found.entry("end").shape == (0,)


def test_a_gap_is_no_harm(file):
    header, data = described(TENSORS)
    for one in header.values():
        one["data_offsets"] = [n + 3 for n in one["data_offsets"]]  # its offset is not aligned
    found = file(packed(header, b"gap" + data + b"and more"))
    for name, tensor in TENSORS.items():
        assert np.array_equal(found.read(name), tensor)


def test_a_name_that_stands_twice(file):
    header, data = described(TENSORS)
    text = json.dumps(header)[:-1] + ', "b": ' + json.dumps(header["b"]) + "}"
    found = file(packed(text.encode(), data))
    with pytest.raises(ValueError, match=": b is described twice"):
        found.read("b")
    assert np.array_equal(found.read("a"), TENSORS["a"])
    text = json.dumps(header).replace('"F64"', '"F64", "dtype": "F64"')
    with pytest.raises(ValueError, match=": b is not described"):
        file(packed(text.encode(), data)).read("b")


@pytest.mark.parametrize("metadata", ["text", 7, None, [], {"a": {"b": [1]}}, {"format": "pt"}])
def test_metadata_is_nobodys_business(file, metadata):
    header, data = described(TENSORS)
    found = file(packed({"__metadata__": metadata, **header}, data))
    assert np.array_equal(found.read("a"), TENSORS["a"])


def test_cut_off_after_the_header(file):
    """Tensors that are still complete are read."""
    found = file(file_bytes(TENSORS)[:-6])
    assert np.array_equal(found.read("a"), TENSORS["a"])
    with pytest.raises(ValueError, match=r": c has the offsets 56 and 60; expected them within 54"):
        found.read("c")


def test_cut_off_while_it_is_open(file):
    found = file(file_bytes(TENSORS))
    os.truncate(found.path, found.size - 2)
    with pytest.raises(ValueError, match="was cut off while it was read: c ends too early"):
        found.read("c")
    assert np.array_equal(found.read("a"), TENSORS["a"])


def test_no_elements(file):
    found = file(file_bytes({"a": np.zeros((0, 3), np.float32)}))
    with pytest.raises(ValueError, match=r": a has shape \(0, 3\); expected at least 1 in each"):
        found.read("a")


def test_types_of_less_than_a_byte_and_of_none_in_numpy(file):
    codes = np.zeros(6, np.uint8)
    header = {"a": entry("F4", (3, 4), (0, 6)), "b": entry("F8_E4M3", (6,), (6, 12))}
    header["c"] = entry("F6_E2M3", (3,), (12, 14))
    found = file(packed(header, codes.tobytes() * 3))
    assert [found.entry(name).dtype for name in "ab"] == ["F4", "F8_E4M3"]
    with pytest.raises(ValueError, match=": c has 2 bytes; expected as many as F6_E2M3"):
        found.entry("c")


def test_names_may_be_anything(file):
    long = "x" * 10_000
    with pytest.raises(ValueError, match=r": 'x{76}\.\.\. is not described"):
        file(packed({long: 0}, b"")).read(long)
    header, data = described({"a\nb\x1b[31m": TENSORS["a"], "\ud800": TENSORS["b"]})
    found = file(packed(header, data[:30]))
    assert np.array_equal(found.read("a\nb\x1b[31m"), TENSORS["a"])
    with pytest.raises(ValueError, match=r"'\\ud800' has the offsets"):
        found.read("\ud800")


# ---- views of the mapped file


def test_a_view_is_of_the_file_and_outlives_it(file):
    opened = file(aligned_bytes(TENSORS))
    views = {name: opened.view(name) for name in TENSORS}
    opened.close()
    for name, view in views.items():
        assert np.array_equal(view, TENSORS[name])
        assert view.dtype == TENSORS[name].dtype
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 1


def test_a_view_of_a_file_that_was_cut_off(file):
    opened = file(aligned_bytes(TENSORS))
    os.truncate(opened.path, opened.size - 1)
    assert np.array_equal(opened.view("a"), TENSORS["a"])
    with pytest.raises(ValueError, match="was cut off while it was read: c ends too early"):
        opened.view("c")


def test_no_view_without_elements(file):
    opened = file(aligned_bytes({"a": np.empty((0, 3), np.float32)}))
    with pytest.raises(ValueError, match="expected at least 1 in each dimension"):
        opened.view("a")
