"""Options that several commands have."""

import numpy as np
import pytest
from support_checkpoints import LLAMA, llama, write

import ffncore as fc
from ffncore.__main__ import main
from ffncore.cli import options

COMMANDS = (["run", "x.npy", "y.npy"], ["verify"])


@pytest.mark.parametrize(
    "given, sentence",
    [
        (["--isa", "sse"], "--isa is 'sse'; expected one of scalar"),
        (["--threads", "0"], "--threads is 0; expected at least 1"),
    ],
)
def test_wrong_settings(given, sentence, tmp_path, monkeypatch, capsys):
    write(tmp_path, llama(1), LLAMA)
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.ones((3, 4), np.float32))
    for command, *files in COMMANDS:
        assert main([command, ".", *files, *given]) == 2
        assert sentence in capsys.readouterr().err


def test_settings_hold_inside_and_not_after():
    class Given:
        isa, threads = "scalar", 1

    before = fc.active_isa(), fc.get_num_threads()
    with options.settings(Given):
        assert (fc.active_isa(), fc.get_num_threads()) == ("scalar", 1)
    assert (fc.active_isa(), fc.get_num_threads()) == before


def test_an_error_is_printable(capsys):
    assert options.refused("run", ValueError("\x1b[31m is red")) == 2
    assert capsys.readouterr().err == "run: \\x1b[31m is red\n"
