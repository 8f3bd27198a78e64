"""fc.ffn and its backward pass on an emulated GPU, against the same calls with numpy arrays."""

import subprocess
import sys

import numpy as np
import pytest
from support import CASES, DTYPES, make_weights
from support_cuda import assert_close, numbers

import ffncore as fc
from ffncore.values.gradients import XieluGrads

FLOATS = [dtype for dtype in DTYPES if dtype != np.float64]
ALL_BIASES = ("b_gate", "b_up", "b_down")


def draw(rng, shape, dtype):
    return rng.standard_normal(shape).astype(dtype)


def copied(w):
    return fc.FFNWeights(**{name: array.copy() for name, array in w.arrays().items()})


def layer(rng, dtype, gated=True, d=24, f=40, weights_dtype=None):
    biases = ALL_BIASES if gated else ALL_BIASES[1:]
    return make_weights(rng, d, f, gated=gated, biases=biases, dtype=weights_dtype or dtype)


@pytest.fixture(params=FLOATS, ids=str)
def dtype(request):
    return request.param


def compare(gpu, x, w, activation="silu", **options):
    """Both passes, on the GPU and on the CPU."""
    name = w.dtype.name if w.dtype.itemsize == 2 else x.dtype.name
    y, saved = fc.ffn_forward(x, w, activation=activation)
    y_gpu, saved_gpu = fc.ffn_forward(
        gpu.array(x), gpu.weights(w), activation=activation, **options
    )
    assert type(y_gpu) is type(gpu.array(x))
    assert_close(y_gpu, y, name)
    grad_y = np.cos(np.arange(x.size)).reshape(x.shape).astype(x.dtype)
    grads = fc.ffn_backward(grad_y, saved)
    found = fc.ffn_backward(gpu.array(grad_y), saved_gpu)
    assert found.arrays().keys() == grads.arrays().keys()
    for key, expected in grads.arrays().items():
        assert found.arrays()[key].numpy_array.dtype == expected.dtype
        assert_close(found.arrays()[key], expected, name)
    return saved, saved_gpu, grads, found


def test_both_passes(gpu, dtype, gated, rng):
    w = layer(rng, dtype, gated)
    saved, saved_gpu, _, _ = compare(gpu, draw(rng, (5, 24), dtype), w)
    assert saved_gpu.save == "preactivations"
    assert_close(saved_gpu.up, saved.up, dtype.name)
    if gated:
        assert_close(saved_gpu.gate, saved.gate, dtype.name)
    else:
        assert saved_gpu.gate is None


def test_recomputed(gpu, dtype, gated, rng):
    x, w = draw(rng, (37, 24), dtype), layer(rng, dtype, gated)
    _, saved, _, _ = compare(gpu, x, w, save="input")
    assert saved.save == "input"
    assert saved.gate is saved.up is None
    assert saved.nbytes == 0


@pytest.mark.parametrize("weights", [d for d in FLOATS if d.itemsize == 2], ids=str)
def test_float32_x_beside_16_bits(gpu, weights, gated, rng):
    w = layer(rng, np.float32, gated, weights_dtype=weights)
    for tokens in (3, 40):
        compare(gpu, draw(rng, (tokens, 24), np.float32), w)


@pytest.mark.parametrize("tokens", [0, 1, 2, 16, 17, 127, 129])
def test_tokens(gpu, tokens, rng):
    x, w = draw(rng, (tokens, 24), np.float32), layer(rng, np.float32)
    compare(gpu, x, w)
    assert_close(
        fc.ffn(gpu.array(x), gpu.weights(w), activation="silu"),
        fc.ffn(x, w, activation="silu"),
        "float32",
    )


@pytest.mark.parametrize("case", range(len(CASES)))
def test_activations(gpu, case, rng):
    gated, activation = CASES[case]
    x, w = draw(rng, (6, 9), np.float32), layer(rng, np.float32, gated, d=9, f=33)
    _, _, grads, found = compare(gpu, x, w, activation)
    if activation.name == "xielu":
        for mine, expected in zip(found.activation, grads.activation, strict=True):
            size = sum(map(abs, grads.activation))
            assert mine.shape == ()
            assert abs(numbers(mine) - expected) <= 1e-4 * size


