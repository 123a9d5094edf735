"""One bucket's graphs, captured: static inputs, replay, and what makes a capture stale.

Inputs, feature and output live outside of the pool, in ordinary memory, so full and partial depend on each other
through them alone, and any order of replays (F P P F) is legal in one pool. A call copies its inputs into their slots,
replays, and clones the output: schedulers keep raw outputs across steps (PNDM), and the next replay overwrites it.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..buffers import Feature
from .backends import CaptureBackend, CapturedGraph
from .baked import Baked
from .costs import Costs
from .stages import stage

logger = logging.getLogger("stepcache")

# Slots of a step (U-Net calls) that get graphs of their own; calls beyond it run uncaptured.
MAX_CAPTURED_SLOTS = 4

# Capture, replay and the copies around them are one thing a device.
_locks: dict[torch.device, threading.RLock] = {}


class Runner(Protocol):
    """Runs the two forwards; eager or compiled."""

    def full(self, unet: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]: ...  # noqa: D102

    def partial(self, unet: nn.Module, feature: Tensor, inputs: dict[str, Any]) -> Tensor: ...  # noqa: D102


class StaticInputs:
    """Copies of a call's inputs at fixed addresses, in the same nesting."""

    def __init__(self, inputs: dict[str, Any]) -> None:
        self._slots: list[Tensor] = []
        self._sources: list[tuple[weakref.ref[Tensor], int] | None] = []
        with torch.inference_mode(False):
            self.inputs: dict[str, Any] = self._allocate(inputs)

    def _allocate(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            slot = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
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


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors in nested dicts, lists and tuples, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return []
    return [tensor for item in value for tensor in tensors_of(item)]


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
        self._deep_modules = deep_modules
        self.runner, self.backend, self.device, self.label = runner, backend, device, label
        self.costs, self.failed = costs, False
        self._pool = backend.pool()
        self._graphs: dict[tuple[str, int], CapturedGraph] = {}
        self._static: StaticInputs | None = None
        self._output: Tensor | None = None
        self._baked: dict[str, Baked] = {}
        self._lock = _locks.setdefault(device, threading.RLock())

    def full(self, unet: nn.Module, inputs: dict[str, Any], feature: Feature, slot: int, run: object) -> Tensor:
        """The whole U-Net; the feature of `slot` is written for `run`. Returns the output [B, out_channels, H, W]."""
        if slot >= MAX_CAPTURED_SLOTS:
            output, value = self.runner.full(unet, inputs)
            feature.write(value, run)
            return output
        with self._lock:
            self._check("full", unet)
            static = self._load(inputs)

            def record() -> None:
                output, value = self.runner.full(unet, static)
                self._write_output(output)
                feature.write(value, run)

            self._replay("full", slot, record)
            feature.run = run
            return self._take_output()

    def partial(self, unet: nn.Module, inputs: dict[str, Any], feature: Feature, slot: int) -> Tensor:
        """The shallow part on the feature of `slot`. Returns the output [B, out_channels, H, W]."""
        assert feature.tensor is not None
        if slot >= MAX_CAPTURED_SLOTS:
            return self.runner.partial(unet, feature.tensor, inputs)
        with self._lock:
            # A partial step looks at the modules that it runs, and leaves the others to the next full one: comparing
            # a whole U-Net takes longer than a partial step's launch, while a full step on the device hides it.
            self._check("partial", unet)
            static = self._load(inputs)

            def record() -> None:
                assert feature.tensor is not None
                self._write_output(self.runner.partial(unet, feature.tensor, static))

            self._replay("partial", slot, record)
            return self._take_output()

    def _check(self, kind: str, unet: nn.Module) -> None:
        """Drop the graphs of `kind` where what they have baked in is no more. Slots, feature and output stay."""
        baked = self._baked.get(kind)
        if baked is not None and baked.holds():
            return
        if baked is not None:
            logger.info("%s graph %s: weights or settings of the U-Net changed, capturing anew", kind, self.label)
        for key in [key for key in self._graphs if key[0] == kind]:
            self._graphs.pop(key).reset()
        self._baked[kind] = Baked(unet, self._deep_modules(unet) if kind == "partial" else ())

    def _load(self, inputs: dict[str, Any]) -> dict[str, Any]:
        self.backend.enter(self.device)
        if self._static is None:
            self._static = StaticInputs(inputs)
        self._static.load(inputs)
        return self._static.inputs

    def _write_output(self, output: Tensor) -> None:
        if self._output is None:
            with torch.inference_mode(False):
                self._output = torch.empty_strided(
                    output.shape, output.stride(), dtype=output.dtype, device=output.device
                )
        self._output.copy_(output)

    def _take_output(self) -> Tensor:
        assert self._output is not None
        return self._output.clone()

    def _replay(self, kind: str, slot: int, record: Any) -> None:
        graph = self._graphs.get((kind, slot))
        if graph is None:
            # Outside of the capture: compiles, and allocates feature and output in ordinary memory.
            record()
            stage(f"{kind} graph {self.label}: capturing")
            start = time.perf_counter()
            try:
                graph = self.backend.capture(record, self._pool, self.device)
            except RuntimeError as error:  # out of memory included
                # What `record` wrote above is this call's result; later calls run as the runner does.
                self.failed = True
                self._drop_graphs()
                self.backend.release()
                logger.warning("graphs %s run uncaptured; capturing the %s graph failed: %s", self.label, kind, error)
                return
            self._graphs[kind, slot] = graph
            self.costs.captures += 1
            self.costs.capture_seconds += time.perf_counter() - start
        graph.replay()

    def _drop_graphs(self) -> None:
        for graph in self._graphs.values():
            graph.reset()
        self._graphs.clear()
        self._baked.clear()

    def free(self) -> None:
        """Reset the graphs and give their pool, slots and output back."""
        with self._lock:
            self._drop_graphs()
            self._static = self._output = None
            self._pool = None
            self.backend.release()

    @property
    def nbytes(self) -> int:
        """Bytes of input slots and output."""
        output = 0 if self._output is None else self._output.untyped_storage().nbytes()
        return output + (self._static.nbytes if self._static is not None else 0)
