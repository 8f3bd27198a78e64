"""examples/qat.py: its gradients, a short run in this process, and the whole command."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ffncore as fc

EXAMPLE = Path(__file__).parents[2] / "examples" / "qat.py"
pytest.importorskip("pydoc_data.topics")
pytestmark = pytest.mark.skipif(not EXAMPLE.exists(), reason="not run from the source tree")


@pytest.fixture(scope="module")
def example():
    """The module, which imports its neighbour, as it does when it is run."""
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(EXAMPLE.parent))
    patch.setattr(os, "environ", dict(os.environ))
    yield importlib.import_module("qat")
    for name in ("qat", "moe_training"):
        sys.modules.pop(name, None)
    patch.undo()


@pytest.fixture(scope="module")
def task(example):
    # Larger steps than in the example, because there are fewer.
    return example.Task(example.Config(held_out=300, learning_rate=1e-3))


@pytest.mark.parametrize("fmt", ["q1_0", "q2_0"])
def test_the_error_falls_clearly(example, task, fmt, capsys):
    before = task.error(fc.quantize(task.teacher, fmt))
    latent, rows = example.train(task, fmt, steps=120, every=50)
    assert [number for number, _ in rows] == [0, 50, 100, 120]
    assert rows[0][1] == before
    assert rows[-1][1] < 0.85 * before
    assert rows[-1][1] == task.error(fc.quantize(example.layer(latent), fmt))
    packed, differ = example.compare(task, latent, fmt)
    assert differ == 0
    assert packed.up.format == fmt
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_the_comparison_sees_another_number(example, task, monkeypatch):
    latent = {name: w.copy() for name, w in task.arrays.items()}
    fake = fc.fake_quantize

    def wrong(w, fmt):
        w_hat, saved = fake(w, fmt)
        w_hat[0, 0] += 1
        return w_hat, saved

    monkeypatch.setattr(fc, "fake_quantize", wrong)
    assert example.compare(task, latent, "q1_0")[1] > 2


def test_gradients_are_those_of_the_loss(example, task):
    """With weights of one sign, moved alike, only the scales of one bit change, whose part of the
    gradient is exact. What passes straight through is as much once more.
    """
    latent = {name: np.clip(np.abs(w), 0.01, w.std()) for name, w in task.arrays.items()}
    x = task.x[:50]
    grads = {}
    loss = example.step(latent, "q1_0", x, task.y[:50], grads)
    size = np.float32(1e-4)
    for name, w in latent.items():
        moved = {**latent, name: w + size}
        after = example.step(moved, "q1_0", x, task.y[:50], {})
        slope = float(grads[name].sum(dtype=float)) / 2
        assert (after - loss) / float(size) == pytest.approx(slope, rel=0.02)


@pytest.mark.slow
def test_the_whole_run(tmp_path):
    picture = tmp_path / "picture.png"
    command = [sys.executable, str(EXAMPLE), "--picture", str(picture)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    reached = [
        float(n) for n in re.findall(r"^trained in .* s: ([\d.]+), to reach", done.stdout, re.M)
    ]
    assert len(reached) == 2, done.stdout
    assert reached[0] <= 0.50
    assert reached[1] <= 0.45
    assert done.stdout.count(" 0 numbers differ") == 2
    assert picture.exists() or "matplotlib is missing" in done.stdout
