"""PackedWeights.save and fc.load_packed: the same bits, and errors for other or damaged files."""

import json

import numpy as np
import pytest
from support import DTYPES, all_biases, make_experts, make_weights, normal, same_bits

import ffncore as fc
from ffncore.values.packed_file import PAGE


@pytest.mark.parametrize("packed_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("experts", [None, 3], ids=["block", "experts"])
def test_round_trip(packed_dtype, experts, gated, rng, tmp_path):
    options = {"gated": gated, "biases": all_biases(gated), "dtype": packed_dtype}
    d, f = 37, 70
    if experts is None:
        w = make_weights(rng, d, f, **options)
    else:
        w = make_experts(rng, experts, d, f, **options)
    p = fc.pack(w)
    p.save(tmp_path / "p")
    again = fc.load_packed(tmp_path / "p")
    assert repr(again) == repr(p)
    assert again._buffer.ctypes.data % 64 == 0
    assert not again._buffer.flags.writeable
    for name, array in again.unpack().arrays().items():
        assert same_bits(array, getattr(w, name)), name
    x = normal(rng, 5, d, dtype=packed_dtype)
    if experts is None:
        y = fc.ffn(x, p, activation="silu")
        assert same_bits(fc.ffn(x, again, activation="silu"), y)
    else:
        routing = fc.route(normal(rng, 5, 3).astype(np.float64 if w.dtype == float else "f4"), 2)
        y = fc.moe(x, routing, p, activation="silu")
        assert same_bits(fc.moe(x, routing, again, activation="silu"), y)


def test_a_file_in_use_is_replaced_whole(rng, tmp_path):
    first, second = (make_weights(rng, 8, 9, dtype=np.float32) for _ in range(2))
    fc.pack(first).save(tmp_path / "p")
    loaded = fc.load_packed(tmp_path / "p")
    fc.pack(second).save(tmp_path / "p")
    assert same_bits(loaded.unpack().up, first.up)
    assert same_bits(fc.load_packed(tmp_path / "p").unpack().up, second.up)
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def test_an_expert_alone(rng, tmp_path):
    p = fc.pack(make_experts(rng, 3, 8, 9, dtype=np.float32))
    p.expert(1).save(tmp_path / "one")
    assert same_bits(fc.load_packed(tmp_path / "one").unpack().up, p.expert(1).unpack().up)


def edited(data, **changes):
    """The bytes of the file with changed metadata."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    facts = json.loads(header["__metadata__"]["weights"])
    header["__metadata__"]["weights"] = json.dumps({**facts, **changes})
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % PAGE)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def test_what_is_no_such_file(rng, tmp_path):
    path = tmp_path / "p"
    with pytest.raises(FileNotFoundError, match="p does not exist"):
        fc.load_packed(path)
    fc.pack(make_weights(rng, 8, 9, dtype=np.float32)).save(path)
    good = path.read_bytes()
    for damaged, sentence in (
        (b"", "is not a safetensors file"),
        (good[:-1], "expected them within"),
        (good.replace(b"ffncore packed", b"another packed"), "has no packed weights"),
        (good.replace(b'"layout": "1"', b'"layout": "9"'), "pack the weights again"),
        (edited(good, sizes=[8, 90, True, False, False, False]), "has damaged metadata"),
        (edited(good, sizes=[-8, 9, True, False, False, False]), "has damaged metadata"),
        (edited(good, sizes=None), "has damaged metadata"),
        (edited(good, sizes=[2**70, 9, True, False, False, False]), "has damaged metadata"),
        (edited(good, dtype="int3"), "has damaged metadata"),
        (edited(good, biases={"b_up": "float32"}), "has damaged metadata"),
        (edited(good, more=1), "has damaged metadata"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=sentence):
            fc.load_packed(path)


def test_packing_a_layer_names_its_method(rng):
    layer = fc.FFN(make_weights(rng, 4, 5), "silu")
    with pytest.raises(TypeError, match=r"weights is of type FFN; .* layer.packed\(\)"):
        fc.pack(layer)
