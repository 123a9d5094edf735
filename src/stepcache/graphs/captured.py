"""One bucket's graphs, captured: static inputs, replay, and what makes a capture stale.

Inputs, feature and output live outside of the pool, in ordinary memory, so full and partial depend on each other
through them alone, and any order of replays (F P P F) is legal in one pool. A call copies its inputs into their slots,
replays, and clones the output: schedulers keep raw outputs across steps (PNDM), and the next replay overwrites it.
"""

from __future__ import annotations

import logging
import operator
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..buffers import Kept
from ..join import autocasts
from .backends import CaptureBackend, CapturedGraph
from .baked import Baked
from .costs import Costs
from .direct import DirectGraphs, Runner
from .stages import stage
from .tensors import tensors_of

logger = logging.getLogger("stepcache")

# Slots of a step (U-Net calls) that get graphs of their own; calls beyond it run uncaptured.
MAX_CAPTURED_SLOTS = 4

# A U-Net whose modules change at every call (processors that store what they see) is captured in vain.
MAX_STALE = 3

# Captures and replays are one at a time on a device.
_locks: dict[torch.device, threading.RLock] = {}


class StaticInputs:
    """Copies of a call's inputs at fixed addresses, in the same nesting."""

    def __init__(self, inputs: dict[str, Any]) -> None:
        self._slots: list[Tensor] = []
        self._sources: list[tuple[weakref.ref[Tensor], int] | None] = []
        with torch.inference_mode(False):
            self.inputs: dict[str, Any] = self._allocate(inputs)

    def _allocate(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            # An expanded tensor has several elements at one address, to which nothing can be copied.
            expanded = any(stride == 0 and size > 1 for stride, size in zip(value.stride(), value.shape, strict=True))
            slot = torch.empty_like(value, memory_format=torch.contiguous_format if expanded else torch.preserve_format)
            self._slots.append(slot)
            self._sources.append(None)
            return slot
        if isinstance(value, dict):
            return {key: self._allocate(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self._allocate(item) for item in value)
        return value

    def load(self, inputs: dict[str, Any]) -> int:
        """Copy `inputs` in; returns how many tensors were copied. What already sits in its slot is not.

        The prompt's tensors are the same ones, unchanged, in every step of a run: they are copied once.
        """
        copied = 0
        for i, value in enumerate(tensors_of(inputs)):
            version = None if value.is_inference() else value._version
            source = self._sources[i]
            if source is not None and version is not None and source[0]() is value and source[1] == version:
                continue
            self._slots[i].copy_(value, non_blocking=True)
            self._sources[i] = None if version is None else (weakref.ref(value), version)
            copied += 1
        return copied

    @property
    def nbytes(self) -> int:
        """Bytes of all slots."""
        return sum(slot.untyped_storage().nbytes() for slot in self._slots)


@contextmanager
def _uncached_casts(device: torch.device) -> Iterator[None]:
    """Autocast without its cache of cast weights, which is freed at the end of the user's block: a graph reads it."""
    if not autocasts(device.type):
        yield
        return
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


class CapturedGraphs:
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
        self._direct, self._deep_modules = DirectGraphs(runner), deep_modules
        self.backend, self.device, self.label = backend, device, label
        self.costs, self.failed = costs, False
        self._pool: object = None
        # By kind and slot: the graph, and the kept tensors that it writes or reads.
        self._graphs: dict[tuple[str, int], tuple[CapturedGraph, tuple[Tensor | None, ...]]] = {}
        self._static: StaticInputs | None = None
        self._output: Tensor | None = None
        self._baked: dict[str, Baked] = {}
        self._stale = 0  # captures in a row that were stale when their graph was asked for again
        self._lock = _locks.setdefault(device, threading.RLock())

    def full(self, unet: nn.Module, inputs: dict[str, Any], kept: Kept, slot: int) -> Tensor:
        """The whole U-Net; `kept`, of slot `slot`, is written. Returns the output."""
        if slot >= MAX_CAPTURED_SLOTS or not self._current("full", unet):
            return self._direct.full(unet, inputs, kept, slot)
        static = self._load(inputs)

        def record() -> None:
            output, values = self._direct.runner.full(unet, static)
            self._write_output(output)
            kept.write(values)

        return self._run("full", slot, unet, kept, record)

    def partial(self, unet: nn.Module, inputs: dict[str, Any], kept: Kept, slot: int) -> Tensor:
        """The shallow part on `kept`, of slot `slot`. Returns the output."""
        # A partial step looks at the modules that it runs, and leaves the others to the next full one: comparing a
        # whole U-Net takes longer than a partial step's launch, while a full step on the device hides it.
        if slot >= MAX_CAPTURED_SLOTS or not self._current("partial", unet):
            return self._direct.partial(unet, inputs, kept, slot)
        static = self._load(inputs)

        def record() -> None:
            self._write_output(self._direct.runner.partial(unet, kept.current, static))

        return self._run("partial", slot, unet, kept, record)

    def _current(self, kind: str, unet: nn.Module) -> bool:
        """Drop the graphs of `kind` where what they have baked in is no more; False where capturing is given up."""
        baked = self._baked.get(kind)
        if baked is None or baked.holds():
            self._stale = 0 if baked is not None else self._stale
            return not self.failed
        self._stale += 1
        if self._stale > MAX_STALE:
            self._give_up(kind, "its modules change at every call")
            return False
        logger.info("%s graph %s: weights or settings of the U-Net changed, capturing anew", kind, self.label)
        self.backend.synchronize(self.device)
        del self._baked[kind]
        for key in [key for key in self._graphs if key[0] == kind]:
            self._graphs.pop(key)[0].reset()
        return True

    def _load(self, inputs: dict[str, Any]) -> dict[str, Any]:
        self.backend.enter(self.device)
        if self._static is None:
            self._static = StaticInputs(inputs)
        self._static.load(inputs)
        return self._static.inputs

    def _write_output(self, output: Tensor) -> None:
        if self._output is None:
            with torch.inference_mode(False):
                self._output = torch.empty_like(output)
        self._output.copy_(output)

    def _run(self, kind: str, slot: int, unet: nn.Module, kept: Kept, record: Callable[[], None]) -> Tensor:
        """Replay the graph of `kind` and `slot`, captured first where there is none; returns a copy of the output."""
        graph, held = self._graphs.get((kind, slot), (None, ()))
        if graph is not None and not all(map(operator.is_, held, kept.tensors)):
            # A call that was not captured (training mode, hooks) wrote a feature with other strides in between.
            self.backend.synchronize(self.device)
            del self._graphs[kind, slot]
            graph.reset()
            graph = None
        if graph is None:
            with _uncached_casts(self.device):
                # Outside of lock and capture: compiles, and allocates feature and output in ordinary memory.
                record()
                # After it, since some processors write to themselves when they run.
                self._baked.setdefault(kind, Baked(unet, self._deep_modules(unet) if kind == "partial" else ()))
                graph = self._capture(kind, record)
            if graph is None:
                # What `record` wrote is this call's result; later calls run as the runner does.
                output, self._output = self._output, None
                assert output is not None
                return output
            self._graphs[kind, slot] = graph, kept.tensors
        with self._lock:
            graph.replay()
            assert self._output is not None
            return self._output.clone()

    def _capture(self, kind: str, record: Callable[[], None]) -> CapturedGraph | None:
        stage(f"{kind} graph {self.label}: capturing")
        start = time.perf_counter()
        try:
            with self._lock:
                if not self._graphs:  # a pool whose graphs are all gone is the allocator's again
                    self._pool = self.backend.pool()
                graph = self.backend.capture(record, self._pool, self.device)
        except Exception as error:
            self._give_up(kind, f"{type(error).__name__}: {error}")
            return None
        self.costs.captures += 1
        self.costs.capture_seconds += time.perf_counter() - start
        return graph

    def _give_up(self, kind: str, reason: str) -> None:
        """Run uncaptured from now on."""
        self.failed = True
        logger.warning("graphs %s run uncaptured; capturing the %s graph failed: %s", self.label, kind, reason)
        self._drop()

    def _drop(self) -> None:
        with self._lock:
            self.backend.synchronize(self.device)
            for graph, _ in self._graphs.values():
                graph.reset()
            self._graphs.clear()
            self._baked.clear()
            self._static = self._pool = None
            self.backend.release(self.device)

    def free(self) -> None:
        """Reset the graphs and give their pool, slots and output back."""
        self._drop()
        self._output = None

    @property
    def nbytes(self) -> int:
        """Bytes of input slots and output."""
        output = 0 if self._output is None else self._output.untyped_storage().nbytes()
        return output + (self._static.nbytes if self._static is not None else 0)
