"""Conversions of weights to a narrower dtype: a finite number that would become infinite raises."""

import json
import re

import numpy as np
import pytest
from support import BFLOAT16, all_biases, make_experts, make_weights, same_bits, unaligned

import ffncore as fc
from ffncore.arrays.dtypes import check_range, converted, rounded

F2, F4, F8 = (np.dtype(f"f{n}") for n in (2, 4, 8))
DTYPES = {dtype.name: dtype for dtype in (F2, F4, F8, *BFLOAT16)}

# The largest number, and half a step above it: ties go to the even neighbor, which is infinity.
LARGEST = {
    "float16": (65504.0, 65520.0),
    "bfloat16": ((2 - 2**-7) * 2.0**127, (2 - 2**-8) * 2.0**127),
    "float32": ((2 - 2**-23) * 2.0**127, (2 - 2**-24) * 2.0**127),
}
# The conversions in which a number can become infinite.
NARROWING = [
    pair
    for pair in (
        ("float64", "float32"),
        ("float64", "bfloat16"),
        ("float64", "float16"),
        ("float32", "bfloat16"),
        ("float32", "float16"),
        ("bfloat16", "float16"),
    )
    if set(pair) <= set(DTYPES)
]


def bounds(given, wanted):
    """The largest number of dtype `given` that fits, and the next one, which does not."""
    kind, first = DTYPES[given], LARGEST[wanted][1]
    if given == "bfloat16":  # it has no 65520
        return kind.type(65280), kind.type(65536)
    return np.nextafter(kind.type(first), kind.type(0)), kind.type(first)


@pytest.fixture(params=NARROWING, ids="-".join)
def pair(request):
    return request.param


@pytest.fixture(params=[1, -1], ids=["positive", "negative"])
def sign(request):
    return request.param


def sentence(name, value, wanted):
    return re.escape(
        f"{name} has a largest magnitude of {abs(float(value)):.9g}; expected at most "
        f"{LARGEST[wanted][0]:.9g} for {wanted}, where it would become inf"
    )


def test_the_last_number_that_fits_is_converted(pair, sign):
    given, wanted = pair
    last, _ = bounds(given, wanted)
    array = np.array([1, sign, 0, -0.0, np.inf, np.nan, -np.inf], DTYPES[given])
    array[1] *= last
    result = converted(array, DTYPES[wanted], "w.up")
    assert result.dtype == DTYPES[wanted]
    expected = sign * (65280.0 if given == "bfloat16" else LARGEST[wanted][0])
    np.testing.assert_array_equal(
        result.astype(F8), [1, expected, 0, 0, np.inf, np.nan, -np.inf], strict=True
    )


@pytest.mark.parametrize("beside", [1.0, np.inf, -np.inf, np.nan])
def test_the_first_number_that_does_not_fit_raises(pair, sign, beside):
    given, wanted = pair
    _, first = bounds(given, wanted)
    array = np.full((3, 4), beside, DTYPES[given])
    array[1, 2] = sign * first
    for strided in (array, array.T, array[::-1, ::2], unaligned(array), array[1, 2, None]):
        with pytest.raises(ValueError, match=sentence("w.up", first, wanted)):
            converted(strided, DTYPES[wanted], "w.up")
    # Nor is it that the number lies near by in memory.
    assert converted(array[:, 1::2], DTYPES[wanted], "w.up").shape == (3, 2)


def test_the_boundary_is_where_infinity_begins(pair, sign):
    """The limit is that of numpy's own conversion."""
    given, wanted = pair
    for number, lost in zip(bounds(given, wanted), (False, True), strict=True):
        with np.errstate(over="ignore"):
            assert np.isinf(rounded(np.array([sign * number]), DTYPES[wanted]))[0] == lost


@pytest.mark.parametrize("given", DTYPES)
@pytest.mark.parametrize("wanted", DTYPES)
def test_what_fits_or_is_empty_never_raises(given, wanted):
    array = np.array([[np.inf, -np.inf, np.nan, 6e4, -6e4, 1e-30]], DTYPES[given])
    result = converted(array, DTYPES[wanted], "w.up")
    np.testing.assert_array_equal(np.isfinite(result), np.isfinite(array))
    assert converted(array[:0], DTYPES[wanted], "w.up").shape == (0, 6)


def test_nan_of_any_bits(pair):
    given, wanted = DTYPES[pair[0]], DTYPES[pair[1]]
    size = 8 * given.itemsize
    # The largest payload of each sign, and quiet ones of no payload.
    bits = [2**size - 1, 2 ** (size - 1) - 1]
    array = np.array(bits, f"u{given.itemsize}").view(given)
    array = np.append(array, given.type(-2))
    check_range("w.up", array, wanted)
    with pytest.raises(ValueError, match=r"w\.up has a largest magnitude of"):
        check_range("w.up", np.append(array, -bounds(*pair)[1]), wanted)


def test_arrays_of_any_bits_raise_where_a_finite_number_is_lost(pair, rng):
    given, wanted = (DTYPES[name] for name in pair)
    lost = 0
    for _ in range(300):
        bits = rng.integers(0, 2 ** (8 * given.itemsize), (2, 3), f"u{given.itemsize}")
        array = bits.view(given)
        with np.errstate(all="ignore"):
            is_lost = (np.isinf(rounded(array, wanted)) & np.isfinite(array)).any()
            lost += is_lost
        try:
            check_range("w.up", array, wanted)
        except ValueError:
            assert is_lost, array
        else:
            assert not is_lost, array
    # The largest numbers of float32 and bfloat16 are nearly equal.
    assert lost < 300
    assert lost > 0 or pair == ("float32", "bfloat16")


