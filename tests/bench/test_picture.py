"""The rows of the bench as a picture."""

import builtins

import pytest
from test_bench import arguments, machine

from ffncore.bench import picture
from ffncore.bench import rows as bench_rows
from ffncore.bench.limits import Limits
from ffncore.cli import bench as command


def row(tokens, shape="s", mode="packed", **more):
    return {"kind": "case", "shape": shape, "tokens": tokens, "mode": mode, "share": 0.5, **more}


def drawn(monkeypatch):
    """What `draw` gives to `bars`, panel by panel."""
    panels, real = [], picture.bars

    def bars(axes, groups, series):
        panels.append((axes, groups, series))
        real(axes, groups, series)

    monkeypatch.setattr(picture, "bars", bars)
    return panels


def test_a_bar_for_each_mode_and_peer(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    rows = [row(1, against=["numpy"], numpy_share=0.25), row(64), row(64, "m", routing="zipf")]
    panels = drawn(monkeypatch)
    file = tmp_path / "new" / "out.png"
    picture.draw(rows, "a machine", file)
    assert file.read_bytes().startswith(b"\x89PNG")
    assert [axes.get_title() for axes, *_ in panels] == ["1 token", "64 tokens"]
    assert [groups for _, groups, _ in panels] == [["s", "m, zipf"]] * 2
    assert [series for *_, series in panels] == [
        {"ffncore, packed": [0.5, 0.0], "numpy, packed": [0.25, 0.0]},
        {"ffncore, packed": [0.5, 0.5], "numpy, packed": [0.0, 0.0]},
    ]


def test_many_token_counts_take_lines(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    rows = [row(2**n) for n in range(5)]
    panels = drawn(monkeypatch)
    picture.draw(rows, "a machine", tmp_path / "out.png")
    assert len(panels) == 5
    assert len({axes.get_position().y0 for axes, *_ in panels}) == 2


@pytest.mark.parametrize("name", ["out.xyz", "out", "folder.png"])
def test_a_file_that_cannot_be_drawn_is_refused_before_the_run(name, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    (tmp_path / "folder.png").mkdir()
    assert command.run(arguments("--quick", "--picture", str(tmp_path / name))) == 2
    assert capsys.readouterr().out.startswith(f"bench: --picture is {tmp_path / name}")


def test_nothing_to_draw(tmp_path):
    with pytest.raises(ValueError, match="there is no row to draw"):
        picture.draw([], "a machine", tmp_path / "out.png")


def test_the_command_draws(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(
        bench_rows, "Limits", lambda _isa, dtype, threads: Limits("avx2", dtype, threads, machine)
    )
    words = ("--shapes", "8x24", "--tokens", "1", "--seconds", "0", "--modes", "raw")
    file = tmp_path / "out.png"
    assert command.run(arguments(*words, "--picture", str(file))) == 0
    assert file.exists()
    assert capsys.readouterr().out.endswith(f"picture: {file}\n")
    assert command.run(arguments("--picture", str(file), "--parts", "calls")) == 2
    assert "--parts has no cases; expected them for --picture" in capsys.readouterr().out


def test_without_matplotlib(monkeypatch, capsys):
    """One sentence, before anything is measured."""
    real = builtins.__import__

    def absent(name, *rest):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    assert command.run(arguments("--quick", "--picture", "out.png")) == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert line == (
        "bench: drawing needs matplotlib, which is not installed; pip install matplotlib brings it"
    )
