"""Progress bars: on a terminal, after two seconds, and never in the way of the items."""

import io
import itertools
import re
import sys

import pytest
from support import Terminal

from ffncore.runtime import progress
from ffncore.runtime.progress import bar, say, steps


def terminal(monkeypatch):
    """Makes stderr a terminal; called in a test, because pytest sets stderr anew before it."""
    made = Terminal()
    monkeypatch.setattr(sys, "stderr", made)
    return made


@pytest.fixture
def slow(monkeypatch):
    """Makes tqdm believe that a second passes whenever it looks at the clock."""
    std = pytest.importorskip("tqdm.std")
    monkeypatch.setattr(std, "time", itertools.count(1000.0).__next__)


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("show", [None, False])
def test_no_bar_where_stderr_is_no_terminal(show, monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    assert list(bar(range(3), "layers", "layer", show)) == [0, 1, 2]
    assert file.getvalue() == ""


@pytest.mark.usefixtures("slow")
def test_a_bar_on_a_terminal(monkeypatch):
    file = terminal(monkeypatch)
    assert list(bar(range(9), "layers", "layer")) == [*range(9)]
    assert "layers: 100%" in file.getvalue()
    assert "9/9" in file.getvalue()


def test_a_short_loop_has_no_bar(monkeypatch):
    pytest.importorskip("tqdm")
    file = terminal(monkeypatch)
    assert progress.DELAY_SECONDS == 2
    assert list(bar([5, 6, 7], "layers", "layer")) == [5, 6, 7]
    assert file.getvalue() == ""
    assert list(bar([5, 6, 7], "layers", "layer", False)) == [5, 6, 7]
    assert file.getvalue() == ""


def test_a_bar_that_is_asked_for_is_drawn_anywhere_and_at_once(monkeypatch):
    pytest.importorskip("tqdm")
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    items = bar([5, 6], "layers", "layer", True)
    assert next(items) == 5
    assert "0/2" in file.getvalue()


def test_without_tqdm(monkeypatch):
    terminal(monkeypatch)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert list(bar([5, 6], "layers", "layer")) == [5, 6]
    with pytest.raises(ImportError, match="needs tqdm; pip install tqdm brings it"):
        bar([5, 6], "layers", "layer", True)


def test_without_stderr(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert list(bar([5, 6], "layers", "layer")) == [5, 6]


def test_another_show():
    with pytest.raises(TypeError, match="progress is of type int; expected True, False or None"):
        bar([5, 6], "layers", "layer", 1)


@pytest.mark.usefixtures("slow")
def test_steps_of_what_is_not_one_loop(monkeypatch):
    file = terminal(monkeypatch)
    step = steps(5, "columns", "column")
    for _ in range(5):
        assert step() is None
    assert "columns: 100%" in file.getvalue()
    assert "5/5" in file.getvalue()
    drawn = file.getvalue()
    step()  # one too many is no error
    assert file.getvalue() == drawn


def test_steps_without_a_terminal():
    step = steps(2, "columns", "column")
    assert [step() for _ in range(4)] == [None] * 4
    steps(0, "columns", "column")()


def test_a_line_is_printed(capsys):
    say("layer 3")
    assert capsys.readouterr().out == "layer 3\n"


def test_a_line_does_not_draw_a_bar_that_waits(monkeypatch):
    pytest.importorskip("tqdm")
    file = terminal(monkeypatch)
    monkeypatch.setattr(sys, "stdout", file)
    for number in bar(range(3), "layers", "layer"):
        say(f"layer {number}")
    say("the end")
    assert file.getvalue() == "layer 0\nlayer 1\nlayer 2\nthe end\n"


@pytest.mark.usefixtures("slow")
def test_a_line_stands_above_the_bar(monkeypatch):
    file = terminal(monkeypatch)
    monkeypatch.setattr(sys, "stdout", file)
    for number in bar(range(9), "layers", "layer"):
        say(f"number-{number}")
    drawn = file.getvalue().replace(" ", "")
    assert "layers:100%" in drawn
    # The bar is cleared, and drawn again below the line.
    assert re.search(r"\rnumber-7\n\r?layers:", drawn)
