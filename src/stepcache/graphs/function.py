"""One function of a module and tensors, for one set of static shapes: eager or compiled, and captured.

What a U-Net's pair of graphs is made of, without feature and slots: for modules that a run calls as a whole.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .backends import CaptureBackend, CapturedGraph
from .captured import StaticInputs, _locks, _uncached_casts
from .compiled import CompiledFunction, captures_itself
from .costs import Costs
from .stages import stage

logger = logging.getLogger("stepcache")

Function = Callable[[nn.Module, dict[str, Any]], Tensor]


class FunctionGraph:
    """`function(module, inputs) -> Tensor` for one set of static shapes.

    options: arguments of torch.compile, None to run eager. backend: captures it, None where nothing is captured. `what`
    names it in messages; what it takes to compile and capture is added to `costs`.
    """

    def __init__(
        self,
        function: Function,
        options: dict[str, Any] | None,
        backend: CaptureBackend | None,
        device: torch.device,
        what: str,
        costs: Costs,
    ) -> None:
        self.direct = _runner(function, options, what, costs)
        self.captured = None if backend is None else CapturedFunction(self.direct, backend, device, what, costs)

    def free(self) -> None:
        """Give the captured graph's memory back; the next call captures anew."""
        if self.captured is not None:
            self.captured.free()

    @property
    def nbytes(self) -> int:
        """Bytes of static inputs and output."""
        return 0 if self.captured is None else self.captured.nbytes


class CapturedFunction:
    """`function(module, inputs)`, captured at its first call and replayed from then on.

    It knows nothing of what the module holds: whoever calls it sees to it that the module is what it was at capture,
    and calls `free` where it is not. A capture that fails is said once; `failed` is set, and later calls are no more
    for it.
    """

    def __init__(
        self, function: Function, backend: CaptureBackend, device: torch.device, what: str, costs: Costs
    ) -> None:
        self._function, self.backend, self.device, self._what, self._costs = function, backend, device, what, costs
        self.failed = False
        self._graph: CapturedGraph | None = None
        self._static: StaticInputs | None = None
        self._output: Tensor | None = None
        self._lock = _locks.setdefault(device, threading.RLock())

    def __call__(self, module: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """The function's result, a tensor of the caller's own."""
        self.backend.enter(self.device)
        if self._static is None:
            self._static = StaticInputs(inputs)
        self._static.load(inputs)
        static = self._static.inputs

        def record() -> None:
            self._write_output(self._function(module, static))

        if self._graph is None:
            with _uncached_casts(self.device):
                # Outside of lock and capture: compiles, and allocates the output in ordinary memory.
                record()
                self._graph = self._capture(record)
            if self._graph is None:
                output, self._output = self._output, None
                assert output is not None
                return output
        with self._lock:
            self._graph.replay()
            assert self._output is not None
            return self._output.clone()

    def _write_output(self, output: Tensor) -> None:
        if self._output is None:
            with torch.inference_mode(False):
                self._output = torch.empty_like(output)
        self._output.copy_(output)

    def _capture(self, record: Callable[[], None]) -> CapturedGraph | None:
        stage(f"{self._what}: capturing")
        start = time.perf_counter()
        try:
            with self._lock:
                # A pool of its own each time: one whose graphs were all reset cannot be captured into again.
                graph = self.backend.capture(record, self.backend.pool(), self.device)
        except Exception as error:
            self.failed = True
            logger.warning("%s runs uncaptured; capturing it failed: %s: %s", self._what, type(error).__name__, error)
            self._drop()
            return None
        self._costs.captures += 1
        self._costs.capture_seconds += time.perf_counter() - start
        return graph

    def _drop(self) -> None:
        with self._lock:
            self.backend.synchronize(self.device)
            if self._graph is not None:
                self._graph.reset()
            self._graph = self._static = None
            self.backend.release(self.device)

    def free(self) -> None:
        """Reset the graph and give its pool, inputs and output back."""
        self._drop()
        self._output = None

    @property
    def nbytes(self) -> int:
        """Bytes of static inputs and output."""
        output = 0 if self._output is None else self._output.untyped_storage().nbytes()
        return output + (0 if self._static is None else self._static.nbytes)


def _runner(function: Function, options: dict[str, Any] | None, what: str, costs: Costs) -> Function:
    if options is None:
        return function
    compiled = CompiledFunction(function, options, what, costs)
    if not captures_itself(options):
        return compiled

    def in_trees(module: nn.Module, inputs: dict[str, Any]) -> Tensor:
        # Trees write their output at a fixed address.
        torch.compiler.cudagraph_mark_step_begin()
        return compiled(module, inputs).clone()

    return in_trees
