"""A stand-in for CUDA graphs on a CPU, as hostile as they are; for tests and for measuring the engine's host cost.

It keeps the captured function and calls it again at replay, and makes sure that a CUDA graph would have done the same:
- capture does not compute: what the function wrote to static tensors is NaN afterwards;
- a replay first fills all it will write with NaN, then must run the very operations of the capture, on the same
  addresses of everything that was not allocated inside: a moved weight or input is an error, where a CUDA graph would
  silently read the old one;
- what is allocated inside belongs to the pool: it must not outlive the function, and is NaN afterwards if it does;
- operations that make the host wait for a value (`.item()`, nonzero) are refused.

It sees the operations of eager and aot_eager graphs; Inductor allocates behind its back, so it is not for those.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .backends import WARM_UPS

SYNCING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal", "aten::masked_select")
# Tensors made of Python numbers: new at each call, where a CUDA graph has the number in its kernel.
CONSTANTS = ("aten::lift_fresh",)


class StandInError(RuntimeError):
    """What a CUDA graph would have refused, or got wrong without a word."""


class _Recorder(TorchDispatchMode):
    """Records each operation with the addresses of the tensors from outside that it touches."""

    def __init__(self) -> None:
        super().__init__()
        self.trace: list[tuple[str, tuple[int, ...]]] = []
        self.written: dict[int, Tensor] = {}
        self.inside: list[weakref.ref[Tensor]] = []
        self._own: dict[int, Any] = {}

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Dynamo refuses to run compiled code under a user's mode; this one only looks on."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name in SYNCING:
            raise StandInError(f"{name} waits for a value: not permitted while a graph is captured or replayed.")
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        outside = () if name in CONSTANTS else tuple(_address(t) for t in tensors if not self._is_own(t))
        self.trace.append((name, outside))
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.is_write and isinstance(value, Tensor) and not self._is_own(value):
                self.written[_address(value)] = value
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (_address(tensor) not in outside or name in CONSTANTS):
                self._own[_address(tensor)] = tensor.untyped_storage()
                self.inside.append(weakref.ref(tensor))
        return result

    def _is_own(self, tensor: Tensor) -> bool:
        # The storage is held, so that an address cannot come back as something else's during the capture.
        return _address(tensor) in self._own

    def finish(self) -> list[Tensor]:
        """Everything allocated inside becomes garbage; returns the tensors that outlived it."""
        alive = [tensor for ref in self.inside if (tensor := ref()) is not None]
        for storage in self._own.values():
            floats = torch.empty(0).set_(storage) if storage.nbytes() % 4 == 0 else None
            if floats is not None:
                floats.fill_(float("nan"))
        self._own.clear()
        return alive


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class StandInGraph:
    """One captured function."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function: Callable[[], None] | None = function
        self.replays = 0
        recorder = _Recorder()
        with recorder:
            function()
        if recorder.finish():
            raise StandInError("A tensor that was allocated in the capture outlives it; it is the pool's memory.")
        self._trace, self._written = recorder.trace, recorder.written
        self._poison()

    def replay(self) -> None:
        """Run it again; StandInError where a CUDA graph would have read or written elsewhere."""
        if self._function is None:
            raise StandInError("This graph was reset.")
        self._poison()
        recorder = _Recorder()
        with recorder:
            self._function()
        recorder.finish()
        for then, now in zip(self._trace, recorder.trace, strict=False):
            if then != now:
                raise StandInError(f"Captured {then}, replayed {now}: a CUDA graph would have run the captured one.")
        if len(self._trace) != len(recorder.trace):
            raise StandInError(f"Captured {len(self._trace)} operations, replayed {len(recorder.trace)}.")
        self.replays += 1

    def reset(self) -> None:
        """Drop the function and all it holds."""
        self._function, self._written = None, {}

    @property
    def is_reset(self) -> bool:
        """Whether it was reset."""
        return self._function is None

    def _poison(self) -> None:
        for tensor in self._written.values():
            tensor.fill_(float("nan"))


class StandInPool:
    """A token, with the graphs that were captured into it; the memory is the ordinary one."""

    def __init__(self) -> None:
        self.graphs: list[StandInGraph] = []


class StandInBackend:
    """`CaptureBackend` on a CPU, one instance a bucket: accelerate(pipe, cuda_graphs=StandInBackend)."""

    def __init__(self) -> None:
        self.graphs: list[StandInGraph] = []
        self.pools = self.entered = self.released = 0

    def pool(self) -> StandInPool:
        """A new one."""
        self.pools += 1
        return StandInPool()

    def capture(self, function: Callable[[], None], pool: StandInPool, device: torch.device) -> StandInGraph:
        """As many warm-ups as on CUDA, then the capture. StandInError for a pool that CUDA's allocator has taken back.

        That is one whose graphs are all reset: capturing into it is an assertion in there.
        """
        if pool.graphs and all(graph.is_reset for graph in pool.graphs):
            raise StandInError("All graphs of this pool were reset, so it is the allocator's again.")
        for _ in range(WARM_UPS):
            function()
        self.graphs.append(StandInGraph(function))
        pool.graphs.append(self.graphs[-1])
        return self.graphs[-1]

    def enter(self, device: torch.device) -> None:
        """There are no streams."""
        self.entered += 1

    def synchronize(self, device: torch.device) -> None:
        """Nothing is ever in flight."""

    def release(self, device: torch.device) -> None:
        """Count it."""
        self.released += 1