# ---- fc.pack


@pytest.mark.parametrize("name", ["gate", "up", "down"])
def test_pack_raises_at_the_boundary(pair, sign, name, rng):
    given, wanted = pair
    w = make_weights(rng, 5, 7, biases=all_biases(True), dtype=DTYPES[given])
    last, first = bounds(given, wanted)
    array = getattr(w, name)
    array[2, 3], array[0, 0], array[0, 1] = sign * last, np.inf, np.nan
    again = fc.pack(w, dtype=wanted).unpack()
    largest = sign * (65280.0 if given == "bfloat16" else LARGEST[wanted][0])
    assert float(getattr(again, name)[2, 3]) == largest
    array[2, 3] = sign * first
    with pytest.raises(ValueError, match=sentence(f"w.{name}", first, wanted)):
        fc.pack(w, dtype=wanted)


def test_pack_names_the_expert(pair, rng):
    given, wanted = pair
    w = make_experts(rng, 9, 5, 7, dtype=DTYPES[given])
    _, first = bounds(given, wanted)
    w.down[5, 1, 2] = -first
    with pytest.raises(ValueError, match=sentence("w.down of expert 5", first, wanted)):
        fc.pack(w, dtype=wanted)
    with pytest.raises(ValueError, match=sentence("w.down", first, wanted)):
        fc.pack(w.expert(5), dtype=wanted)
    fc.pack(w.expert(4), dtype=wanted)


def test_pack_raises_before_out_is_changed(pair, rng):
    """Only the last of many experts has a number that does not fit."""
    given, wanted = pair
    w = make_experts(rng, 6, 5, 7, dtype=DTYPES[given])
    p = fc.pack(w, dtype=wanted)
    before = p._buffer.copy()
    other = make_experts(rng, 6, 5, 7, dtype=DTYPES[given])
    other.down[5, 4, 6] = bounds(given, wanted)[1]
    with pytest.raises(ValueError, match=r"w\.down of expert 5"):
        fc.pack(other, dtype=wanted, out=p)
    np.testing.assert_array_equal(p._buffer, before)


@pytest.mark.parametrize("experts", [False, True])
def test_pack_looks_at_biases(pair, experts, rng):
    given, wanted = pair
    options = {"biases": all_biases(True), "dtype": DTYPES[given]}
    w = make_experts(rng, 3, 5, 7, **options) if experts else make_weights(rng, 5, 7, **options)
    _, first = bounds(given, wanted)
    w.b_down[(2, 3) if experts else 3] = first
    narrow = wanted in ("float16", "bfloat16")
    if narrow:  # with 16-bit matrices, biases are float32
        packed = fc.pack(w, dtype=wanted).unpack().b_down
        assert packed.dtype == np.float32
        assert float(packed.max()) == np.float32(first)
        if given != "float64":
            return
        _, first = bounds(given, "float32")
        w.b_down[(2, 3) if experts else 3] = first
    label = "w.b_down of expert 2" if experts else "w.b_down"
    with pytest.raises(ValueError, match=sentence(label, first, "float32" if narrow else wanted)):
        fc.pack(w, dtype=wanted)


def test_pack_keeps_what_it_does_not_convert(dtype, rng):
    """Without a conversion, infinity and the largest numbers are accepted."""
    w = make_weights(rng, 5, 7, dtype=dtype)
    most = LARGEST[dtype.name][0] if dtype != F8 else np.finfo(F8).max
    w.up[0, :3] = most, -most, np.inf
    assert same_bits(fc.pack(w, dtype=dtype).unpack().up, w.up)


def test_pack_of_strided_weights(pair, rng):
    given, wanted = pair
    w = make_weights(rng, 5, 7, dtype=DTYPES[given])
    room = np.full((14, 10), bounds(given, wanted)[1], DTYPES[given])  # in the gaps
    room[::2, ::2] = w.up
    strided = fc.FFNWeights(gate=w.gate, up=room[::2, ::2], down=w.down)
    expected = fc.pack(w, dtype=wanted)
    assert np.array_equal(fc.pack(strided, dtype=wanted)._buffer, expected._buffer)


# ---- fc.load


def test_load_names_the_tensor(pair, tmp_path):
    given, wanted = pair
    save_file = pytest.importorskip("safetensors.numpy").save_file
    last, first = bounds(given, wanted)
    start = "model.layers.0.mlp"
    tensors = {
        f"{start}.{name}_proj.weight": np.full(shape, last, DTYPES[given])
        for name, shape in (("gate", (3, 2)), ("up", (3, 2)), ("down", (2, 3)))
    }
    path = tmp_path / "model.safetensors"
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    save_file(tensors, path)
    assert np.isfinite(fc.load(path, dtype=wanted).weights.up).all()
    tensors[f"{start}.up_proj.weight"][1, 1] = -first
    save_file(tensors, path)
    with pytest.raises(ValueError, match=sentence(f"{start}.up_proj.weight", first, wanted)):
        fc.load(path, dtype=wanted)
    assert fc.load(path).dtype == given


# ---- options that are numbers


def test_combine_of_a_layer(rng):
    w, wide = (make_experts(rng, 2, 4, 6, dtype=dtype) for dtype in (F4, F8))
    with pytest.raises(ValueError, match=r"combine is 1e\+39, which is too large for float32"):
        fc.MoE(w, "silu", None, combine=1e39)
    assert fc.MoE(wide, "silu", None, combine=1e39).combine == 1e39
