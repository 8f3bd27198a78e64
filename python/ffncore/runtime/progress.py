"""Progress bars for loops that may take long: over layers, matrices or candidates.

A bar is drawn on stderr, by tqdm, which is optional. Nothing is drawn if stderr is no terminal, or
before the loop has taken two seconds, so a loop may ask for a bar without knowing how long it is.
Tests: tests/runtime/test_progress.py.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

# Who waits for less does not look for a bar.
DELAY_SECONDS = 2.0

_bars: weakref.WeakSet[Any] = weakref.WeakSet()


def bar(items: Iterable[T], title: str, unit: str, show: bool | None = None) -> Iterator[T]:
    """Iterate over items with a progress bar.

    title  stands before the bar
    unit   what one item is called: "layer"
    show   True: draw the bar at once, wherever stderr goes, which needs tqdm; False: draw none;
           None: draw it on a terminal, after two seconds, if tqdm is installed

    Raises ImportError if show is True and tqdm is not installed, and TypeError for another show.
    """
    if show is not None and not isinstance(show, bool):
        raise TypeError(f"progress is of type {type(show).__name__}; expected True, False or None")
    if show is False or (show is None and not _on_a_terminal()):
        return iter(items)
    try:
        from tqdm import tqdm
    except ImportError:
        if show is None:
            return iter(items)
        raise ImportError(
            "a progress bar needs tqdm; pip install tqdm brings it, and progress=None does without"
        ) from None
    delay = 0.0 if show else DELAY_SECONDS
    # Without dynamic_ncols the bar has the width that the terminal had at the beginning.
    made = tqdm(items, title, unit=unit, delay=delay, dynamic_ncols=True, file=sys.stderr)
    _bars.add(made)
    return iter(made)


def steps(total: int, title: str, unit: str) -> Callable[[], None]:
    """A bar for work that is not one loop: the function that it returns is called after each of
    `total` steps.
    """
    rest = bar(range(total), title, unit)
    next(rest, None)  # tqdm counts an item when it is asked for the next one

    def step() -> None:
        next(rest, None)

    return step


def say(line: str) -> None:
    """Print a line to stdout, above the bar if one is drawn."""
    drawn = [made for made in _bars if _is_drawn(made)]
    if drawn:
        drawn[0].write(line)
    else:  # write() would draw a bar that waits for its two seconds
        print(line, flush=True)


def _is_drawn(made: Any) -> bool:
    """Whether a bar is on the screen: it is disabled when it is closed."""
    return not made.disable and made.last_print_t >= made.start_t + made.delay


def _on_a_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()
