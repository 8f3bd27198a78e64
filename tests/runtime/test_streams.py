"""FFNCORE_PREFETCH overrules the machine's table, and what is no number is ignored."""

import os
import subprocess
import sys

import pytest

CODE = """
import numpy as np, ffncore as fc
rng = np.random.default_rng(0)
up, down = rng.standard_normal((2, 40, 600), dtype="f4")
y = fc.ffn(up[:2], fc.pack(fc.FFNWeights(up=up, down=down.T)), activation="silu")
print(y.tobytes().hex())
"""


def output(**environment):
    run = subprocess.run(
        [sys.executable, "-c", CODE],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout


@pytest.fixture(scope="module")
def expected():
    return output()


@pytest.mark.parametrize("value", ["0", "4096", "-1", "far", "99999999999999999999"])
def test_the_result_is_the_same(value, expected):
    assert output(FFNCORE_PREFETCH=value) == expected
