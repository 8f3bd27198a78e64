"""h of blocks of tokens, sums over tokens, and side cars."""

# ruff: noqa: ARG001 (a test names the fixtures that it runs under)

import numpy as np
import pytest
from support import ODD_SIZES, all_biases, make_experts, make_weights, normal, same_bits

import ffncore as fc
from ffncore import reference
from ffncore.passes import hidden
from ffncore.passes.hidden import Hidden, SideCar, TokenSums, product


def test_h_is_what_the_layer_multiplies_by_down(isa, dtype, gated, rng):
    d, f = 37, 33
    w = make_weights(rng, d, f, gated=gated, biases=all_biases(gated)[:-1], dtype=dtype)
    w = fc.FFNWeights(**{**w.arrays(), "down": np.eye(d, f).astype(dtype)})
    for t in ODD_SIZES:
        x = normal(rng, t, d, dtype=dtype)
        exact = fc.ffn(x, w, activation="gelu")[:, :f]
        for weights in (w, fc.pack(w)):
            for block in Hidden(x, weights, "gelu").blocks(outputs=True):
                assert same_bits(block.h[:, 0].astype(dtype), exact[block.tokens])
                y = fc.ffn(x[block.tokens], weights, activation="gelu")
                assert same_bits(block.y, y.astype(block.y.dtype))


def test_blocks_cover_the_tokens_in_order(monkeypatch, rng):
    monkeypatch.setattr(hidden, "_BLOCK_BYTES", 7 * 4 * 19)
    w = make_weights(rng, 5, 19, dtype=np.float32)
    blocks = list(Hidden(normal(rng, 3, 10, 5, dtype=np.float32), w, "silu").blocks())
    assert [b.tokens.start for b in blocks] == [0, 7, 14, 21, 28]
    assert blocks[-1].h.shape == (2, 1, 19)


def test_h_of_experts(isa, rng):
    w = make_experts(rng, 4, 17, 9, dtype=np.float32)
    x = normal(rng, 33, 17, dtype=np.float32)
    ids = rng.integers(-1, 4, (33, 3)).astype(np.int32)
    routing = fc.Routing(experts=ids, weights=normal(rng, 33, 3, dtype=np.float32))
    (block,) = Hidden(x, w, "silu", routing).blocks()
    for e in range(4):
        (own,) = Hidden(x, w.expert(e), "silu").blocks()
        token, slot = np.nonzero(ids == e)
        assert same_bits(block.h[token, slot], own.h[token, 0])


def test_sums_have_the_same_bits_everywhere(rng):
    for dtype in (np.float32, np.float64):
        for t, m, n in ((0, 3, 2), (1, 1, 1), (63, 17, 5), (64, 2, 33), (130, 31, 16)):
            a, b = normal(rng, t, m, dtype=dtype), normal(rng, t, n, dtype=dtype)
            results = []
            for isa in fc.available_isas():
                for threads in (1, 3):
                    with fc.using_isa(isa), fc.num_threads(threads):
                        results.append(TokenSums(b).times(a))
                        moment = TokenSums(b).times(b)
                        assert same_bits(moment, np.ascontiguousarray(moment.T))
            assert all(same_bits(results[0], other) for other in results)
            exact = a.astype(np.float64).T @ b.astype(np.float64)
            assert np.abs(results[0] - exact).max() < (1e-4 if dtype is np.float32 else 1e-12)


def test_product_takes_any_strides(rng):
    a, b = normal(rng, 14, 22)[::2, ::-2], np.asfortranarray(normal(rng, 5, 11))
    assert np.abs(product(a, b) - a @ b.T).max() < 1e-13


def test_a_side_car_adds_its_change(isa, dtype, gated, rng):
    w = make_weights(rng, 13, 29, gated=gated, biases=("b_down",), dtype=dtype)
    x = normal(rng, 2, 40, 13, dtype=dtype)
    wide = np.float64 if dtype == np.float64 else np.float32
    car = SideCar(normal(rng, 13, 2, dtype=wide) / 4, normal(rng, 2, 29, dtype=wide) / 4)
    changed = {n: a.astype(np.float64) for n, a in w.arrays().items()}
    changed["down"] = changed["down"] + car.U.astype(np.float64) @ car.V
    exact = reference.ffn(x.astype(np.float64), fc.FFNWeights(**changed), activation="silu")
    bound = {8: 1e-12, 4: 1e-5, 2: 0.05}[np.dtype(dtype).itemsize]
    y = fc.ffn(x, w, activation="silu", side_car=car)
    assert np.abs(y - exact).max() < bound * max(1, np.abs(exact).max())
    out = np.zeros((2, 80, 13), dtype)[:, ::2]
    assert fc.ffn(x, fc.pack(w), activation="silu", side_car=car, out=out) is out
    assert same_bits(np.ascontiguousarray(out), y)
    empty = fc.ffn(x[:, :0], w, activation="silu", side_car=car)
    assert empty.shape == (2, 0, 13)


def test_a_side_car_of_zeros_changes_no_bit(rng):
    w = make_weights(rng, 8, 24, dtype=np.float32)
    x = normal(rng, 5, 8, dtype=np.float32)
    car = SideCar(np.zeros((8, 1), "f4"), np.zeros((1, 24), "f4"))
    y = fc.ffn(x, w, activation="relu")
    assert same_bits(fc.ffn(x, w, activation="relu", side_car=car), y)


def test_bad_side_cars(rng):
    w, x = make_weights(rng, 8, 24, dtype=np.float32), normal(rng, 5, 8, dtype=np.float32)
    with pytest.raises(TypeError, match="side_car is of type int; expected a SideCar"):
        fc.ffn(x, w, activation="relu", side_car=3)
    car = SideCar(np.zeros((7, 1), "f4"), np.zeros((1, 24), "f4"))
    with pytest.raises(ValueError, match=r"side_car.U has shape \(7, 1\); expected \(8, 1\)"):
        fc.ffn(x, w, activation="relu", side_car=car)
