"""Finds foreign code on a U-Net that counts its calls, or keeps something of each: a partial step calls a part of it.

Prompt-to-Prompt's controllers, MasaCtrl and their like count the attention layers that are called, to know where in the
U-Net and in the run they are. With calls left out they would edit other layers and steps than they should.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from ..pipes.foreign import State, foreign_code

WATCHED = 2
"""How many calls of a run are watched: code that prepares itself in the first one is not counting."""

COUNTS = object()
"""What `KnownCode` says of code that counts."""


class KnownCode:
    """What was found of foreign code in earlier runs. It is held weakly: a controller may hold many tensors."""

    def __init__(self) -> None:
        self._known: list[tuple[list[weakref.ref[Any]], Any]] = []

    def of(self, code: Sequence[Any]) -> Any:
        """COUNTS; or the settings with which this code did not count; None if nothing is known."""
        parts = _parts(code)
        for refs, found in reversed(self._known):
            if len(refs) == len(parts) and all(ref() is part for ref, part in zip(refs, parts, strict=True)):
                return found
        return None

    def add(self, code: Sequence[Any], found: Any) -> None:
        """found: COUNTS or settings."""
        try:
            refs = [weakref.ref(part) for part in _parts(code)]
        except TypeError:  # it cannot be referred to weakly, so it is watched in each run
            return
        self._known = [
            (old, told) for old, told in self._known if old != refs and all(ref() is not None for ref in old)
        ]
        self._known.append((refs, found))


class CallCounting:
    """Whether code on the U-Net counts its calls in this run.

    Watch the first calls, which must run every module once: `begin` before a call, `look` within and after it, then
    `end`. Code whose state changes in both of them counts.
    """

    def __init__(self, modules: Iterable[nn.Module], known: KnownCode) -> None:
        modules = list(modules)
        self.code = foreign_code(modules)
        self._known = known
        found = known.of(self.code) if self.code else COUNTS
        self.counts = bool(self.code) and found is COUNTS
        self._state = None if found is COUNTS else State(self.code, modules)
        # A controller that was off may be on now.
        self._left = 0 if self._state is None or self._state.settings() == found else WATCHED
        self._before: list[Any] = []
        self._changed = False

    @property
    def watches(self) -> bool:
        """Whether the next call is to be watched."""
        return self._left > 0

    def begin(self) -> None:
        assert self._state is not None
        self._before, self._changed = self._state.values(), False

    def look(self) -> None:
        assert self._state is not None
        self._changed = self._changed or not self._state.holds(self._before)

    def end(self) -> None:
        self.look()
        assert self._state is not None
        self._left = self._left - 1 if self._changed else 0
        if not self._left:
            self.counts = self._changed
            self._known.add(self.code, COUNTS if self.counts else self._state.settings())
            self._state = None


def _parts(code: Iterable[Any]) -> list[Any]:
    """The objects that make up the code. A bound method is a new object at each access; its parts are not."""
    return [part for item in code for part in (getattr(item, "__self__", item), getattr(item, "__func__", item))]
