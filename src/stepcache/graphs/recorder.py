"""Capture and replay on static tensors: what one bucket's graphs and one captured function have in common.

Inputs and output live outside of the pool, in ordinary memory. A call copies its inputs into their slots, replays, and
clones the output: schedulers keep raw outputs across steps (PNDM), and the next replay overwrites it.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..autocast import autocasts
from .backends import CaptureBackend, CapturedGraph, capture
from .costs import Costs
from .stages import stage
from .tensors import tensors_of
from .turns import capturing, exclusive, replaying, when_quiet

logger = logging.getLogger("stepcache")


class StaticInputs:
    """Copies of a call's inputs at fixed addresses on `device`, in the same nesting.

    On the device whatever their source: a graph cannot read a tensor of the host (a mask for an IP-Adapter, say).
    """

    def __init__(self, inputs: dict[str, Any], device: torch.device) -> None:
        self._slots: list[Tensor] = []
        with torch.inference_mode(False):
            self.inputs: dict[str, Any] = self._allocate(inputs, device)
        # Tensors of one dtype and device are copied by one kernel; among others each would be a launch of its own.
        groups: dict[object, list[int]] = {}
        for i, value in enumerate(tensors_of(inputs)):
            groups.setdefault((value.dtype, value.device), []).append(i)
        self._groups = [(places, [self._slots[i] for i in places]) for places in groups.values()]

    def _allocate(self, value: Any, device: torch.device) -> Any:
        if isinstance(value, Tensor):
            # An expanded tensor has several elements at one address, to which nothing can be copied.
            expanded = any(stride == 0 and size > 1 for stride, size in zip(value.stride(), value.shape, strict=True))
            form = torch.contiguous_format if expanded else torch.preserve_format
            slot = torch.empty_like(value, memory_format=form, device=device)
            self._slots.append(slot)
            return slot
        if isinstance(value, dict):
            return {key: self._allocate(item, device) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self._allocate(item, device) for item in value)
        return value

    def load(self, inputs: dict[str, Any]) -> None:
        """Copy `inputs` in, all of them at each call.

        That one is the same tensor as before, at the same version, does not say that it holds the same: the replay of
        a graph writes its outputs without a new version, and a ControlNet under torch.compile(mode="reduce-overhead")
        returns the same tensors at each call.
        """
        tensors = tensors_of(inputs)
        for places, slots in self._groups:
            torch._foreach_copy_(slots, [tensors[i] for i in places], non_blocking=True)

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


class Recorder:
    """Static inputs and a static output, and graphs that are captured on them, all in one pool.

    A capture that fails is said once and sets `failed`; whoever records runs uncaptured from then on. What captures
    take is added to `costs`.
    """

    def __init__(self, backend: CaptureBackend, device: torch.device, costs: Costs) -> None:
        self.backend, self.device, self.costs = backend, device, costs
        self.failed = False
        self._static: StaticInputs | None = None
        self._output: Tensor | None = None
        self._pool: object = None
        self._live: list[CapturedGraph] = []
        self._turn = replaying(device)

    def load(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The static inputs, with these copied in. Called before all else in a call: it orders the stream."""
        self.backend.enter(self.device)
        if self._static is None:
            self._static = StaticInputs(inputs, self.device)
        self._static.load(inputs)
        return self._static.inputs

    def write(self, output: Tensor) -> None:
        """Copy `output` into the static one; part of what is captured."""
        if self._output is None:
            with torch.inference_mode(False):
                self._output = torch.empty_like(output)
        self._output.copy_(output)

    def rehearse(self, record: Callable[[], None]) -> None:
        """`record` outside of a capture: it compiles, tunes, and allocates what is static in ordinary memory."""
        with exclusive(), _uncached_casts(self.device):
            record()

    def capture(self, record: Callable[[], None], what: str) -> CapturedGraph | None:
        """The graph of `record`, rehearsed before; None where that failed, and all other graphs are gone then."""
        stage(f"{what}: capturing")
        start = time.perf_counter()
        try:
            with capturing(self.device), _uncached_casts(self.device):
                if not self._live:  # a pool whose graphs are all gone is the allocator's again
                    self._pool = self.backend.pool()
                graph = capture(self.backend, record, self._pool, self.device)
        except Exception as error:
            self.give_up(what, f"{type(error).__name__}: {error}")
            return None
        self.costs.captures += 1
        self.costs.capture_seconds += time.perf_counter() - start
        self._live.append(graph)
        return graph

    def give_up(self, what: str, reason: str) -> None:
        """Capture no more."""
        self.failed = True
        logger.warning("%s runs uncaptured; capturing it failed: %s", what, reason)
        self.drop()

    def take(self) -> Tensor:
        """The static output itself, for a call whose capture failed: what the rehearsal wrote is its result."""
        output, self._output = self._output, None
        assert output is not None
        return output

    def replay(self, graph: CapturedGraph) -> Tensor:
        """A copy of the output."""
        with self._turn:
            graph.replay()
            assert self._output is not None
            return self._output.clone()

    def reset(self, graphs: Iterable[CapturedGraph]) -> None:
        """Give up these graphs."""
        graphs = list(graphs)
        for graph in graphs:
            self._live.remove(graph)
        when_quiet(functools.partial(_reset, self.backend, self.device, graphs))

    def drop(self) -> None:
        """Give up all graphs, their pool and the static inputs."""
        held = [self._static, self._output, self._pool]
        graphs, self._live = self._live, []
        self._static = self._pool = None
        when_quiet(functools.partial(_reset, self.backend, self.device, graphs, held))

    def free(self) -> None:
        """Give everything back; the next call begins anew."""
        self.drop()
        self._output = None

    @property
    def nbytes(self) -> int:
        """Bytes of static inputs and output."""
        output = 0 if self._output is None else self._output.untyped_storage().nbytes()
        return output + (0 if self._static is None else self._static.nbytes)


def _reset(
    backend: CaptureBackend,
    device: torch.device,
    graphs: Sequence[CapturedGraph],
    held: list[object] | None = None,
) -> None:
    """Reset graphs once no replay is in flight. What is `held`, which replays use, goes then, back to the device."""
    backend.synchronize(device)
    for graph in graphs:
        graph.reset()
    if held is not None:
        held.clear()
        backend.release(device)
