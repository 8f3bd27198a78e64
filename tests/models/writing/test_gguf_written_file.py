"""write_gguf, against a reader that follows the description of the format."""

import pytest
from support_gguf_parse import parse

from ffncore.models.writing.gguf_file import TENSOR_TYPES, Tensor, write_gguf


def tensor(name, shape, type, data, pieces=1):
    size = -(-len(data) // pieces) or 1
    cut = [data[i : i + size] for i in range(0, len(data), size)]
    return Tensor(name, shape, type, len(data), lambda: iter(cut))


ENTRIES = {"a": "text é", "b": 7, "c": True, "d": 0.5, "e": 2**32 - 1, "general.alignment": 32}


def test_entries_and_tensors(tmp_path):
    tensors = [
        tensor("one", (2, 256), "q4_k", bytes(range(144)) * 2, pieces=3),
        tensor("vector", (3,), "float32", bytes(range(12))),
        tensor("experts", (2, 3, 32), "q8_0", bytes(range(204)), pieces=2),
    ]
    write_gguf(tmp_path / "a.gguf", ENTRIES, tensors)
    data = (tmp_path / "a.gguf").read_bytes()
    entries, found = parse(data)
    assert entries == ENTRIES
    assert [*found] == ["one", "vector", "experts"]
    for known in tensors:
        shape, kind, at = found[known.name]
        assert (shape, kind) == (known.shape, TENSOR_TYPES[known.type])
        assert at % 32 == 0
        assert data[at : at + known.nbytes] == b"".join(known.data())
    assert len(data) % 32 == 0


@pytest.mark.parametrize("length", range(1, 34))
def test_every_length_of_the_directory_is_aligned(tmp_path, length):
    write_gguf(tmp_path / "a", {}, [tensor("x" * length, (1,), "float32", b"abcd")])
    data = (tmp_path / "a").read_bytes()
    _, found = parse(data)
    assert data[found["x" * length][2] :].startswith(b"abcd")


def test_tensors_are_made_in_the_order_of_the_iterator_that_shows_progress(tmp_path):
    seen = []
    tensors = [tensor(name, (1,), "float32", b"abcd") for name in "xyz"]
    write_gguf(tmp_path / "a", {}, tensors, (seen.append(t.name) or t for t in tensors))
    assert seen == ["x", "y", "z"]


def test_a_tensor_with_other_bytes_than_the_directory_says(tmp_path):
    wrong = Tensor("x", (1,), "float32", 4, lambda: [b"abc"])
    with pytest.raises(AssertionError, match="x: 3 bytes of 4"):
        write_gguf(tmp_path / "a", {}, [wrong])
