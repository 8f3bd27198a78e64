"""Fixtures: every instruction set, seeded numbers, and settings that are restored after a test."""

import os
import sys
import zlib

import numpy as np
import pytest
from fake_device import LIBRARIES
from support import DTYPES, debug_plan, own_kernels
from support_cuda import Gpu, build_library

import ffncore as fc
from ffncore import _core
from ffncore.arrays import libraries
from ffncore.backends.cuda import library as cuda_library

try:
    from hypothesis import settings
except ImportError:  # optional: without it the property tests are skipped
    pass
else:
    # The same examples in every run, so that a failure can be repeated everywhere.
    settings.register_profile("ffncore", deadline=None, derandomize=True, database=None)
    settings.load_profile("ffncore")


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    """A level repeats another's kernels for some dtypes: that is left to the long run."""
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        dtype = params.get("dtype", params.get("narrow"))
        if "isa" in params and dtype is not None and params["isa"] not in own_kernels(dtype):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(params=fc.available_isas())
def isa(request):
    """Runs the test once in every instruction set of this machine."""
    with fc.using_isa(request.param):
        yield request.param


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["plain", "gated"])
def gated(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["on-output", "on-input"])
def on_input(request):
    """Whether the routing weight multiplies the input or the output of an expert: both."""
    return request.param


@pytest.fixture
def rng(request):
    """Random numbers of this test, the same in every run and in every instruction set."""
    return np.random.default_rng(zlib.crc32(request.node.originalname.encode()))


@pytest.fixture
def plan():
    """Sets the sizes of the plan's chunks; the plan's own values are restored afterwards."""
    yield debug_plan
    _core.debug_plan()


@pytest.fixture
def always_threads():
    """Small calls use all threads, too."""
    debug_plan()
    yield
    _core.debug_plan()


@pytest.fixture(scope="session")
def emulated_cuda(tmp_path_factory):
    """The path of the CUDA library, built for the CPU."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # one for all workers
        folder = folder.parent
    return build_library(folder / "cuda")


@pytest.fixture(params=sorted(LIBRARIES))
def gpu(request, emulated_cuda, monkeypatch):
    """An emulated GPU, once with torch tensors and once with CuPy arrays."""
    make, array = LIBRARIES[request.param]
    monkeypatch.setitem(sys.modules, request.param, make())
    monkeypatch.setattr(cuda_library, "LIBRARY", emulated_cuda)
    for cached in (cuda_library.cuda, libraries._library, libraries._library_of_type):
        cached.cache_clear()
    yield Gpu(request.param, sys.modules[request.param], array)
    for cached in (cuda_library.cuda, libraries._library, libraries._library_of_type):
        cached.cache_clear()
