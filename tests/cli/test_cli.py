"""`python -m ffncore`: every command, as a user types it."""

import argparse
import functools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import DTYPES
from support_checkpoints import llama, write

import ffncore as fc
from ffncore import _core
from ffncore.__main__ import main
from ffncore.bench import measure, rows, shapes
from ffncore.bench.limits import Limits
from ffncore.cli import selftest
from ffncore.cli.main import COMMANDS


def test_info(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert fc.__version__ in text
    assert all(isa in text for isa in fc.available_isas())


def test_selftest(capsys):
    assert main(["selftest"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(DTYPES) * len(fc.available_isas()) + 1
    assert all(line.endswith("ok") for line in lines[:-1])
    assert "passed" in lines[-1]


def test_selftest_sees_a_wrong_kernel(capsys, monkeypatch):
    right = fc.reference.ffn

    def wrong(*args, **options):
        y = right(*args, **options)
        y[3, 5] += 1e-3
        return y

    monkeypatch.setattr(fc.reference, "ffn", wrong)
    assert selftest.run() == 1
    assert "failed" in capsys.readouterr().out


def test_module_runs_as_a_command():
    done = subprocess.run(
        [sys.executable, "-m", "ffncore", "info"], capture_output=True, text=True, check=True
    )
    assert _core.__version__ in done.stdout


@pytest.mark.parametrize(
    "argv, sentence",
    [
        (
            [],
            "there is no command; expected one of info, inspect, run, verify, quantize, bench, "
            "selftest",
        ),
        (
            ["nothing"],
            "command is 'nothing'; expected one of info, inspect, run, verify, quantize, bench, "
            "selftest",
        ),
        (["bench", "--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
        (["inspect"], "the following arguments are required: PATH"),
        (["run", "model"], "the following arguments are required: X, Y"),
        (["verify", "model", "--layer", "x"], "argument --layer: invalid int value: 'x'"),
    ],
)
def test_wrong_use(argv, sentence, capsys):
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 2
    text = capsys.readouterr().err
    assert text.startswith("usage")
    assert sentence in text


# ---- help


def help_of(*argv, capsys):
    with pytest.raises(SystemExit) as end:
        main([*argv, "--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


def test_help_lists_the_commands(capsys):
    text = help_of(capsys=capsys)
    assert "import ffncore" not in text
    for name in COMMANDS:
        (line,) = [line for line in text.splitlines() if line.startswith(f"    {name} ")]
        assert len(line.split()) > 3


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help_text(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    command = COMMANDS[name]
    text = help_of(name, capsys=capsys)
    assert command.HELP in text
    assert all(len(line) < 80 for line in command.HELP.splitlines())
    for example in command.EXAMPLES:
        assert f"python -m ffncore {example}\n" in text
    parser = argparse.ArgumentParser(add_help=False)
    command.add_arguments(parser)
    for action in parser._actions:
        assert action.help
        takes_value = action.nargs != 0
        assert not takes_value or action.metavar or action.choices
        needs_default = takes_value and action.option_strings and action.metavar != "FILE"
        assert not needs_default or "default" in action.help


# Those of info and selftest are run by tests above.
EXAMPLES = [line for name, command in COMMANDS.items() for line in command.EXAMPLES if line != name]


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_run(example, tmp_path, monkeypatch, capsys):
    """Those of the bench with small shapes, few rounds, and known limits of the machine."""
    d = 256 if example.startswith("quantize") else 4  # q4_k has blocks of 256
    write(tmp_path, llama(1, d, 256 if d == 256 else 6), {"model_type": "llama"})
    np.save(tmp_path / "x.npy", np.ones((3, 4), np.float32))
    monkeypatch.chdir(tmp_path)
    argv = example.replace("path/to/model", str(tmp_path)).replace("1536x4096", "24x40").split()
    if argv[0] == "bench":
        pytest.importorskip("matplotlib")
        monkeypatch.setattr(rows, "Limits", KnownLimits)
        monkeypatch.setattr(measure, "ROUND_SECONDS", 1e-4)
        monkeypatch.setattr(shapes, "QUICK_SHAPES", ("minilm",))
        monkeypatch.setattr(shapes, "QUICK_TOKENS", (1, 3))
        monkeypatch.setattr(rows, "call_cost", functools.partial(rows.call_cost, repeats=3))
        argv += ["--seconds", "0"]
    assert main(argv) == 0
    assert capsys.readouterr().out
    assert "--picture" not in argv or Path(argv[argv.index("--picture") + 1]).exists()


class KnownLimits(Limits):
    """Of a machine of 3 GHz with two units, 100 GB/s and 1e9 elements/s."""

    def __init__(self, _isa, dtype, threads):
        super().__init__("avx2", dtype, threads, self.known_rate)

    def known_rate(self, what, _isa, _dtype, _bytes, _seconds, threads):
        return {"fma": 96e9 * threads, "clock": 3e9, "read": 1e11}.get(what, 1e9)
