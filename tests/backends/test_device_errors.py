"""The errors of calls with arrays on a GPU, and their sentences."""

import re

import numpy as np
import pytest
from fake_device import TorchDtype
from support import unaligned

import ffncore as fc
from ffncore.arrays import places
from ffncore.backends.cuda import library as cuda_library

D, F, N, K = 6, 10, 3, 2


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


def weights(put, *lead, dtype=np.float32, **more):
    arrays = {
        "up": zeros(*lead, F, D, dtype=dtype),
        "down": zeros(*lead, D, F, dtype=dtype),
        **more,
    }
    return fc.FFNWeights(**{name: put(array) for name, array in arrays.items()})


def refused(error, sentence):
    return pytest.raises(error, match=re.escape(sentence))


def place(gpu, device=0):
    return {"torch": "a torch tensor", "cupy": "a CuPy array"}[gpu.name] + f" on cuda:{device}"


@pytest.mark.usefixtures("gpu")
def test_show_config(monkeypatch, tmp_path, emulated_cuda, capsys):
    fc.show_config()
    assert "built; devices that it can run on: 1" in capsys.readouterr().out
    for cached, sentence in ((tmp_path / "none.so", "not built"), (emulated_cuda, "none of the 0")):
        monkeypatch.setattr(cuda_library, "LIBRARY", cached)
        monkeypatch.setenv("EMULATED_CUDA_DEVICES", "0")
        cuda_library.cuda.cache_clear()
        fc.show_config()
        assert sentence in capsys.readouterr().out


