"""[..., d] as [T, d]: which arrays are used in place, and that copies stay small."""

import tracemalloc

import numpy as np
import pytest
from support import make_weights, normal, same_bits, unaligned

import ffncore as fc
from ffncore.arrays import rows


def turned(array):
    """The same numbers with their leading dimensions in another order in memory."""
    return np.array(array.transpose(1, 0, 2), order="C").transpose(1, 0, 2)


def test_strides_tell_whether_dimensions_merge(rng):
    base = normal(rng, 4, 3, 2, 5)
    arrays = [
        *(base, base[::2], base[:, ::2], base[:, :, ::2], base[..., ::-1], base[:, :1], base[1]),
        *(base[::-1], base.transpose(1, 0, 2, 3), base.transpose(3, 2, 1, 0), base[:, 0, 0]),
        *(base[:, 0:0], base[0, 0, 0], base[:1, :, :1], np.broadcast_to(base[0], base.shape)),
        *(np.broadcast_to(base[0, 0, 0], (3, 4, 5)), np.asfortranarray(base), base[:1, :1, :1]),
    ]
    for array in arrays:
        merged = array.reshape(rows.row_count(array.shape), array.shape[-1])
        in_place = array.size == 0 or np.shares_memory(merged, array)
        assert rows.merges(array) == in_place, (array.shape, array.strides)
        view = rows.rows_view(array)
        assert (view is not None) == in_place
        if view is not None:
            assert view.strides == merged.strides or view.size == 0


@pytest.mark.parametrize("shape", [(7, 4, 2, 3), (1, 1, 3), (5, 3), (3,), (2, 0, 3), (1000, 3)])
@pytest.mark.parametrize("nbytes", [1, 3 * 8, 10 * 3 * 8, 10**6])
def test_blocks_cover_everything_once(shape, nbytes, monkeypatch):
    monkeypatch.setattr(rows, "BLOCK_BYTES", nbytes)
    for cut in range(len(shape) + 1):
        seen = np.zeros(shape)
        for index in rows.blocks(shape, 8, cut):
            seen[index] += 1
            block_row = 8 * int(np.prod(shape[max(cut, 1) :]))
            assert seen[index].nbytes <= max(nbytes, block_row) or cut == 0
        assert (seen == 1).all()


def test_blocks_change_no_bit(rng, monkeypatch):
    w = make_weights(rng, 3, 5)
    x, grad_y = normal(rng, 7, 4, 3), normal(rng, 7, 4, 3)
    act = fc.Activation("xielu")
    y, saved = fc.ffn_forward(x, w, activation=act, save="input")
    grads = fc.ffn_backward(grad_y, saved)
    elementwise = fc.activation_backward(grad_y, x, activation=act)
    for nbytes in (1, 3 * 8, 10 * 3 * 8, 10**6):
        monkeypatch.setattr(rows, "BLOCK_BYTES", nbytes)
        for strange in (turned, unaligned):
            x2, grad2 = strange(x), strange(grad_y)
            out = turned(np.zeros_like(x))
            assert same_bits(fc.ffn(x2, w, activation=act, out=out), y)
            assert same_bits(fc.ffn(x2, fc.pack(w), activation=act), y)
            for save in ("input", "preactivations"):
                y2, saved2 = fc.ffn_forward(x2, w, activation=act, save=save, out=out)
                assert same_bits(y2, y)
                all_grads = fc.ffn_backward(grad2, saved2)
                for name, gradient in all_grads.arrays().items():
                    assert same_bits(gradient, grads.arrays()[name]), name
                assert all_grads.activation == grads.activation
                fc.ffn_backward(grad2, saved2, needs=("x",), out={"x": out})
                assert same_bits(out, grads.x)
                fc.ffn_backward(grad2, saved2, needs=("x",), out={"x": out}, accumulate=True)
                np.testing.assert_allclose(out, 2 * grads.x, rtol=1e-12)
            assert same_bits(fc.activation(x2, activation=act), fc.activation(x, activation=act))
            h = fc.activation_backward(grad2, x2, activation=act, out=(out,))
            assert same_bits(h.x, elementwise.x)
            assert h.activation.alpha_p == pytest.approx(elementwise.activation.alpha_p, rel=1e-12)


def most(call):
    """The largest number of bytes of arrays that exist at once during a call."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("strange", [turned, unaligned])
def test_copies_are_small(strange, rng):
    """The memory for copies of arrays without a view [T, d] does not grow with T."""
    w = make_weights(rng, 64, 2, gated=False, dtype=np.float32)
    x = strange(np.ones((8, 30_000, 64), np.float32))  # 61 MB
    out = turned(np.empty(x.shape, np.float32)) if strange is turned else np.empty(x.shape, "f4")
    limit = 3 * rows.BLOCK_BYTES + 2**20
    assert x.nbytes > 2 * limit
    assert most(lambda: fc.ffn(x, w, activation="relu", out=out)) < limit

    def save_input():
        _, saved = fc.ffn_forward(x, w, activation="relu", save="input", out=out)
        fc.ffn_backward(x, saved, needs=("x",), out={"x": out})

    assert most(save_input) < limit
    assert most(lambda: fc.activation(x, activation="relu", out=out)) < limit
    assert most(lambda: fc.activation_backward(x, x, activation="relu", out=(out,))) < limit
