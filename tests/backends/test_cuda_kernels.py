"""The CUDA kernels on a CPU: runs each program of tests/cuda, which emulates CUDA."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

PROGRAMS = sorted((Path(__file__).parents[1] / "cuda").glob("test_*.cpp"))
CXX = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
FLAGS = ["-std=c++20", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
# The others take 3 to 30 seconds each, and test_device*.py reach the same kernels from Python.
QUICK = ("test_activation",)


def test_there_are_programs():
    assert len(PROGRAMS) >= 5


@pytest.mark.skipif(CXX is None, reason="no C++ compiler")
@pytest.mark.parametrize(
    "source",
    [
        pytest.param(path, id=path.stem, marks=() if path.stem in QUICK else pytest.mark.slow)
        for path in PROGRAMS
    ],
)
def test_kernels(source, tmp_path):
    program = tmp_path / source.stem
    compiled = subprocess.run(
        [CXX, *FLAGS, "-Werror", "-I", source.parent, source, "-o", program],
        capture_output=True,
        text=True,
    )
    assert compiled.returncode == 0, compiled.stderr
    ran = subprocess.run([program], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
