"""The progress of what takes long, on stderr: a bar on a terminal and in a notebook, else a line now and then."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from typing import Any

from tqdm import tqdm

# Numbers first: a terminal that is too narrow cuts off the end. Images are counted in parts, so numbers are rounded.
LINE = "{percentage:3.0f}% {n:.0f}/{total} {unit} [{elapsed}<{remaining}] {desc}"
BAR = LINE.replace("% ", "%|{bar:10}| ")
NO_TOTAL = "{n:.0f} {unit} [{elapsed}] {desc}"

PAUSE, NEWS = 30.0, 5.0
"""Seconds without a line after which one is written; NEWS applies once the description has changed."""


def progress(
    what: str,
    total: int | None = None,
    unit: str = "",
    *,
    over: Collection[Any] | None = None,
    shown: bool = True,
    smoothing: float = 0,
) -> tqdm:
    """A tqdm bar, to be used in a `with`, so that its line ends whatever happens; or `over` a collection, in a `for`.

    what: what is going on; `set_description_str` changes it. total: None if it is not known. unit: a plural.
    smoothing: of the time that remains; 0 judges by all that is done, which suits work of changing speed.
    """
    total = total if over is None else len(over)
    options: dict[str, Any] = {"iterable": over, "desc": what, "total": total, "unit": unit, "smoothing": smoothing}
    # miniters: after a fast stretch, a slow one must not wait until as much is done.
    options |= {"dynamic_ncols": True, "miniters": 0}
    if not shown or sys.stderr is None:
        options["disable"] = True  # passed only then: tqdm's own TQDM_DISABLE counts too
    from tqdm.auto import tqdm as suited  # warns in a notebook without widgets

    if suited.display is not tqdm.display:
        return suited(**options)  # a notebook's widget
    drawn = _draws(sys.stderr)
    if not drawn:
        options["mininterval"] = 0  # else which tenths get a line depends on the machine's speed
    kind, form = (tqdm, BAR) if drawn else (LogLines, LINE)
    return kind(**options, bar_format=NO_TOTAL if total is None else form)


def _draws(stream: Any) -> bool:
    """Whether it is a terminal, and of a known width: that of some CI services is 0."""
    try:
        return stream.isatty() and os.get_terminal_size(stream.fileno()).columns > 0
    except (AttributeError, OSError):  # None, or no file at all
        return False


def advance(bar: tqdm, what: str, done: float = 1) -> None:
    """So many units more are done, and this is going on."""
    bar.set_description_str(what, refresh=False)
    bar.update(done)
    bar.refresh()


class LogLines(tqdm):
    """Whole lines, for pipes, files and logs: at the start, with each tenth, after PAUSE or NEWS, and at the end.

    Without a total, a line for each description.
    """

    # Of the class, since tqdm's constructor displays.
    _mark: object = None
    _told: str | None = None
    _written = 0.0

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Write a line if one is due."""
        facts, ends = self.format_dict, self.disable  # `close` has begun: it displays once more, and ends the line
        now = facts["elapsed"]
        mark = 10 * self.n // self.total if self.total else self.desc
        quiet = now - self._written
        due = (mark != self._mark and self.n != self.total) or (self.desc != self._told and quiet >= NEWS)
        if ends or due or quiet >= PAUSE:
            self._mark, self._told, self._written = mark, self.desc, now
            line = self.format_meter(**{**facts, "ncols": None})  # whole, whatever $COLUMNS says
            self.fp.write(line if ends else f"{line}\n")  # stderr is line-buffered, so lines come out whole
        return True

    def clear(self, nolock: bool = False) -> None:
        """Lines stay: `tqdm.write` has nothing to clear away."""