def test_leading_dimensions(gpu, rng):
    w = layer(rng, np.float32)
    compare(gpu, draw(rng, (24,), np.float32), w)
    compare(gpu, draw(rng, (2, 3, 4, 24), np.float32), w)
    compare(gpu, draw(rng, (3, 0, 24), np.float32), w)
    compare(gpu, draw(rng, (4, 3, 24), np.float32).transpose(1, 0, 2), w)  # rows by a copy


def test_strides(gpu, dtype, rng):
    """x in Fortran order, weights transposed and with gaps, gate and up interleaved."""
    x = draw(rng, (2 * 24, 20), dtype)[::2].T
    fused = draw(rng, (80, 24), dtype)
    w = fc.FFNWeights(gate=fused[::2], up=fused[1::2], down=draw(rng, (40, 24), dtype).T)
    compare(gpu, x, w)
    columns = fc.FFNWeights(
        gate=draw(rng, (24, 41), dtype)[:, :40].T,
        up=draw(rng, (24, 40), dtype).T,
        down=draw(rng, (24, 50), dtype)[:, :40],
        b_up=draw(rng, 80, dtype)[::2],
    )
    for tokens in (5, 20):
        compare(gpu, x[:tokens], columns)


@pytest.mark.parametrize("layout", ["concat", "interleaved"])
def test_from_gate_up(gpu, layout, rng):
    arrays = {
        "gate_up": draw(rng, (80, 24), np.float32),
        "down": draw(rng, (24, 40), np.float32),
        "b_gate_up": draw(rng, 80, np.float32),
    }
    w = fc.FFNWeights.from_gate_up(**arrays, layout=layout)
    w_gpu = fc.FFNWeights.from_gate_up(**gpu.arrays(**arrays), layout=layout)
    x = draw(rng, (5, 24), np.float32)
    y = fc.ffn(gpu.array(x), w_gpu, activation="gelu")
    assert_close(y, fc.ffn(x, w, activation="gelu"), "float32")


def test_out(gpu, rng):
    x, w = draw(rng, (2, 3, 24), np.float32), layer(rng, np.float32)
    y = fc.ffn(x, w, activation="silu")
    for memory in (np.zeros((2, 3, 24)), np.zeros((3, 2, 24)).swapaxes(0, 1), np.zeros((24, 6)).T):
        out = gpu.array(memory.astype(np.float32).reshape(2, 3, 24))
        assert fc.ffn(gpu.array(x), gpu.weights(w), activation="silu", out=out) is out
        assert_close(out, y, "float32")


def test_needs_and_out_of_gradients(gpu, rng):
    bits = np.dtype(np.float16)
    x, w = draw(rng, (7, 24), bits), layer(rng, bits)
    _, saved = fc.ffn_forward(x, w, activation="silu")
    _, saved_gpu = fc.ffn_forward(gpu.array(x), gpu.weights(w), activation="silu")
    grad = draw(rng, (7, 24), bits)
    only = fc.ffn_backward(gpu.array(grad), saved_gpu, needs=("down",))
    assert set(only.arrays()) == {"down"}
    assert_close(only.weights.down, fc.ffn_backward(grad, saved).weights.down, "float16")

    # float32 gradients of 16-bit weights, accumulated, in rows with gaps.
    out = {
        "x": np.ones((7, 24), bits),
        "up": np.ones((40, 30), np.float32)[:, :24],
        "b_down": np.ones(48, np.float32)[::2],
    }
    names = tuple(out)
    expected = fc.ffn_backward(grad, saved, needs=names)
    given = gpu.arrays(**out)
    found = fc.ffn_backward(gpu.array(grad), saved_gpu, needs=names, out=given, accumulate=True)
    for name, array in found.arrays().items():
        assert array is given[name]
        assert_close(array, expected.arrays()[name].astype(np.float64) + 1, "float16")


@pytest.mark.parametrize("bits", [d for d in FLOATS if d.itemsize == 2], ids=str)
@pytest.mark.parametrize("accumulate", [False, True])
def test_float32_gradient_of_x_beside_16_bits(gpu, bits, accumulate, rng):
    x, w, grad = draw(rng, (7, 24), bits), layer(rng, bits), draw(rng, (7, 24), bits)
    _, saved = fc.ffn_forward(x, w, activation="silu")
    _, saved_gpu = fc.ffn_forward(gpu.array(x), gpu.weights(w), activation="silu")
    expected = fc.ffn_backward(grad, saved, needs=("x",)).x.astype(np.float64)
    out = gpu.array(np.full((14, 24), 3, np.float32)[::2])
    found = fc.ffn_backward(
        gpu.array(grad), saved_gpu, needs=("x",), out={"x": out}, accumulate=accumulate
    )
    assert found.x is out
    assert_close(out, expected + 3 * accumulate, bits.name)


