"""Whether captured graphs still match the module that they were captured from."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import nn

from .fallback import Fallback
from .snapshot import Snapshot

if TYPE_CHECKING:
    from .capture import Capture

logger = logging.getLogger("stepcache")

# How many captures in a row may turn out stale. Capturing is useless for modules that change at every call
# (processors that store what they see).
MAX_STALE = 3


class Freshness:
    """A snapshot for each program, and the captures whose graphs depend on it.

    by_run: only a run's first check may reset the count of stale captures. Its other checks (tiles of one image) say
    nothing about changes between runs.
    """

    def __init__(self, fallback: Fallback, by_run: bool = False) -> None:
        self.fallback, self.given_up = fallback, False
        self.captures: weakref.WeakSet[Capture] = weakref.WeakSet()
        self._snapshots: dict[str, Snapshot] = {}
        self._stale = 0  # captures in a row that were found stale
        self._by_run, self._first = by_run, True

    def begin_run(self) -> None:
        """Called at the start of a run."""
        self._first = True

    def remember(self, name: str, module: nn.Module, left_out: Iterable[nn.Module]) -> None:
        """Take the module's state as that of the program's graphs, unless there is one already."""
        if name not in self._snapshots:
            self._snapshots[name] = Snapshot(module, left_out)

    def check(self, name: str, what: str) -> bool:
        """Drop the program's graphs if the module has changed; False once capturing is given up.

        A partial step checks only the modules it runs: checking a whole U-Net takes longer than launching a partial
        step. A full step's time on the device hides the check.
        """
        first, self._first = self._first, False
        snapshot = self._snapshots.get(name)
        if snapshot is None:
            return not self.given_up
        if snapshot.holds():
            if first or not self._by_run:
                self._stale = 0
            return True
        self._stale += 1
        self.given_up = self._stale > MAX_STALE
        if self.given_up:
            self.fallback.give_up_capture()
            self._snapshots.clear()
        else:
            self.fallback.look_again()
            logger.info("%s: weights or settings changed, capturing again", what)
            del self._snapshots[name]
        for capture in list(self.captures):
            if self.given_up:
                capture.free()
            else:
                capture.drop(name)
        return not self.given_up
