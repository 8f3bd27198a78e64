"""examples/moe_training.py: its gradients, and the output of a short run."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ffncore as fc

EXAMPLE = Path(__file__).parents[2] / "examples" / "moe_training.py"
pytest.importorskip("pydoc_data.topics")
pytestmark = pytest.mark.skipif(not EXAMPLE.exists(), reason="not run from the source tree")


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("moe_training", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["moe_training"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["moe_training"]


@pytest.mark.parametrize("aux", [0.0, 0.3])
def test_gradients(example, aux):
    """Gradients of cross-entropy plus aux times the load-balancing loss, for every parameter."""
    config = example.Config(context=3, channels=2, d_ff=5, n_experts=4, top_k=2, aux=aux)
    rng = np.random.default_rng(0)
    p = example.new_parameters(config, 7, seed=1, dtype=np.float64)
    p["router"] *= 50  # the chosen experts must not change while an entry is changed
    read, targets = rng.integers(7, size=(9, 3)), rng.integers(7, size=9)

    def model(**p):
        grads = {name: np.full_like(a, np.nan) for name, a in p.items()}
        loss, auxiliary, _ = example.losses(p, read, targets, config, grads)
        return np.array(loss + auxiliary), lambda g: {n: g * a for n, a in grads.items()}

    report = fc.check_gradients(model, p)
    assert report.keys() == p.keys()
    assert all(entry.backward != 0 for entry in report.values())


def test_adam_first_steps(example):
    """With one gradient g again and again, each step is rate * sign(g)."""
    p = {"a": np.array([1.0, -2.0, 3.0])}
    adam = example.Adam(p, 0.1)
    for _ in range(3):
        adam.step({"a": np.array([4.0, -0.5, 0.0])})
    np.testing.assert_allclose(p["a"], [0.7, -1.7, 3.0], rtol=1e-6)


def test_held_out_text_is_new(example):
    text = example.read_text()
    ids, held_out, vocabulary = example.encode(text)
    assert len(ids) > 100_000
    assert len(ids) + len(held_out) == len(text)
    assert max(ids.max(), held_out.max()) < vocabulary
    long = [part for part in text[len(ids) :].split("\n\n")[1:] if len(part) > 80]
    assert long
    assert not any(part in text[: len(ids)] for part in long)


@pytest.mark.slow
def test_short_run(tmp_path):
    picture = tmp_path / "picture.png"
    command = [sys.executable, str(EXAMPLE), "--steps", "240", "--every", "80"]
    done = subprocess.run(
        [*command, "--picture", str(picture)], capture_output=True, encoding="utf-8", cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    row = r"^ +\d+ +([\d.]+) +([\d.]+) +(\d+)% +([\d.]+) +[▁-█]{16}$"
    rows = [[float(n) for n in found] for found in re.findall(row, done.stdout, re.MULTILINE)]
    assert len(rows) == 6, done.stdout
    without, balanced = rows[:3], rows[3:]
    unigram = float(re.search(r"has a loss of ([\d.]+)\)", done.stdout)[1])
    for run in (without, balanced):
        assert run[0][0] > run[1][0] > run[2][0]
        assert run[2][1] < unigram - 1  # nats, on text that was not trained on
    # Busiest expert of 16 and coefficient of variation.
    assert without[2][2] > 16
    assert balanced[2][2] < 12
    assert without[2][3] > 1
    assert balanced[2][3] < 0.4
    assert picture.exists() or "matplotlib is missing" in done.stdout
