"""bench/few_tokens.py runs; no time is asserted."""

import pytest
from test_bench import in_tree, machine, tool

from ffncore.bench.limits import Limits


@in_tree
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_row_for_each_layer_and_number_of_tokens(dtype, monkeypatch):
    few = tool("few_tokens")
    monkeypatch.setattr(few, "SHAPES", ("8x24:silu:gated", "8x24:gelu"))
    monkeypatch.setattr(few, "SECONDS", 0)
    monkeypatch.setattr(few.measure, "ROUND_SECONDS", 1e-4)
    monkeypatch.setattr(
        few, "Limits", lambda _isa, dtype, threads: Limits("avx2", dtype, threads, machine)
    )
    lines = []
    few.run(dtype, 1, lambda *words: lines.append(" ".join(words)))
    assert len(lines) == 2 + 2 * len(few.TOKENS)
    for line in lines[2:]:
        assert len(line.split()) == 6 + len(few.WAYS)
        assert "nan" not in line
