"""What docs/ and the README say of speed and accuracy is what the files of bench/results hold."""

from pathlib import Path

from test_bench import BENCH, in_tree, tool

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
pytestmark = in_tree


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
