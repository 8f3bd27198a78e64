"""The reader of GGUF files: every field, every damage."""

import struct

import numpy as np
import pytest
import support_gguf
from support_gguf import LLAMA, entry, file_bytes, text, value

import ffncore as fc
from ffncore.models.files.gguf import TYPES, GGUFFile

RNG = np.random.default_rng(1)
W = (RNG.standard_normal((3, 256)) / 16).astype("f4")
FORMATS = [name for name, info in fc.formats().items() if info.source.startswith("GGUF")]


def opened(tmp_path, data):
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    return GGUFFile(path)


def test_metadata_and_tensors(tmp_path):
    metadata = {"a": 7, "b": True, "c": 0.5, "d": "text", "e": ["x", "yy"], "f": [1, 2, 3]}
    tensors = {"w": W, "h": W.astype("f2")[0], "q": fc.quantize(W, "q4_k")}
    file = opened(tmp_path, file_bytes(metadata, tensors))
    assert [file.metadata[key] for key in "abcde"] == [7, True, 0.5, "text", 2]
    assert file.metadata["f"].tolist() == [1, 2, 3]
    assert list(file) == ["w", "h", "q"]
    assert "w" in file
    assert "z" not in file
    np.testing.assert_array_equal(file.read("w"), W)
    np.testing.assert_array_equal(file.view("h"), W.astype("f2")[0])
    np.testing.assert_array_equal(file.read("w", range(1, 3)), W[1:])
    assert file.read("q").tobytes() == tensors["q"].to_bytes()
    assert file.read("w").flags.writeable
    assert not file.view("w").flags.writeable
    assert (file.entry("q").shape, file.entry("q").dtype) == ((3, 256), "q4_k")


@pytest.mark.parametrize("name", sorted(set(support_gguf.TYPES) & set(fc.formats())))
def test_every_format(name, tmp_path):
    q = fc.quantize(W, name)
    file = opened(tmp_path, file_bytes({}, {"q": q, "r": q}))
    for tensor in ("q", "r"):
        found = file.entry(tensor)
        again = fc.QuantizedTensor.from_bytes(found.dtype, file.view(tensor), found.shape)
        assert again == q


def test_the_table_has_all_formats_of_one_block():
    read = {kind.dtype for kind in TYPES.values() if kind.dtype}
    assert read - {"float64", "float32", "float16", "bfloat16"} == set(FORMATS)


