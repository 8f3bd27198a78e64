"""quantize_checkpoint: the sums, the progress bar, and nothing under the name after an error."""

import itertools
import json
import sys

import numpy as np
import pytest
from support import Terminal
from support_checkpoints import LLAMA, llama, write

import ffncore as fc
from ffncore.models.writing.quantize import quantize_checkpoint


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    return write(folder, {**llama(2, 256, 512), "other": np.zeros(1000, "f4")}, LLAMA)


OUTS = ["out", "out.safetensors", "out.gguf"]


@pytest.mark.parametrize("name", OUTS)
def test_sums_and_bytes(source, tmp_path, name):
    formats = {"up": "q4_k", "down": "q6_k"}
    written = quantize_checkpoint(source, tmp_path / name, formats)
    assert written.formats == formats
    assert written.sums.keys() == {"up", "down"}
    for field, format in formats.items():
        arrays = [getattr(fc.load(source, n).weights, field) for n in range(2)]
        hats = [fc.quantize(w, format).dequantize() for w in arrays]
        expected = np.linalg.norm(np.subtract(hats, arrays)) / np.linalg.norm(arrays)
        sums = written.sums[field]
        assert sums.weights == 2 * 256 * 512
        assert sums.bits_per_weight == fc.formats()[format].bits_per_weight
        assert sums.error == pytest.approx(expected, 1e-5)
    assert written.before == (source / "model.safetensors").stat().st_size
    out = tmp_path / name
    file = out / "model.safetensors" if out.is_dir() else out
    assert written.after == file.stat().st_size < written.before


@pytest.mark.parametrize("name", OUTS)
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_failure_leaves_nothing(source, tmp_path, name, wrong):
    tensors = llama(2, 256, 512)
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = wrong
    write(source, tensors)
    with pytest.raises(ValueError, match=r"down_proj.weight has (nan|inf) at \(3, 5\)"):
        quantize_checkpoint(source, tmp_path / name, "q4_0")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("name", OUTS)
def test_an_existing_name_is_kept(source, tmp_path, name):
    (tmp_path / name).write_bytes(b"kept")
    with pytest.raises(ValueError, match="exists; expected a name that is not in use"):
        quantize_checkpoint(source, tmp_path / name, "q4_0")
    assert (tmp_path / name).read_bytes() == b"kept"


def test_gate_and_up_in_one_tensor(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {
        "model.layers.0.mlp.gate_up_proj.weight": rng.standard_normal((64, 64)).astype("f4"),
        "model.layers.0.mlp.down_proj.weight": rng.standard_normal((64, 32)).astype("f4"),
    }
    write(tmp_path, tensors, {"model_type": "phi3", "hidden_act": "silu"})
    written = quantize_checkpoint(tmp_path, tmp_path / "out", {"gate": "q4_0", "up": "q4_0"})
    assert written.sums.keys() == {"gate and up"}
    with pytest.raises(ValueError, match="in one tensor; expected one format for both"):
        quantize_checkpoint(tmp_path, tmp_path / "two", {"gate": "q4_0", "up": "q8_0"})


def test_a_single_file_becomes_a_folder(source, tmp_path):
    quantize_checkpoint(source / "model.safetensors", tmp_path / "out", "q8_0")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == LLAMA


@pytest.mark.parametrize("name", OUTS)
def test_a_bar_on_a_terminal(source, tmp_path, name, monkeypatch):
    std = pytest.importorskip("tqdm.std")
    monkeypatch.setattr(std, "time", itertools.count(1000.0).__next__)
    file = Terminal()
    monkeypatch.setattr(sys, "stderr", file)
    quantize_checkpoint(source, tmp_path / name, "q8_0")
    assert "quantize: 100%" in file.getvalue()
    assert "6/6" in file.getvalue()
