"""Compiles examples/embed.c against the installed header and library, and runs it."""

import importlib.resources
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "examples" / "embed.c"
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


@pytest.mark.skipif(not SOURCE.exists(), reason="not run from the source tree")
@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
def test_embed(tmp_path):
    package = importlib.resources.files("ffncore")
    program = tmp_path / "embed"
    subprocess.run(
        [COMPILER, "-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", str(SOURCE), "-o", program]
        + [f"-I{package / 'include'}", f"-L{package}", "-lffncore", "-lm", f"-Wl,-rpath,{package}"],
        check=True,
    )
    done = subprocess.run([program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith("ffncore ")
    assert len(done.stdout.splitlines()) == 1
