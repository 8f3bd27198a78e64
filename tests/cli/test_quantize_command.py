"""`python -m ffncore quantize`: its summary, and one sentence for what is refused."""

import re

import numpy as np
import pytest
from support_checkpoints import LLAMA, llama, write

from ffncore.__main__ import main


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in", llama(2, 256, 512), LLAMA)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_summary(folder, capsys):
    formats = "gate=q4_k,up=q4_k,down=q6_k"
    assert main(["quantize", "in", "out", "--format", formats]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["field", "format", "weights", "bits", "error"]
    rows = [line.split() for line in lines[1:4]]
    told = [["gate", "q4_k", "262,144", "4.5"], ["up", "q4_k", "262,144", "4.5"]]
    assert [row[:4] for row in rows] == [*told, ["down", "q6_k", "262,144", "6.562"]]
    assert 0.06 < float(rows[0][4]) < 0.08
    assert 0.01 < float(rows[2][4]) < 0.02
    before, after, share = re.fullmatch(
        r"([\d,]+) bytes before, ([\d,]+) after \((\d+)%\)", lines[4]
    ).groups()
    sizes = [(folder / d / "model.safetensors").stat().st_size for d in ("in", "out")]
    assert [int(n.replace(",", "")) for n in (before, after)] == sizes
    assert abs(100 * sizes[1] / sizes[0] - int(share)) <= 0.5
    assert lines[5] == "written: out"
    assert len(lines) == 6


@pytest.mark.usefixtures("folder")
def test_hqq(capsys):
    errors = []
    for method in ("rtn", "hqq"):
        argv = ["quantize", "in", f"{method}.safetensors", "--format", "int4", "--method", method]
        assert main(argv) == 0
        errors.append(float(capsys.readouterr().out.splitlines()[1].split()[4]))
    assert errors[1] < errors[0]


@pytest.mark.parametrize(
    "argv, sentence",
    [
        (["in", "out", "--format", "q5"], "format 'q5' is not known; known are"),
        (["in", "out", "--format", "nf4"], "format 'nf4' is read only"),
        (["in", "out", "--format", "up=q4_0,gate"], "'gate' has no =; expected a form like gate="),
        (["in", "out", "--format", "up=q4_0,up=q8_0"], "'up=q8_0' is given twice"),
        (["in", "out", "--format", "router=q4_0"], "format has a field 'router'; expected gate"),
        (["in", "out.gguf", "--format", "int8"], "format is 'int8'; expected one of GGUF"),
        (["in", "out", "--format", "q4_0", "--method", "hqq"], "'hqq' chooses zeros, which q4_0"),
        (["absent", "out", "--format", "q4_0"], "absent does not exist; expected a folder"),
        (["in", "absent/out", "--format", "q4_0"], "absent is not a folder; expected one to write"),
        (["in", "in", "--format", "q4_0"], "in exists; expected a name that is not in use"),
        (["in", "out", "--format", "q4_0", "--family", "x"], "family is 'x'; expected one of"),
    ],
)
def test_refusals(folder, argv, sentence, capsys):
    assert main(["quantize", *argv]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("quantize: ")
    assert told.err.count("\n") == 1
    assert sentence in told.err
    assert [path.name for path in folder.iterdir()] == ["in"]


@pytest.mark.parametrize("name", ["out", "out.gguf"])
def test_rows_that_do_not_fit(folder, name, capsys):
    write(folder / "in", llama(1, 64, 96), LLAMA)
    assert main(["quantize", "in", name, "--format", "q4_k"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("quantize: in/model.safetensors: model.layers.0.mlp.gate_proj.weight ")
    assert told.endswith("has rows of 64 weights; expected a multiple of 256 for q4_k\n")


def test_layers_that_cannot_be_read(folder, capsys):
    tensors = llama(1)
    start = "model.layers.0.mlp.up_proj"
    tensors = {n: w for n, w in tensors.items() if not n.startswith(start)}
    tensors |= {f"{start}.qweight": np.ones((4, 6), np.int32)}
    write(folder / "in", tensors, LLAMA)
    assert main(["quantize", "in", "out", "--format", "q8_0"]) == 2
    assert capsys.readouterr().err == (
        "quantize: in/model.safetensors has layer 0 quantised by AWQ; expected weights that are "
        "numbers\n"
    )
    assert not (folder / "out").exists()
