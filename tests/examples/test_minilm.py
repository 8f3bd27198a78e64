"""examples/minilm.py on the real weights, where `make demo` has put them."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "minilm.py"
pytest.importorskip("tokenizers")
pytest.importorskip("safetensors")
if not any((EXAMPLE.parents[1] / "build" / "minilm").rglob("model.safetensors")):
    pytest.skip("build/minilm has no weights (make demo brings them)", allow_module_level=True)


def test_minilm(tmp_path):
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "--no-bench"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "largest deviation from float64" in done.stdout
    assert len(EXAMPLE.read_text("utf-8").splitlines()) <= 200
