"""The CUDA library on a CPU, where CUDA is emulated, for tests of the Python side."""

import concurrent.futures
import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from fake_device import Wrapped

import ffncore as fc

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
CXX = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
# -O1: compiling takes longer than what the tests compute.
FLAGS = ["-std=c++20", "-O1", "-ffp-contract=off", "-fPIC", "-Wno-unknown-pragmas"]


def build_library(folder):
    """libffncore_cuda.so, whose device is the machine itself; built once in a folder."""
    if CXX is None or not SOURCES:
        pytest.skip("no C++ compiler, or no sources")
    folder.mkdir(exist_ok=True)
    library = folder / "libffncore_cuda.so"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            _build(library)
    return library


def _build(library):
    folder = library.parent

    def compiled(source):
        to = folder / f"{source.stem}.o"
        words = ["-I", ROOT / "tests" / "cuda", "-x", "c++", "-c", source, "-o", to]
        subprocess.run([CXX, *FLAGS, *words], check=True)
        return to

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, SOURCES))
    subprocess.run([CXX, "-shared", *objects, "-o", library], check=True)


class Gpu:
    """A stand-in for an array library, and what tests do with it."""

    def __init__(self, name, module, array):
        self.name, self.module, self.array = name, module, array

    def arrays(self, **arrays):
        return {name: None if a is None else self.array(a) for name, a in arrays.items()}

    def weights(self, w):
        """The same FFNWeights on the device."""
        return fc.FFNWeights(**self.arrays(**w.arrays()))

    def routing(self, routing):
        arrays = self.arrays(experts=routing.experts, weights=routing.weights)
        return fc.Routing(**arrays, n_experts=routing.n_experts)


def numbers(array):
    """The numbers of an array on the device, in float64."""
    assert isinstance(array, Wrapped)
    return array.numpy_array.astype(np.float64)


# Relative to the largest entry: float32 sums have another order; h and the outputs of experts are
# rounded once.
TOLERANCE = {"float32": 2e-5, "float16": 4e-3, "bfloat16": 3e-2}


def assert_close(array, expected, dtype):
    """dtype: the narrowest dtype in the computation."""
    expected = np.asarray(expected, np.float64)
    found = numbers(array)
    assert found.shape == expected.shape
    largest = np.abs(expected).max(initial=0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE[dtype] * largest + 1e-30)
