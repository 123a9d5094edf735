"""The engines of a pipe, one for each run at a time, and how many are kept between runs."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable

from torch import nn

from ..graphs.compiled import Compilations
from ..graphs.engine import Engine
from .counting import KnownCode

RECENT = 16
"""How many runs back the pool looks to see how many ran at once."""


class Pool:
    """Engines for one U-Net and one set of settings: of a pipe and its shallow copies, which share the U-Net.

    A run takes an engine and gives it back. As many are kept as ran at the same time in one of the last `RECENT` runs,
    so buffers and graphs of threads that are gone are freed. All engines share what was compiled.
    """

    def __init__(self) -> None:
        # A weak reference: if the pipes drop or replace the U-Net, graphs and buffers are freed too.
        self._unet: weakref.ref[nn.Module] | None = None
        self._idle: list[Engine] = []
        self._running: list[Engine] = []
        self._making = 0
        self._at_once: deque[int] = deque(maxlen=RECENT)
        self._compilations = Compilations()
        self.known_code = KnownCode()
        self._owners = 1
        self._lock = threading.RLock()  # the garbage collector may free a pipe anywhere

    def join(self) -> Pool:
        """Called for a further pipe that uses this pool; returns the pool."""
        with self._lock:
            self._owners += 1
        return self

    def leave(self) -> None:
        """Called when a pipe stops using the pool. After the last one, runs in progress free what they use."""
        with self._lock:
            self._owners -= 1
            if self._owners:
                return
        self._drop()

    @property
    def is_shared(self) -> bool:
        return self._owners > 1

    def is_of(self, unet: nn.Module) -> bool:
        """Whether the pool's engines are for this U-Net."""
        return self._unet is not None and self._unet() is unet

    def take(self, unet: nn.Module, make: Callable[[Compilations], Engine]) -> Engine:
        """An engine that no other run uses."""
        with self._lock:
            if not self.is_of(unet):
                self._drop()
                self._unet = weakref.ref(unet, lambda _: self._drop())
            compilations, engine = self._compilations, self._idle.pop() if self._idle else None
            if engine is None:
                self._making += 1
            else:
                self._running.append(engine)
            self._at_once.append(len(self._running) + self._making)
            surplus = self._surplus()
        for other in surplus:
            other.clear()
        if engine is None:
            try:
                engine = make(compilations)
                with self._lock:
                    self._running.append(engine)
            finally:
                with self._lock:
                    self._making -= 1
        return engine

    def give_back(self, unet: nn.Module, engine: Engine) -> None:
        """Take the engine back after a run, or free it if no later run needs it."""
        engine.count()
        with self._lock:
            self._running.remove(engine)
            if self._owners and self.is_of(unet):
                self._idle.append(engine)
            kept = engine in self._idle
            surplus = self._surplus()
        for other in surplus if kept else [*surplus, engine]:
            other.clear()

    def _surplus(self) -> list[Engine]:
        """Idle engines beyond as many as ran at once of late, the least recently used ones; they leave the pool."""
        held = len(self._idle) + len(self._running) + self._making
        count = min(len(self._idle), max(0, held - max(self._at_once, default=1)))
        surplus, self._idle = self._idle[:count], self._idle[count:]
        return surplus

    def engines(self) -> list[Engine]:
        """All engines, idle and running."""
        with self._lock:
            return [*self._idle, *self._running]

    @property
    def nbytes(self) -> tuple[int, int]:
        """Bytes of all engines' features, and of their captured graphs' inputs and outputs.

        The engine of a run in progress counts with what it held before the run.
        """
        engines = self.engines()
        return sum(engine.nbytes[0] for engine in engines), sum(engine.nbytes[1] for engine in engines)

    def _drop(self) -> None:
        with self._lock:
            idle, self._idle, self._unet = self._idle, [], None
            self._compilations = Compilations()
        for engine in idle:
            engine.clear()
