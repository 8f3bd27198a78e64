"""The progress bars of fc.quantize: drawn on a terminal, and full at the end."""

import itertools
import sys

import numpy as np
import pytest
from support import Terminal

import ffncore as fc
from ffncore.quantisation import quantize as module

rng = np.random.default_rng(0)


def normal(*shape):
    return (rng.standard_normal(shape) / 16).astype("f4")


MATRIX, EXPERTS, X = normal(40, 256), normal(3, 40, 256), normal(64, 256)
LAYER = fc.FFNWeights(gate=normal(128, 256), up=normal(128, 256), down=normal(256, 128))
PLAIN = fc.FFNWeights(up=normal(2, 128, 256), down=normal(2, 256, 128))

CASES = {
    "rtn experts": (EXPERTS, "q4_0", {}),
    "rtn layer": (LAYER, {"up": "q8_0", "down": "int8"}, {}),
    "hqq matrix": (MATRIX, "int4", {"method": "hqq"}),
    "hqq large": (normal(2100, 256), "int4", {"method": "hqq"}),
    "gptq matrix": (MATRIX, "int4", {"method": "gptq", "inputs": X}),
    "gptq rows": (MATRIX[:, :77], "int8", {"method": "gptq", "inputs": X[:, :77]}),
    "gptq blocks": (MATRIX[:, :200], "fp8_e4m3", {"method": "gptq", "inputs": X[:, :200]}),
    "gptq layer": (LAYER, "q8_0", {"method": "gptq", "inputs": X, "activation": "silu"}),
    "awq experts": (EXPERTS, "int4", {"method": "awq", "inputs": X}),
    "awq layer": (LAYER, "int4", {"method": "awq", "inputs": X, "activation": "silu"}),
    "awq plain": (PLAIN, "int4", {"method": "awq", "inputs": X, "activation": "gelu"}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_steps_are_as_many_as_were_told(case, monkeypatch):
    w, format, options = CASES[case]
    bars = []

    def steps(total, title, unit):
        assert (title, unit) == ("quantize", "step")
        bars.append([total, 0])

        def step():
            bars[-1][1] += 1

        return step

    monkeypatch.setattr(module, "steps", steps)
    fc.quantize(w, format, **options)
    ((told, called),) = bars
    assert told == called > 0
    if not case.startswith("rtn"):
        assert told >= 2 or case == "hqq matrix"


@pytest.mark.parametrize("case", ["rtn experts", "hqq large", "gptq matrix", "awq layer"])
def test_a_bar_on_a_terminal(case, monkeypatch):
    std = pytest.importorskip("tqdm.std")
    monkeypatch.setattr(std, "time", itertools.count(1000.0).__next__)
    w, format, options = CASES[case]
    expected = fc.quantize(w, format, **options)
    file = Terminal()
    monkeypatch.setattr(sys, "stderr", file)
    found = fc.quantize(w, format, **options)
    assert "quantize: 100%" in file.getvalue()
    one, other = (q if isinstance(q, fc.QuantizedTensor) else q.up for q in (found, expected))
    assert one == other


def test_what_is_quick_has_no_bar(monkeypatch):
    pytest.importorskip("tqdm")
    file = Terminal()
    monkeypatch.setattr(sys, "stderr", file)
    fc.quantize(EXPERTS, "q4_0")
    assert file.getvalue() == ""


def test_training_has_no_bar(monkeypatch):
    monkeypatch.setattr(module, "steps", lambda *_: pytest.fail("a bar"))
    fc.fake_quantize(MATRIX, "q4_0")
