"""Tells the U-Net calls of a step apart, so that each reads its own feature.

Modular pipelines call the U-Net once per guidance branch. Their guider names these branches (pred_cond, pred_uncond,
pred_cond_skip), and drops some of them at some steps, which moves the numbers of the calls behind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence


class Slots:
    """A run's slots, each by its guidance branch and the number of its call there.

    Slots are counted from 0 in order of appearance. Without a guider that is the number of the call within the step.
    """

    def __init__(self) -> None:
        self._names: tuple[Hashable, ...] = ()
        self._at = -1
        self._calls: Counter[Hashable] = Counter()  # of this step, by branch
        self._slots: dict[Hashable, int] = {}
        self.place: tuple[Hashable, int] = (), 0  # the guidance branch of the current U-Net call, and its number there

    def prepare(self, names: Sequence[Hashable]) -> None:
        """Called when the guider has prepared the inputs of a step: the names of its branches, in order."""
        self._names, self._at = tuple(names), -1

    def enter(self) -> None:
        """Called before the calls of the next branch."""
        self._at += 1

    def leave(self) -> None:
        """Called when the scheduler steps: nothing is known of the calls that follow."""
        self.prepare(())

    def begin_step(self) -> None:
        """Called at the first U-Net call of a step."""
        self._calls.clear()

    def take(self, limit: int) -> int:
        """The slot of the current U-Net call; `limit` if all slots below it are taken."""
        named = 0 <= self._at < len(self._names) and self._names[self._at] is not None
        # The branch of an unnamed call may be any of the step's: with other branches, it is another slot.
        branch = self._names[self._at] if named else self._names
        self.place = place = branch, self._calls[branch]
        self._calls[branch] += 1
        if place not in self._slots and len(self._slots) < limit:
            self._slots[place] = len(self._slots)
        return self._slots.get(place, limit)
