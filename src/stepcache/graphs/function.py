"""One function of a module and tensors, for one set of static shapes: eager or compiled, and captured.

What a U-Net's pair of graphs is made of, without feature and slots: for modules that a run calls as a whole.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

from .backends import CaptureBackend, CapturedGraph
from .compiled import Programs, captures_itself
from .costs import Costs
from .recorder import Recorder

Function = Callable[[nn.Module, dict[str, Any]], Tensor]


class FunctionGraph:
    """`function(module, inputs) -> Tensor` for one set of static shapes.

    options: arguments of torch.compile, None to run eager. backend: captures it, None where nothing is captured. `what`
    names it in messages; what it takes to compile and capture is added to `costs`. What is compiled is in `programs`,
    under `key`.
    """

    def __init__(
        self,
        function: Function,
        options: dict[str, Any] | None,
        backend: CaptureBackend | None,
        device: torch.device,
        what: str,
        costs: Costs,
        programs: Programs,
        key: Hashable,
    ) -> None:
        self.direct = _runner(function, options, what, costs, programs, key)
        self.captured = None if backend is None else CapturedFunction(self.direct, backend, device, what, costs)

    def free(self) -> None:
        """Give the captured graph's memory back; the next call captures anew."""
        if self.captured is not None:
            self.captured.free()

    @property
    def nbytes(self) -> int:
        """Bytes of static inputs and output."""
        return 0 if self.captured is None else self.captured.nbytes


class CapturedFunction(Recorder):
    """`function(module, inputs)`, captured at its first call and replayed from then on.

    It knows nothing of what the module holds: whoever calls it sees to it that the module is what it was at capture,
    and calls `free` where it is not. Where `failed` is set, later calls are no more for it.
    """

    def __init__(
        self, function: Function, backend: CaptureBackend, device: torch.device, what: str, costs: Costs
    ) -> None:
        super().__init__(backend, device, costs)
        self._function, self._what = function, what
        self._graph: CapturedGraph | None = None

    def __call__(self, module: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """The function's result, a tensor of the caller's own."""
        static = self.load(inputs)

        def record() -> None:
            self.write(self._function(module, static))

        if self._graph is None:
            self.rehearse(record)
            self._graph = self.capture(record, self._what)
            if self._graph is None:
                return self.take()
        return self.replay(self._graph)

    def drop(self) -> None:
        """Give up the graph, its pool and the static inputs."""
        super().drop()
        self._graph = None


def _runner(
    function: Function, options: dict[str, Any] | None, what: str, costs: Costs, programs: Programs, key: Hashable
) -> Function:
    if options is None:
        return function
    compiled = functools.partial(programs.get(key, function, options, what), costs)
    if not captures_itself(options):
        return compiled

    def in_trees(module: nn.Module, inputs: dict[str, Any]) -> Tensor:
        # Trees write their output at a fixed address.
        torch.compiler.cudagraph_mark_step_begin()
        return compiled(module, inputs).clone()

    return in_trees