@pytest.mark.parametrize("accumulate", [False, True])
def test_gradient_of_x_whose_rows_do_not_merge(gpu, accumulate, rng):
    x, grad = draw(rng, (2, 3, 24), np.float32), draw(rng, (2, 3, 24), np.float32)
    w = layer(rng, np.float32)
    _, saved = fc.ffn_forward(x, w, activation="silu")
    _, saved_gpu = fc.ffn_forward(gpu.array(x), gpu.weights(w), activation="silu")
    out = gpu.array(np.full((3, 2, 24), 3, np.float32).swapaxes(0, 1))
    options = {"needs": ("x",), "out": {"x": out}, "accumulate": accumulate}
    assert fc.ffn_backward(gpu.array(grad), saved_gpu, **options).x is out
    expected = fc.ffn_backward(grad, saved, needs=("x",)).x
    assert_close(out, expected + 3 * accumulate, "float32")


def test_what_was_given_is_kept(gpu, rng):
    """A tensor may get other memory later, like the parameters of a module that is moved."""
    x, w = draw(rng, (5, 24), np.float32), layer(rng, np.float32)
    expected = fc.ffn(x, w, activation="silu")
    grad = draw(rng, (5, 24), np.float32)
    _, saved = fc.ffn_forward(x, w, activation="silu")
    x_gpu, w_gpu = gpu.array(x.copy()), gpu.weights(copied(w))
    _, saved_gpu = fc.ffn_forward(x_gpu, w_gpu, activation="silu", save="input")
    for array in (x_gpu, *w_gpu.arrays().values()):
        array.numpy_array = np.full(array.shape, np.nan, np.float32)
    assert_close(fc.ffn(gpu.array(x), w_gpu, activation="silu"), expected, "float32")
    found = fc.ffn_backward(gpu.array(grad), saved_gpu)
    for name, array in fc.ffn_backward(grad, saved).arrays().items():
        assert_close(found.arrays()[name], array, "float32")


def test_saved_gate_and_up_are_copies(gpu, rng):
    x, w = draw(rng, (5, 24), np.float32), layer(rng, np.float32)
    _, saved = fc.ffn_forward(gpu.array(x), gpu.weights(w), activation="silu")
    before = numbers(saved.up)
    saved.up.numpy_array[...] = 0
    np.testing.assert_array_equal(numbers(saved.up), before)


def test_accumulated_numbers(gpu, rng):
    x, w = draw(rng, (5, 24), np.float32), layer(rng, np.float32, gated=False)
    _, saved = fc.ffn_forward(gpu.array(x), gpu.weights(w), activation="xielu")
    grad = gpu.array(draw(rng, (5, 24), np.float32))
    once = fc.ffn_backward(grad, saved)
    twice = fc.ffn_backward(grad, saved, out=once, accumulate=True)
    for name in ("alpha_p", "alpha_n"):
        number = numbers(getattr(once.activation, name))
        np.testing.assert_allclose(numbers(getattr(twice.activation, name)), 2 * number)
    assert isinstance(twice.activation, XieluGrads)


def test_few_tokens_have_a_path_of_their_own(gpu, rng, monkeypatch):
    """A token has the same bits in any batch."""
    x, w = draw(rng, (16, 24), np.float32), gpu.weights(layer(rng, np.float32))

    def ffn(rows):
        return numbers(fc.ffn(gpu.array(rows), w, activation="silu"))

    np.testing.assert_array_equal(ffn(x)[3:4], ffn(x[3:4]))
    tiles = numbers(fc.ffn_forward(gpu.array(x), w, activation="silu")[0])
    monkeypatch.setenv("FFNCORE_CUDA_BATCH_INVARIANT", "1")
    np.testing.assert_array_equal(ffn(x), tiles)
    np.testing.assert_array_equal(ffn(np.tile(x, (9, 1)))[:16], tiles)


def test_the_libraries_are_not_imported():
    """Calls with numpy arrays neither open the CUDA library nor import cffi."""
    code = "import sys, ffncore; print([m for m in ('torch', 'cupy', 'cffi') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
