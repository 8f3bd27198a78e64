"""What docs/ and the README say of speed and accuracy is what the files of bench/results hold."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCH, DOCS = ROOT / "bench", ROOT / "docs"
pytestmark = pytest.mark.skipif(not BENCH.exists(), reason="not run from the source tree")


def tool(name):
    if str(BENCH) not in sys.path:
        sys.path.insert(0, str(BENCH))
    spec = importlib.util.spec_from_file_location(name, BENCH / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_accuracy():
    accuracy = tool("accuracy")
    rows = accuracy.read(accuracy.RESULTS), accuracy.read(accuracy.LAYERS)
    text = (DOCS / "accuracy.md").read_text("utf-8")
    assert text == accuracy.page(*rows)
    for machine, *_ in rows:
        assert machine["cpu"] in text
    assert "| NO |" not in text


def test_the_page_of_speed_and_the_readme():
    plot = tool("plot")
    peers = plot.read(BENCH / "results" / "peers.jsonl")
    text = (DOCS / "speed.md").read_text("utf-8")
    mixtures = plot.mixtures(BENCH / "results" / "moe.jsonl")
    assert text == plot.page(plot.table(peers), mixtures)
    assert peers["machine"][-1]["cpu"] in text
    readme = (ROOT / "README.md").read_text("utf-8")
    assert readme == plot.insert(readme, plot.table(peers, only=plot.SHORT))
