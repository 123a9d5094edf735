"""One bucket's graphs, captured: which graph a call replays, and what makes a capture stale.

Full and partial depend on each other through what is kept alone, which lives outside of the pool as inputs and output
do (recorder.py): any order of replays (F P P F) is legal in one pool.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .backends import CaptureBackend, CapturedGraph
from .baked import Baked
from .buffers import Kept
from .costs import Costs
from .direct import DirectGraphs, Runner
from .recorder import Recorder

logger = logging.getLogger("stepcache")

# Slots of a step (U-Net calls) that get graphs of their own; calls beyond it run uncaptured.
MAX_CAPTURED_SLOTS = 4

# A U-Net whose modules change at every call (processors that store what they see) is captured in vain.
MAX_STALE = 3


class CapturedGraphs(Recorder):
    """The captured full and partial graph of one bucket (and slot), over a runner that is eager or compiled.

    `deep_modules(unet)` are the modules that a partial step leaves out.
    """

    def __init__(
        self,
        runner: Runner,
        backend: CaptureBackend,
        deep_modules: Callable[[nn.Module], Sequence[nn.Module]],
        device: torch.device,
        label: str,
        costs: Costs,
    ) -> None:
        super().__init__(backend, device, costs)
        self._direct, self._deep_modules, self._label = DirectGraphs(runner), deep_modules, label
        # By kind and slot: the graph, and the kept tensors that it writes or reads.
        self._graphs: dict[tuple[str, int], tuple[CapturedGraph, tuple[Tensor | None, ...]]] = {}
        self._baked: dict[str, Baked] = {}
        self._stale = 0  # captures in a row that were stale when their graph was asked for again

    def full(self, unet: nn.Module, inputs: dict[str, Any], kept: Kept, slot: int) -> Tensor:
        """The whole U-Net; `kept`, of slot `slot`, is written. Returns the output."""
        if slot >= MAX_CAPTURED_SLOTS or not self._current("full", unet):
            return self._direct.full(unet, inputs, kept, slot)
        static = self.load(inputs)

        def record() -> None:
            output, values = self._direct.runner.full(unet, static)
            self.write(output)
            kept.write(values)

        return self._run("full", slot, unet, kept, record)

    def partial(self, unet: nn.Module, inputs: dict[str, Any], kept: Kept, slot: int) -> Tensor:
        """The shallow part on `kept`, of slot `slot`. Returns the output."""
        # A partial step looks at the modules that it runs, and leaves the others to the next full one: comparing a
        # whole U-Net takes longer than a partial step's launch, while a full step on the device hides it.
        if slot >= MAX_CAPTURED_SLOTS or not self._current("partial", unet):
            return self._direct.partial(unet, inputs, kept, slot)
        static = self.load(inputs)

        def record() -> None:
            self.write(self._direct.runner.partial(unet, kept.current, static))

        return self._run("partial", slot, unet, kept, record)

    def _current(self, kind: str, unet: nn.Module) -> bool:
        """Drop the graphs of `kind` where what they have baked in is no more; False where capturing is given up."""
        baked = self._baked.get(kind)
        if baked is None or baked.holds():
            self._stale = 0 if baked is not None else self._stale
            return not self.failed
        self._stale += 1
        if self._stale > MAX_STALE:
            self.give_up(f"{kind} graph {self._label}", "its modules change at every call")
            return False
        logger.info("%s graph %s: weights or settings of the U-Net changed, capturing anew", kind, self._label)
        del self._baked[kind]
        self.reset([self._graphs.pop(key)[0] for key in list(self._graphs) if key[0] == kind])
        return True

    def _run(self, kind: str, slot: int, unet: nn.Module, kept: Kept, record: Callable[[], None]) -> Tensor:
        """Replay the graph of `kind` and `slot`, captured first where there is none; returns a copy of the output."""
        graph, held = self._graphs.get((kind, slot), (None, ()))
        if graph is not None and not all(map(operator.is_, held, kept.tensors)):
            # A call that was not captured (training mode, hooks) wrote a feature with other strides in between.
            del self._graphs[kind, slot]
            self.reset([graph])
            graph = None
        if graph is None:
            self.rehearse(record)
            # After it, since some processors write to themselves when they run.
            self._baked.setdefault(kind, Baked(unet, self._deep_modules(unet) if kind == "partial" else ()))
            graph = self.capture(record, f"{kind} graph {self._label}")
            if graph is None:
                return self.take()
            self._graphs[kind, slot] = graph, kept.tensors
        return self.replay(graph)

    def drop(self) -> None:
        """Give up all graphs, their pool and the static inputs."""
        super().drop()
        self._graphs.clear()
        self._baked.clear()