@pytest.mark.parametrize("alignment", [1, 8, 32, 64])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("group", [64, 128])
def test_groups_of_q2_0(group, last, alignment, tmp_path):
    """Told by the distance to the next tensor, or to the end of the file."""
    size = 18 if group == 64 else 34
    data = RNG.integers(0, 255, (6, 1024 // group, size), dtype=np.uint8)
    data[..., :2] = np.frombuffer(np.float16(0.5).tobytes(), np.uint8)
    q = fc.QuantizedTensor.from_bytes("q2_0", data, (6, 1024))
    tensors = {"q": q} if last else {"q": q, "w": W}
    metadata = {"general.alignment": alignment}
    raw = file_bytes(metadata, tensors, alignment)
    raw = raw.rstrip(b"\0") if last and raw[-1] == 0 and data.flat[-1] else raw
    file = opened(tmp_path, raw)
    assert file.view("q").size == q.nbytes


def header(n_tensors=0, n_keys=0, version=3, magic=b"GGUF"):
    return magic + struct.pack("<IQQ", version, n_tensors, n_keys)


ONE = file_bytes({}, {"w": W})
HUGE = 1 << 62
DAMAGES = {
    "has 3 bytes; expected at least 24": b"GGU",
    "begins with b'GGML'": header(magic=b"GGML"),
    "has version 1; expected 2 or 3": header(version=1),
    "is big-endian": header(version=3 << 24),
    "would have 4611686018427387904 tensors": header(n_tensors=HUGE),
    "would have 4611686018427387904 metadata keys": header(n_keys=HUGE),
    "would have 4611686018427387904 bytes": header(n_keys=1) + struct.pack("<Q", HUGE) + b"x" * 9,
    "is not UTF-8": header(n_keys=1) + struct.pack("<Q", 1) + b"\xff" + value(1),
    "has type 13; expected 0 to 12": header(n_keys=1) + text("k") + struct.pack("<IQ", 13, 0),
    "would have 4611686018427387904 numbers": header(n_keys=1)
    + text("k")
    + struct.pack("<IIQ", 9, 4, HUGE),
    "would have 4611686018427387904 values": header(n_keys=1)
    + text("k")
    + struct.pack("<IIQ", 9, 8, HUGE),
    "has type 9; expected": header(n_keys=1)
    + text("k")
    + struct.pack("<I", 9)
    + struct.pack("<IQ", 9, 1) * 7
    + b"x" * 99,
    "the key 'k' twice": header(n_keys=2) + 2 * (text("k") + value(1)),
    "describes w twice": header(n_tensors=2) + 2 * entry("w", (1, 1), 0, 0),
    "w has 5 axes": header(n_tensors=1) + entry("w", (1,) * 5, 0, 0),
    "general.alignment 3": file_bytes({"general.alignment": 3}, {}),
    "general.alignment 'x'": file_bytes({"general.alignment": "x"}, {}),
}


@pytest.mark.parametrize("sentence", DAMAGES)
def test_a_damaged_header(sentence, tmp_path):
    with pytest.raises(ValueError, match=r"m\.gguf is not a GGUF file, or is damaged: ") as caught:
        opened(tmp_path, DAMAGES[sentence])
    assert sentence in str(caught.value)


def described(shape, kind, offset, size=256):
    head = header(n_tensors=1) + entry("w", shape, kind, offset)
    return head + bytes(-len(head) % 32) + bytes(size)


@pytest.mark.parametrize(
    "sentence, shape, kind, offset",
    [
        ("has type 10 (Q2_K), which is not read; expected F32, F16,", (1, 256), 10, 0),
        ("has type 99, which is not read", (1, 256), 99, 0),
        ("has the offset 8; expected a multiple of 32", (1, 8), 0, 8),
        ("has 32 bytes at offset 256; expected them within 256 bytes", (1, 8), 0, 256),
        ("has rows of 31 weights; expected a multiple of 32 for Q8_0", (1, 31), 8, 0),
        ("has shape (0, 8); expected", (0, 8), 0, 0),
        ("has shape (); expected", (), 0, 0),
        ("expected them within 256 bytes", (1 << 40, 1 << 40), 0, 0),
    ],
)
def test_a_damaged_tensor(sentence, shape, kind, offset, tmp_path):
    file = opened(tmp_path, described(shape, kind, offset))
    with pytest.raises(ValueError, match="w has ") as caught:
        file.entry("w")
    assert sentence in str(caught.value)


def test_tensors_that_overlap(tmp_path):
    head = header(n_tensors=3) + entry("a", (16,), 0, 0) + entry("b", (16,), 0, 32)
    head += entry("c", (8,), 0, 96)
    file = opened(tmp_path, head + bytes(-len(head) % 32) + bytes(128))
    for name in "ab":
        with pytest.raises(ValueError, match=f"{name} shares bytes with another tensor"):
            file.entry(name)
    assert file.read("c").shape == (8,)
    with pytest.raises(ValueError, match="has no tensor d"):
        file.entry("d")


def test_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        GGUFFile(tmp_path / "no.gguf")
    with pytest.raises(ValueError, match="is a folder"):
        GGUFFile(tmp_path)
    with pytest.raises(ValueError, match="it has 0 bytes"):
        opened(tmp_path, b"")


def test_random_damage(tmp_path):
    """Any byte changed, or the end cut off: a ValueError, or another valid file."""
    tensors = support_gguf.layer(0, ("q4_k", "q8_0", "q6_k"), 256, 256)
    whole = file_bytes(LLAMA, tensors)
    data = len(whole) - sum(q.nbytes + -q.nbytes % 32 for q in tensors.values())
    path = tmp_path / "m.gguf"
    rng = np.random.default_rng(9)
    refused = unnamed = 0
    for turn in range(400):
        damaged = bytearray(whole)
        if turn % 4 == 0:
            damaged = damaged[: rng.integers(0, len(whole))]
        else:
            for at in rng.integers(0, data, rng.integers(1, 4)):
                damaged[at] = rng.choice([0, 1, 127, 128, 255, rng.integers(256)])
        path.write_bytes(damaged)
        try:
            fc.load(path)
        except ValueError as error:
            refused += 1
            unnamed += "m.gguf" not in str(error)
    assert unnamed == 0
    assert 200 < refused < 400
