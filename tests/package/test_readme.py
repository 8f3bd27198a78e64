"""The Python code in README.md runs from top to bottom; its commands and links exist."""

import re
from pathlib import Path

import numpy as np
import pytest

import ffncore as fc

README = Path(__file__).parents[2] / "README.md"
pytestmark = pytest.mark.skipif(not README.exists(), reason="not run from the source tree")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README.read_text("utf-8"), re.DOTALL)


def test_snippets_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    safetensors = pytest.importorskip("safetensors.numpy")
    rng = np.random.default_rng(0)
    tensors = {
        "encoder.layer.3.intermediate.dense.weight": rng.standard_normal((8, 4)),
        "encoder.layer.3.intermediate.dense.bias": rng.standard_normal(8),
        "encoder.layer.3.output.dense.weight": rng.standard_normal((4, 8)),
        "encoder.layer.3.output.dense.bias": rng.standard_normal(4),
    }
    safetensors.save_file(
        {n: t.astype("f4") for n, t in tensors.items()}, tmp_path / "model.safetensors"
    )
    (tmp_path / "config.json").write_text('{"model_type": "bert", "hidden_act": "gelu"}', "utf-8")
    names = {}
    before = fc.get_num_threads()
    np.random.seed(0)  # noqa: NPY002 (the snippets use the short form)
    try:
        for number, code in enumerate(blocks("python")):
            code = code.replace("path/to/model", str(tmp_path))
            exec(compile(code, f"README.md, block {number + 1}", "exec"), names)
            if number == 0:
                assert np.array_equal(names["y"], names["same"])
                assert names["grads"].weights.up.shape == (8, 4)
    finally:
        fc.set_num_threads(before)
    assert "scalar" in capsys.readouterr().out


def test_first_example_is_short():
    lines = [line for line in blocks("python")[0].splitlines() if line.strip()]
    assert len([line for line in lines if not line.startswith("import ")]) <= 8


def test_table_is_short():
    table = (
        README.read_text("utf-8").partition("<!-- bench:begin")[2].partition("<!-- bench:end")[0]
    )
    assert 2 < len([line for line in table.splitlines() if line.startswith("|")]) <= 8 + 2


def test_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)#:]+)\)", README.read_text("utf-8"))
    assert targets
    # The chart is drawn from committed results, which may not exist yet.
    missing = [t for t in targets if not (README.parent / t).exists() and t != "docs/share.png"]
    assert not missing


def test_commands_exist():
    makefile = (README.parent / "Makefile").read_text("utf-8")
    for target in re.findall(r"^make (\w+)", "\n".join(blocks("sh")), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
