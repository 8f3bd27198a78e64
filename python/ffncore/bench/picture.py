"""The rows of the bench as a picture: the share of the machine's limit, in groups of bars.

Needs matplotlib (the extra "bench"). The charts of a checkout's bench/ are drawn with the same
functions. Tests: tests/bench/test_picture.py.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .measure import Row

MOST_COLUMNS = 4  # panels side by side


def pyplot() -> Any:
    """matplotlib.pyplot without a display; ValueError where there is no matplotlib."""
    try:
        import matplotlib
    except ImportError:
        raise ValueError(
            "drawing needs matplotlib, which is not installed; pip install matplotlib brings it"
        ) from None
    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def check_picture(path: Path) -> None:
    """ValueError if there is no matplotlib, or if it cannot write such a file."""
    pyplot()
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:] not in known:
        raise ValueError(f"--picture is {path}; expected a name that ends in .{', .'.join(known)}")
    if path.is_dir():
        raise ValueError(f"--picture is {path}, a folder; expected the name of a file")


def wrapped(text: str, figure: Any) -> str:
    """Lines that fit the figure in a font of 7 points."""
    return "\n".join(textwrap.wrap(text, int(20 * figure.get_figwidth())))


def bars(axes: Any, groups: Sequence[str], series: Mapping[str, Sequence[float]]) -> None:
    """A group of bars for each name of `groups`, with one bar of each of the series."""
    for i, (label, heights) in enumerate(series.items()):
        shift = (i - (len(series) - 1) / 2) * 0.8 / len(series)
        places = [n + shift for n in range(len(groups))]
        axes.bar(places, heights, 0.78 / len(series), label=label)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(groups)), groups, rotation=35, ha="right", fontsize=7)


def save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def draw(rows: Sequence[Row], title: str, path: Path) -> None:
    """Case rows: a panel for each number of tokens, a group for each shape, and in it a bar for
    each mode of ffncore and of each peer.
    """
    if not rows:
        raise ValueError("there is no row to draw; expected a case that was measured")
    plt = pyplot()
    heights: dict[tuple[int, str, str], float] = {}
    for row in rows:
        group = row["shape"] + (f", {row['routing']}" if "routing" in row else "")
        heights[row["tokens"], group, f"ffncore, {row['mode']}"] = row["share"]
        for peer in row.get("against", ()):
            heights[row["tokens"], group, f"{peer}, {row['mode']}"] = row[f"{peer}_share"]
    tokens = list(dict.fromkeys(key[0] for key in heights))
    groups = list(dict.fromkeys(key[1] for key in heights))
    labels = list(dict.fromkeys(key[2] for key in heights))
    labels.sort(key=lambda label: not label.startswith("ffncore"))
    columns = min(len(tokens), MOST_COLUMNS)
    lines = -(-len(tokens) // columns)
    size = (max(5.0, 3.0 * columns), 0.6 + 2.8 * lines)
    figure, panels = plt.subplots(
        lines, columns, figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for axes, count in zip(panels.flat, tokens, strict=False):
        series = {
            label: [heights.get((count, group, label), 0.0) for group in groups] for label in labels
        }
        bars(axes, groups, series)
        axes.set_title(f"{count} token{'s' * (count > 1)}", fontsize=9)
    for axes in panels.flat[len(tokens) :]:
        axes.set_axis_off()
    for line in panels:
        line[0].set_ylabel("share of the machine's limit", fontsize=8)
    panels.flat[0].legend(fontsize=6)
    figure.suptitle(wrapped(title, figure), fontsize=7)
    save(figure, path)
    plt.close(figure)