def test_without_the_library(gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(cuda_library, "LIBRARY", tmp_path / "libffncore_cuda.so")
    with refused(
        RuntimeError, "built without its CUDA part; expected a build from source with nvcc"
    ):
        fc.ffn(gpu.array(zeros(2, D)), weights(gpu.array), activation="silu")


def test_a_library_that_does_not_load(gpu, monkeypatch, tmp_path):
    (tmp_path / "libffncore_cuda.so").write_bytes(b"of another machine")
    monkeypatch.setattr(cuda_library, "LIBRARY", tmp_path / "libffncore_cuda.so")
    with refused(RuntimeError, "ffncore's CUDA part cannot be loaded; expected a library for this"):
        fc.ffn(gpu.array(zeros(2, D)), weights(gpu.array), activation="silu")


def test_without_a_device(gpu, monkeypatch, emulated_cuda):
    monkeypatch.setattr(cuda_library, "LIBRARY", emulated_cuda)
    monkeypatch.setenv("EMULATED_CUDA_DEVICES", "0")
    with refused(RuntimeError, "none of the 0 GPUs here has compute capability 8.0 or later"):
        fc.ffn(gpu.array(zeros(2, D)), weights(gpu.array), activation="silu")


def test_mixed_with_numpy(gpu):
    on_gpu, x = weights(gpu.array), gpu.array(zeros(2, D))
    with refused(TypeError, f"x is a numpy array; expected {place(gpu)}, as the other arrays"):
        fc.ffn(zeros(2, D), on_gpu, activation="silu")
    with refused(TypeError, "weights are FFNWeights of numpy arrays; expected arrays on the GPU"):
        fc.ffn(x, weights(np.asarray), activation="silu")
    with refused(
        TypeError, "weights are packed for a CPU; expected FFNWeights of arrays on the GPU"
    ):
        fc.ffn(x, fc.pack(weights(np.asarray)), activation="silu")
    with refused(TypeError, f"weights.up is {place(gpu)}; expected numpy arrays"):
        fc.pack(on_gpu)
    with refused(TypeError, f"out is a numpy array; expected {place(gpu)}"):
        fc.ffn(x, on_gpu, activation="silu", out=zeros(2, D))
    with refused(TypeError, f"down is a numpy array; expected {place(gpu)}"):
        fc.FFNWeights(up=gpu.array(zeros(F, D)), down=zeros(D, F))
    with refused(TypeError, f"down is {place(gpu)}; expected a numpy array, as the other arrays"):
        fc.FFNWeights(up=zeros(F, D), down=gpu.array(zeros(D, F)))
    routing = fc.Routing(experts=zeros(2, K, dtype=np.int32), weights=zeros(2, K))
    with refused(TypeError, f"routing is made of numpy arrays; expected {place(gpu)}"):
        fc.moe(x, routing, weights(gpu.array, N), activation="silu")
    ids = gpu.array(zeros(2, K, dtype=np.int32))
    routing = fc.Routing(experts=ids, weights=gpu.array(zeros(2, K)))
    with refused(TypeError, "weights are FFNWeights of numpy arrays; expected arrays on the GPU"):
        fc.moe(zeros(2, D), routing, weights(np.asarray, N), activation="silu")
    _, saved = fc.ffn_forward(x, on_gpu, activation="silu")
    with refused(TypeError, f"grad_y is a numpy array; expected {place(gpu)}"):
        fc.ffn_backward(zeros(2, D), saved)
    with refused(TypeError, f"out.x is a numpy array; expected {place(gpu)}"):
        fc.ffn_backward(x, saved, out={"x": zeros(2, D)})
    with refused(TypeError, f"e_score_correction_bias is a numpy array; expected {place(gpu)}"):
        fc.route(gpu.array(zeros(2, N)), K, e_score_correction_bias=zeros(N))


def test_two_devices(gpu):
    x = gpu.array(zeros(2, D), 1)
    with refused(ValueError, f"x is {place(gpu, 1)}; expected {place(gpu)}, as the other arrays"):
        fc.ffn(x, weights(gpu.array), activation="silu")


def test_shapes_and_dtypes(gpu):
    w, x = weights(gpu.array), gpu.array(zeros(2, D))
    with refused(ValueError, "x has shape (2, 7); expected a last dimension of 6"):
        fc.ffn(gpu.array(zeros(2, 7)), w, activation="silu")
    with refused(TypeError, "x has dtype float16; expected float32"):
        fc.ffn(gpu.array(zeros(2, D, dtype=np.float16)), w, activation="silu")
    with refused(TypeError, "w.up has dtype float64; expected float32, bfloat16 or float16 on"):
        double = weights(gpu.array, dtype=np.float64)
        fc.ffn(gpu.array(zeros(2, D, dtype=np.float64)), double, activation="silu")
    with refused(TypeError, "up has dtype int32"):
        weights(gpu.array, dtype=np.int32)
    with refused(ValueError, "down has shape (6, 9); expected (6, 10) to match up (10, 6)"):
        weights(gpu.array, down=zeros(D, 9))
    with refused(ValueError, "option limit is for layers with a gate"):
        fc.ffn(x, w, activation=fc.Activation("silu", limit=1.0))
    with refused(TypeError, "logits has dtype float64; expected float32 on a GPU"):
        fc.route(gpu.array(zeros(2, N, dtype=np.float64)), K)
    with refused(ValueError, "top_k is 9; expected 1 to 3"):
        fc.route(gpu.array(zeros(2, N)), 9)
    with refused(TypeError, "experts has dtype float32; expected an integer dtype"):
        fc.Routing(experts=gpu.array(zeros(2, K)), weights=gpu.array(zeros(2, K)))
    with refused(ValueError, "weights has shape (2, 1); expected (2, 2) to match experts"):
        ids = gpu.array(zeros(2, K, dtype=np.int32))
        fc.Routing(experts=ids, weights=gpu.array(zeros(2, 1)))


def test_strides_that_no_kernel_reads(gpu):
    gaps = np.zeros((2 * F, 2 * D), np.float32)[::2, ::2]
    x = gpu.array(zeros(2, D))
    sentence = "w.up has strides of (24, 2) elements; expected 1 in one of the last two dim"
    with refused(ValueError, sentence):
        fc.ffn(x, weights(gpu.array, up=gaps), activation="silu")
    turned = weights(gpu.array, gate=np.zeros((D, F), np.float32).T)
    sentence = (
        "w.gate has contiguous columns and w.up has contiguous rows; expected the same of both"
    )
    with refused(ValueError, sentence):
        fc.ffn(x, turned, activation="silu")
    # The stride of a dimension with one element does not matter.
    row = np.zeros((D, 2), np.float32)[:, :1].T
    fc.ffn(x, fc.FFNWeights(up=gpu.array(row), down=gpu.array(zeros(D, 1))), activation="silu")


def test_outputs_that_overlap(gpu):
    memory = zeros(4, D)
    x, w = gpu.array(memory[:2]), weights(gpu.array)
    with refused(ValueError, "out overlaps x; expected memory of its own"):
        fc.ffn(x, w, activation="silu", out=gpu.array(memory[1:3]))
    assert fc.ffn(x, w, activation="silu", out=gpu.array(memory[2:])) is not None
    with refused(ValueError, "so that elements share memory"):
        same = np.broadcast_to(zeros(D), (2, D))
        same.flags.writeable = True
        fc.ffn(x, w, activation="silu", out=gpu.array(same))
    _, saved = fc.ffn_forward(x, w, activation="silu")
    grad = gpu.array(zeros(2, D))
    with refused(ValueError, "out.x overlaps x"):
        fc.ffn_backward(grad, saved, out={"x": x})
    with refused(ValueError, "accumulate is True and out is None"):
        fc.ffn_backward(grad, saved, accumulate=True)
    with refused(TypeError, "out is of type int; expected FFNGrads or a mapping"):
        fc.ffn_backward(grad, saved, out=3)


def test_tensors_that_torch_records(gpu):
    if gpu.name != "torch":
        return
    x, w = gpu.array(zeros(2, D)), weights(gpu.array)
    x.requires_grad = True
    with refused(ValueError, "x requires grad, which ffncore does not record; expected x.detach()"):
        fc.ffn(x, w, activation="silu")
    with refused(ValueError, "up requires grad, which ffncore does not record"):
        fc.FFNWeights(up=x, down=x)
    gpu.module.is_grad_enabled = lambda: False
    fc.ffn(x, w, activation="silu")
    # The arguments of the forward pass are not checked again.
    _, saved = fc.ffn_forward(x, w, activation="silu")
    gpu.module.is_grad_enabled = lambda: True
    assert fc.ffn_backward(gpu.array(zeros(2, D)), saved).x.shape == (2, D)


def test_tensors_on_the_cpu(gpu):
    if gpu.name != "torch":
        return
    x = gpu.array(zeros(2, D))
    x.is_cuda = False
    sentence = "x is a torch tensor on cpu; expected a numpy array (pass x.detach().numpy())"
    for w in (weights(np.asarray), weights(gpu.array)):
        with refused(TypeError, sentence):
            fc.ffn(x, w, activation="silu")
    down = gpu.array(zeros(D, F))
    down.is_cuda = False
    for up in (zeros(F, D), gpu.array(zeros(F, D))):
        with refused(TypeError, "down is a torch tensor on cpu; expected a numpy array (pass"):
            fc.FFNWeights(up=up, down=down)


def test_arrays_of_other_libraries(gpu):
    class Foreign:
        def __dlpack_device__(self):
            return 2, 0

    hint = "torch.from_dlpack and cupy.from_dlpack make one of it without a copy"

    def refused_as(name):
        return pytest.raises(TypeError, match=f"{name} is of type Foreign.*{re.escape(hint)}")

    for w in (weights(gpu.array), weights(np.asarray)):
        with refused_as("x"):
            fc.ffn(Foreign(), w, activation="silu")
    with refused_as("up"):
        fc.FFNWeights(up=Foreign(), down=Foreign())
    with refused_as("down"):
        fc.FFNWeights(up=gpu.array(zeros(F, D)), down=Foreign())
    with refused_as("gate_up"):
        fc.FFNWeights.from_gate_up(Foreign(), Foreign())
    with refused_as("experts"):
        fc.Routing(experts=Foreign(), weights=Foreign())
    with refused_as("logits"):
        fc.route(Foreign(), K)


def test_objects_of_a_library_that_are_no_arrays(gpu):
    module = type("Linear", (), {"__module__": gpu.name})()
    with refused(TypeError, "x is of type Linear; expected a numpy array"):
        fc.ffn(module, weights(np.asarray), activation="silu")
    with refused(TypeError, f"x is of type Linear; expected {place(gpu)}, as the other arrays"):
        fc.ffn(module, weights(gpu.array), activation="silu")


def test_dtypes_that_numpy_lacks(gpu, monkeypatch):
    if gpu.name != "torch":
        return
    w, x = weights(gpu.array), gpu.array(zeros(2, D, dtype=np.uint8))
    for name in ("float8_e5m2", "float8_of_tomorrow"):  # ml_dtypes has the first
        x.own_dtype = TorchDtype(name, np.dtype(np.uint8))
        with refused(TypeError, f"x has dtype {name}; expected float32"):
            fc.ffn(x, w, activation="silu")

    def without_ml_dtypes(name):
        raise TypeError(name)

    monkeypatch.setattr(places, "numpy_dtype", without_ml_dtypes)
    x = gpu.array(zeros(2, D, dtype=np.int16))
    x.own_dtype = TorchDtype("bfloat16", np.dtype(np.int16))
    with refused(TypeError, "x has dtype bfloat16, for which numpy needs ml_dtypes"):
        fc.ffn(x, w, activation="silu")


def test_elements_that_are_not_aligned(gpu):
    if gpu.name != "cupy":  # torch makes no such tensor
        return
    x = unaligned(np.zeros((2, D), np.float32))
    with refused(ValueError, "expected multiples of an element"):
        fc.ffn(gpu.array(x), weights(gpu.array), activation="silu")


def test_what_is_only_for_numpy(gpu):
    with refused(TypeError, "expected a numpy array"):
        fc.activation(gpu.array(zeros(2, D)), activation="silu")
