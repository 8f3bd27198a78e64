"""The arguments of calls to the CUDA library: addresses, strides, stream, device, workspace.

A recorder stands for the library and computes nothing. So tests can have a second device, and
arrays whose memory does not exist."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_device import LIBRARIES, Tensor, ndarray

import ffncore as fc
from ffncore.arrays import libraries
from ffncore.backends.cuda import layer, routing
from ffncore.backends.cuda import library as cuda_library

WORKSPACE = 512
D, F, N, K, T = 6, 10, 3, 2, 4
# An address that no process can have: reading there ends the process.
FAR = 1 << 62


class Recorder:
    """Stands for the library; records calls by name, with the structs that they got."""

    FFNCORE_OK, FFNCORE_INVALID_ARGUMENT, FFNCORE_OUT_OF_MEMORY, FFNCORE_UNSUPPORTED = range(4)

    def __init__(self, ffi):
        self.calls, self.status = [], 0
        self.sentence = ffi.new("char[]", b"so it was said")

    def ffncore_cuda_last_error(self):
        return self.sentence

    def __getattr__(self, name):
        def call(args, call):
            self.calls.append((name.removeprefix("ffncore_cuda_"), args, call))
            return WORKSPACE if name.endswith("workspace") else self.status

        return call

    def one(self, name):
        """The arguments and the place of the only call of that name."""
        (found,) = [(args, call) for called, args, call in self.calls if called == name]
        self.calls.clear()
        return found


def recording(monkeypatch, name):
    """A recorder in the place of the library, and functions that make arrays."""
    import cffi

    ffi = cffi.FFI()
    for header in ("ffncore.h", "ffncore_cuda.h"):
        ffi.cdef(cuda_library.declarations((cuda_library.PACKAGE / "include" / header).read_text()))
    recorder = Recorder(ffi)
    recorder.ffi = ffi
    make, array = LIBRARIES[name]
    monkeypatch.setitem(sys.modules, name, make())
    for cached in (libraries._library, libraries._library_of_type):
        cached.cache_clear()
    for module in (layer, routing):
        monkeypatch.setattr(module, "cuda", lambda: cuda_library.Cuda(ffi, recorder))
    return recorder, array


@pytest.fixture(params=sorted(LIBRARIES))
def library(request, monkeypatch):
    recorder, array = recording(monkeypatch, request.param)
    recorder.name = request.param
    yield recorder, array
    for cached in (libraries._library, libraries._library_of_type):
        cached.cache_clear()


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


def address(ffi, pointer):
    return int(ffi.cast("uintptr_t", pointer))


def given(array):
    """A matrix in the form that structs have."""
    strides = (stride // array.itemsize for stride in array.strides)
    return [array.__array_interface__["data"][0], *array.shape, *strides]


def matrix(ffi, m):
    return [address(ffi, m.data), m.rows, m.cols, m.row_stride, m.col_stride]


def test_where_a_call_runs(library):
    recorder, array = library
    w = fc.FFNWeights(up=array(zeros(F, D), 1), down=array(zeros(D, F), 1))
    y = fc.ffn(array(zeros(T, D), 1), w, activation="silu")
    assert y.device_index == 1
    _, call = recorder.one("forward")
    assert call.device == 1
    assert address(recorder.ffi, call.stream) == {"torch": 1001, "cupy": 2001}[recorder.name]
    assert call.workspace_bytes == WORKSPACE
    assert address(recorder.ffi, call.workspace) % 256 == 0
    assert call.batch_invariant == 0


def test_nothing_is_copied(library):
    recorder, array = library
    ffi = recorder.ffi
    x, out = zeros(D, T).T, zeros(2 * T, D)[::2]
    arrays = {"gate": zeros(2 * F, D)[::2], "up": zeros(F, 9)[:, :D], "down": zeros(F, D).T}
    arrays["b_up"] = zeros(3 * F)[::3]
    w = fc.FFNWeights(**{name: array(a) for name, a in arrays.items()})
    fc.ffn(array(x), w, activation="silu", out=array(out))
    args, _ = recorder.one("forward")
    assert matrix(ffi, args.x) == given(x)
    assert matrix(ffi, args.y) == given(out)
    first = args.experts.first
    for name in ("gate", "up", "down"):
        assert matrix(ffi, getattr(first, name)) == given(arrays[name])
    assert first.b_up.stride == 3
    assert first.b_gate.data == ffi.NULL
    assert args.expert_ids == ffi.NULL
    assert args.experts.count == 1


def test_weights_are_looked_at_once(library, monkeypatch):
    _, array = library
    w = fc.FFNWeights(up=array(zeros(F, D)), down=array(zeros(D, F)))
    fc.ffn(array(zeros(T, D)), w, activation="silu")
    monkeypatch.setattr(cuda_library.Cuda, "experts", None)
    fc.ffn(array(zeros(T, D)), w, activation="silu")


@pytest.mark.parametrize("status", [1, 2, 3])
def test_statuses(library, status):
    recorder, array = library
    w = fc.FFNWeights(up=array(zeros(F, D)), down=array(zeros(D, F)))
    recorder.status = status
    error = {1: ValueError, 2: MemoryError, 3: RuntimeError}[status]
    with pytest.raises(error, match=r"^so it was said$"):
        fc.ffn(array(zeros(T, D)), w, activation="silu")


def every_call(array, device=0):
    """All functions with every kind of argument, on arrays that must not be read."""

    def put(a):
        return array(a, device)

    lead = zeros(2, 2, D).transpose(1, 0, 2)  # rows by a copy
    for experts in ((), (N,)):
        w = fc.FFNWeights.from_gate_up(put(zeros(*experts, 2 * F, D)), put(zeros(*experts, D, F)))
        assert repr(w)
        run, more = (fc.ffn_forward, ()), ()
        backward = fc.ffn_backward
        if experts:
            for dtype in (np.uint8, np.int32, np.int64):
                ids = put(zeros(2, 2, K, dtype=dtype))
                weights = put(zeros(2, 2, 2 * K)[..., ::2])
                routing = fc.Routing(experts=ids, weights=weights, n_experts=N)
            assert repr(routing)
            assert routing.counts.shape == (N,)
            run, more, backward = (fc.moe_forward, ()), (routing,), fc.moe_backward
            assert w.expert(1).up.shape == (F, D)
        for x in (zeros(2, 2, D), lead):
            for activation in ("silu", "xielu"):
                _, saved = run[0](put(x), *more, w, activation=activation, out=put(lead.copy("K")))
                assert repr(saved)
                assert saved.gate.shape == saved.up.shape
                grads = backward(put(lead), saved)
                grads = backward(put(lead), saved, out=grads, accumulate=True)
                backward(put(x), saved, out={"x": put(lead.copy("K"))}, accumulate=True)
                assert repr(grads)
    routing = fc.route(put(zeros(2, T, N).transpose(1, 0, 2)), K)
    fc.route_backward(put(zeros(2, T, 2 * K)[..., ::2].transpose(1, 0, 2)), routing)
    ids = put(zeros(T, K, dtype=np.int64))
    fc.route(put(zeros(T, N)), K, experts=ids)


def test_another_device_than_the_current_one(library):
    recorder, array = library
    every_call(array, 1)
    assert {call.device for _, _, call in recorder.calls} == {1}


def nobody_reads(name):
    """Runs in a separate process, which a read would end."""
    # What the array library itself computes is done by numpy, in memory that exists.
    Tensor.data_ptr = lambda self: self.numpy_array.__array_interface__["data"][0] + FAR

    class Pointer:
        def __init__(self, array):
            self.ptr = array.__array_interface__["data"][0] + FAR

    ndarray.data = property(lambda self: Pointer(self.numpy_array))
    with pytest.MonkeyPatch.context() as monkeypatch:
        recorder, array = recording(monkeypatch, name)
        every_call(array)
        w = fc.FFNWeights(up=array(zeros(F, D)), down=array(zeros(D, F)))
        x = array(zeros(T, D))
        with pytest.raises(ValueError, match=re.escape("out overlaps x")):
            fc.ffn(x, w, activation="silu", out=x)
        seen = w._place.ghost("x", x)
        assert seen.__array_interface__["data"][0] >= FAR
        assert recorder.calls


@pytest.mark.parametrize("name", sorted(LIBRARIES))
def test_device_memory_is_never_read(name):
    here = Path(__file__).parent
    paths = [str(here), str(here.parent)]
    imports = f"import sys; sys.path[:0] = {paths}; import test_device_calls as t"
    code = f"{imports}; t.nobody_reads({name!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
