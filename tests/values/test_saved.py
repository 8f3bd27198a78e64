"""The saved activations of ffn_forward: gate and up, and the reuse of their memory."""

# ruff: noqa: ARG001 (a test names the fixtures that it runs under)

import gc
import threading

import numpy as np
import pytest
from support import TOLERANCE, all_biases, make_weights, normal, same_bits

import ffncore as fc
from ffncore import reference
from ffncore.arrays import memory


@pytest.mark.parametrize("tokens", [0, 1, 15, 16, 17, 63, 64, 65, 130])
def test_saved_can_be_looked_at(tokens, isa, dtype, gated, rng):
    w = make_weights(rng, 7, 19, gated=gated, biases=all_biases(gated), dtype=dtype)
    x = normal(rng, tokens, 7, dtype=dtype)
    _, saved = fc.ffn_forward(x, w, activation="silu")
    gate, up = reference.preactivations(x, w)
    close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    np.testing.assert_allclose(saved.up.astype(np.float64), up, **close)
    assert saved.up.dtype == dtype
    if gated:
        np.testing.assert_allclose(saved.gate.astype(np.float64), gate, **close)
    else:
        assert saved.gate is None
    assert saved.x is x
    assert saved.weights is w
    assert saved.activation == fc.Activation("silu")
    assert saved.nbytes >= (1 + gated) * tokens * 19 * dtype.itemsize
    with pytest.raises(AttributeError):
        saved.x = None


# ---- reuse of memory -----------------------------------------------------------------------------

LARGE = 2**19  # float64 elements of a buffer that is kept for reuse: 4 MiB


@pytest.fixture
def nothing_kept():
    gc.collect()
    fc.clear_workspace()
    yield
    fc.clear_workspace()


def address(array):
    return array.__array_interface__["data"][0]


def buffer(count=LARGE):
    return memory.reusable(8 * count).view(np.float64)


def test_a_released_buffer_is_used_again(nothing_kept):
    first = buffer()
    assert address(first) % 64 == 0
    place = address(first)
    first[:] = 1
    del first
    again = buffer(LARGE - 100)
    assert address(again) == place
    assert again.shape == (LARGE - 100,)
    assert not np.shares_memory(again, buffer())


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[5:9],
        lambda a: a.reshape(2, -1).T[::-1],
        lambda a: a.view(np.uint8),
        lambda a: memoryview(a),
        lambda a: np.frombuffer(a, np.float32),
        lambda a: np.asarray(memoryview(a))[1:],
        lambda a: iter(a[:3]),
    ],
)
def test_a_buffer_with_a_view_is_never_used_again(view, nothing_kept):
    first = buffer()
    place, held = address(first), view(first)
    del first
    gc.collect()
    other = buffer()
    assert address(other) != place
    del held
    gc.collect()
    assert address(buffer()) == place


def test_two_buffers_at_most_are_kept(nothing_kept):
    held = [buffer() for _ in range(5)]
    held.clear()
    assert len(memory._released) == 2
    small = buffer(100)
    del small
    assert len(memory._released) == 2
    assert len({address(a) for a in [buffer() for _ in range(1)]}) == 1
    fc.clear_workspace()
    assert not memory._released


def test_a_buffer_of_another_size_stays_for_others(nothing_kept):
    place = address(buffer(4 * LARGE))
    assert address(buffer()) != place  # it would be four times as large as needed
    assert address(buffer(3 * LARGE)) == place
    assert address(buffer(5 * LARGE)) != place


def test_steps_of_training_use_one_buffer(nothing_kept, rng):
    w = make_weights(rng, 16, 600, dtype=np.float32)
    x = normal(rng, 1100, 16, dtype=np.float32)

    def step():
        y, saved = fc.ffn_forward(x, w, activation="silu")
        assert saved.nbytes > 2**22
        grads = fc.ffn_backward(y, saved)
        return address(saved._panels), grads.x

    (first, grad_x), (second, again) = step(), step()
    assert first == second
    assert same_bits(grad_x, again)
    _, saved = fc.ffn_forward(x, w, activation="silu")
    gate = saved.gate
    _, other = fc.ffn_forward(2 * x, w, activation="silu")
    assert address(other._panels) != address(saved._panels)
    assert same_bits(gate, saved.gate)


def test_threads_never_share_a_buffer(nothing_kept):
    wrong = []

    def use(number):
        for _ in range(100):
            array = buffer(2**18)
            array[::4096] = number
            array[1::4096] = number
            if (array[::4096] != number).any():
                wrong.append(number)

    threads = [threading.Thread(target=use, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
