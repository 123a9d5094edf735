"""The captured graphs of one bucket.

Inputs, output and kept values are in ordinary memory, outside the pool. A call copies its inputs in, replays, and
clones the output, because schedulers keep outputs across steps (PNDM) and the next replay overwrites it. Graphs depend
on each other only through kept values, so they share one pool and replay in any order (F P P F).
"""

from __future__ import annotations

import functools
import logging
import operator
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..forwards.autocast import autocasts
from ..forwards.nested import map_tensors, tensors_of
from .backends import CaptureBackend, CapturedGraph, capture
from .freshness import Freshness
from .kept import Kept, spec_of
from .program import Program
from .progress import Costs, stage
from .turns import capturing, exclusive, replaying, when_quiet

logger = logging.getLogger("stepcache")

# How many slots (U-Net calls within a step) get graphs; later calls of the step run uncaptured.
MAX_CAPTURED_SLOTS = 4

# A group of inputs: their indices among all inputs, and their static tensors.
_Group = tuple[list[int], list[Tensor]]


class Capture:
    """Graphs by program and slot, in one pool, with static inputs and a static output.

    A failed capture warns once and sets `failed`; from then on the bucket runs uncaptured. Time and number of captures
    are added to `costs`. freshness: of these graphs, or of all captures of one module.
    """

    def __init__(self, backend: CaptureBackend, device: torch.device, costs: Costs, freshness: Freshness) -> None:
        self.backend, self.device, self.costs, self.freshness = backend, device, costs, freshness
        freshness.captures.add(self)
        self.failed = False
        self._graphs: dict[tuple[str, int], tuple[CapturedGraph, tuple[Tensor | None, ...]]] = {}  # with kept tensors
        self._inputs: dict[str, Any] | None = None
        self._groups: list[_Group] = []
        self._output: Tensor | None = None
        self._pool: object = None
        self._turn = replaying(device)

    def run(
        self, name: str, program: Program, module: nn.Module, inputs: dict[str, Any], kept: Kept, slot: int
    ) -> Tensor:
        """The output of program `name`, which the caller owns. kept: that of `slot`.

        The first call of a program and slot captures; later calls replay.
        """
        if slot >= MAX_CAPTURED_SLOTS:
            return program(module, inputs, kept)
        static = self._load(inputs)
        graph, held = self._graphs.get((name, slot), (None, ()))
        if graph is not None and not all(map(operator.is_, held, kept.tensors)):
            # An uncaptured call (training mode, hooks) has since written a feature with other strides.
            del self._graphs[name, slot]
            self._reset([graph])
            graph = None
        if graph is None:

            def record() -> None:
                self._write(program(module, static, kept))

            # First uncaptured: this compiles, tunes, and allocates the static tensors in ordinary memory.
            with exclusive(), _uncached_casts(self.device):
                record()
            # After the first call, because some processors change themselves when they run.
            self.freshness.remember(name, module, program.left_out(module))
            graph = self._capture(record, program.what)
            if graph is None:
                # `record` has written the result.
                output, self._output = self._output, None
                assert output is not None
                return output
            self._graphs[name, slot] = graph, kept.tensors
        with self._turn:
            graph.replay()
            assert self._output is not None
            return self._output.clone()

    def drop(self, name: str) -> None:
        """Give up the graphs of one program."""
        self._reset([self._graphs.pop(key)[0] for key in list(self._graphs) if key[0] == name])

    def _load(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Copy all inputs into the static ones, which are returned.

        An unchanged `_version` does not mean unchanged values: a replay writes its outputs without a new version, and a
        ControlNet under torch.compile(mode="reduce-overhead") returns the same tensors each time.
        """
        self.backend.enter(self.device)  # first, because it orders the streams
        if self._inputs is None:
            self._inputs, self._groups = _static_like(inputs, self.device)
        tensors = tensors_of(inputs)
        for places, slots in self._groups:
            torch._foreach_copy_(slots, [tensors[i] for i in places], non_blocking=True)
        return self._inputs

    def _write(self, output: Tensor) -> None:
        """Copy `output` into the static one; part of what is captured."""
        if self._output is not None and spec_of(self._output) != spec_of(output):
            # The module was changed: graphs captured before write an output of another shape or layout.
            graphs, held = [graph for graph, _ in self._graphs.values()], [self._output]
            self._graphs.clear()
            self._output = None
            self._reset(graphs, held)
        if self._output is None:
            with torch.inference_mode(False):
                self._output = torch.empty_like(output)
        self._output.copy_(output)

    def _capture(self, record: Callable[[], None], what: str) -> CapturedGraph | None:
        """The graph of `record`; None if capturing failed, which drops all other graphs too."""
        stage(f"{what}: capturing")
        start = time.perf_counter()
        try:
            with capturing(self.device), _uncached_casts(self.device):
                if not self._graphs:  # the allocator takes a pool back once all its graphs are reset
                    self._pool = self.backend.pool()
                graph = capture(self.backend, record, self._pool, self.device)
        except Exception as error:
            logger.warning("%s runs uncaptured; capturing it failed: %s: %s", what, type(error).__name__, error)
            self.failed = True
            self._drop()
            return None
        self.costs.captures += 1
        self.costs.capture_seconds += time.perf_counter() - start
        return graph

    def _drop(self) -> None:
        """Drop all graphs, their pool and the static inputs."""
        graphs = [graph for graph, _ in self._graphs.values()]
        held = [self._inputs, self._groups, self._output, self._pool]
        self._graphs.clear()
        self._inputs, self._groups, self._pool = None, [], None
        self._reset(graphs, held)

    def _reset(self, graphs: Sequence[CapturedGraph], held: list[object] | None = None) -> None:
        when_quiet(functools.partial(_reset, self.backend, self.device, graphs, held))

    def free(self) -> None:
        """Free all memory. The next call captures again."""
        self._drop()
        self._output = None

    @property
    def nbytes(self) -> int:
        slots = [slot for _, group in self._groups for slot in group]
        return sum(t.untyped_storage().nbytes() for t in (*slots, self._output) if t is not None)


def _static_like(inputs: dict[str, Any], device: torch.device) -> tuple[dict[str, Any], list[_Group]]:
    """Static tensors for these inputs, in the same nesting, and again in groups.

    All are on `device`, because a graph cannot read a tensor on the host (an IP-Adapter's mask, for example). Inputs of
    one dtype and device form a group, which one kernel copies.
    """
    slots: list[Tensor] = []

    def allocate(value: Tensor) -> Tensor:
        # An expanded tensor cannot be copied into: several of its elements share one address.
        expanded = any(stride == 0 and size > 1 for stride, size in zip(value.stride(), value.shape, strict=True))
        form = torch.contiguous_format if expanded else torch.preserve_format
        slots.append(torch.empty_like(value, memory_format=form, device=device))
        return slots[-1]

    with torch.inference_mode(False):
        static = map_tensors(allocate, inputs)
    groups: dict[object, _Group] = {}
    for i, value in enumerate(tensors_of(inputs)):
        places, group = groups.setdefault((value.dtype, value.device), ([], []))
        places.append(i)
        group.append(slots[i])
    return static, list(groups.values())


@contextmanager
def _uncached_casts(device: torch.device) -> Iterator[None]:
    """Switch off autocast's cache of cast weights: a graph would read it after the user's autocast block freed it."""
    if not autocasts(device.type):
        yield
        return
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


def _reset(
    backend: CaptureBackend, device: torch.device, graphs: Sequence[CapturedGraph], held: list[object] | None
) -> None:
    """Reset graphs once no replay is in flight, then release what replays use (`held`) to the device."""
    backend.synchronize(device)
    for graph in graphs:
        graph.reset()
    if held is not None:
        held.clear()
        backend.release(device)
