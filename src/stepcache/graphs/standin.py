"""A stand-in for CUDA graphs on a CPU, as hostile as the real ones. For tests, and to measure the engine's host cost.

A capture runs the function once and records its operations as a CUDA graph records kernels: with their scalar arguments
and the addresses they read and write. A replay runs the operations and never the function, so the graph keeps the
Python values, branches and objects of the capture. As on a GPU:

- a capture computes nothing: static tensors that the function writes are NaN after it, and before each replay;
- a graph does not keep memory alive. Using freed memory is an error, unless a weight has since come to that address:
  a replay then reads it. If a weight was replaced but the old tensor still exists, a replay reads the old one. Both as
  a CUDA graph does;
- memory allocated inside belongs to the pool: it must not outlive the function, and is NaN afterwards;
- a replay writes without a new `_version`, so that does not show that a graph's output changed;
- operations that make the host wait for a value (`.item()`, nonzero) are refused, and so are tensors on the host
  (hosttensor.py);
- GEMMs use their stream's workspace, and its address is captured. The first GEMM allocates it: during a capture from
  the pool, to be freed with the pool's graphs; otherwise from ordinary memory, and then `reset` of any graph frees it
  (as in torch 2.13; RESET_CLEARS). Using a freed workspace fails;
- a process has one capture at a time. A device-wide synchronisation in any thread meanwhile fails, and so does the
  capture;
- after a failed capture the allocator assumes that it goes on, until `abandon` is called.

It sees the operations of eager and aot_eager graphs, and a package's run as one operation, but not Inductor's kernels.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode, _pop_mode_temporarily

from ..forwards.nested import tensors_of
from ..packages.loaded import watcher
from .hosttensor import HostTensor
from .standin_memory import Outside, Place, StandInError

SYNCING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal", "aten::masked_select")
# Tensors made from Python numbers; a CUDA graph holds these in its kernels.
CONSTANTS = ("aten::lift_fresh",)
# Operations that cuBLAS runs with a workspace.
GEMMS = ("mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "linear", "matmul", "_addmm_activation")


# Whether resetting a graph frees the workspaces of all streams (torch 2.13) or of none (2.11).
RESET_CLEARS = True


class StandInPool:
    """A pool's identity and the graphs captured into it. Memory comes from the ordinary allocator."""

    def __init__(self) -> None:
        self.graphs: list[StandInGraph] = []

    @property
    def gone(self) -> bool:
        """Whether the allocator has taken its memory back, because all graphs were reset."""
        return bool(self.graphs) and all(graph.is_reset for graph in self.graphs)


class _Workspace:
    """The cuBLAS workspace of one thread and stream, in ordinary memory or in a pool."""

    def __init__(self, pool: StandInPool | None) -> None:
        self._pool, self._freed = pool, False

    @property
    def gone(self) -> bool:
        """Whether its memory may have been reused."""
        return self._freed if self._pool is None else self._pool.gone

    def free(self) -> None:
        """Return it to where it came from. A pool's memory stays the pool's, so graphs may still use it."""
        self._freed = True


class _Process:
    """State that a process has once."""

    def __init__(self) -> None:
        self.capturing: _Recorder | None = None
        self.allocating = False  # to a pool
        self.workspaces: dict[int, _Workspace] = {}  # of the capture stream, by thread

    def begin(self, recorder: _Recorder) -> None:
        self.synchronize()  # torch.cuda.graph begins with it
        if self.allocating:
            raise StandInError("The allocator assumes that the last capture, which failed, goes on: abandon it.")
        self.capturing, self.allocating = recorder, True

    def end(self, recorder: _Recorder) -> None:
        self.capturing = None
        if recorder.invalid:
            raise StandInError(recorder.invalid)

    def synchronize(self) -> None:
        if self.capturing is not None:
            self.capturing.invalid = "The device was synchronised during the capture: the capture is invalid."
            raise StandInError("Operation not permitted while a stream is capturing: a synchronisation of the device.")

    def workspace(self, pool: StandInPool | None) -> _Workspace:
        workspace = self.workspaces.setdefault(threading.get_ident(), _Workspace(pool))
        if workspace.gone:
            raise StandInError("A GEMM would use a workspace in the memory of a freed pool.")
        return workspace

    def clear_workspaces(self) -> None:
        for workspace in self.workspaces.values():
            workspace.free()
        self.workspaces.clear()


_process = _Process()


class _Operation(NamedTuple):
    """One operation; allocates: pairs of a result's index and the number of the graph's allocation that it is."""

    function: Any
    args: Any
    kwargs: Any
    allocates: list[tuple[int, int]]


class _Watch(TorchDispatchMode):
    """Observes work on the capture stream outside a capture, where GEMMs allocate a workspace in ordinary memory."""

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Yes, because Dynamo refuses to run compiled code under a user's mode; this one only observes."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _is_gemm(func):
            _process.workspace(pool=None)
        return func(*args, **(kwargs or {}))


class _Recorder(TorchDispatchMode):
    """Records each operation of a capture."""

    def __init__(self, pool: StandInPool) -> None:
        super().__init__()
        self._pool = pool
        self.operations: list[_Operation] = []
        self.written: dict[int, Place] = {}  # tensors outside the pool, by storage
        self.workspaces: set[_Workspace] = set()
        self.invalid = ""
        # By storage. Holding the storages keeps their keys from being reused during the capture.
        self._own: dict[int, tuple[int, UntypedStorage]] = {}
        self._constant: dict[int, UntypedStorage] = {}
        self._results: list[weakref.ref[Tensor]] = []

    @classmethod
    def is_infra_mode(cls) -> bool:
        """See `_Watch`."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        if name in SYNCING:
            raise StandInError(f"{name} waits for a value: not permitted while a graph is captured.")
        tensors = tensors_of((args, kwargs))
        if any(isinstance(tensor, HostTensor) for tensor in tensors):
            raise StandInError(f"{name} was given a tensor on the host: not permitted while a graph is captured.")
        if name in CONSTANTS:
            result = func(*args, **kwargs)
            self._constant[_key(result)] = result.untyped_storage()
            return result
        if _is_gemm(func):
            self.workspaces.add(_process.workspace(self._pool))
        return self._record(func, args, kwargs, self._note_writes(func, args, kwargs))

    def native(self, function: Callable[..., Any], tensors: list[Tensor]) -> Any:
        """A package's run. Its results are new tensors, and it may use cuBLAS."""
        self.workspaces.add(_process.workspace(self._pool))
        with _pop_mode_temporarily():  # the operations inside are its own
            return self._record(function, (tensors,), {}, writes=False)

    def _record(self, func: Callable[..., Any], args: Any, kwargs: Any, writes: bool) -> Any:
        args_as_places, kwargs_as_places = _mapped(Tensor, self._place, (args, kwargs))
        known = {_key(tensor) for tensor in tensors_of((args, kwargs))}
        result = func(*args, **kwargs)
        allocates = []
        for i, leaf in enumerate(tensors_of(result)):
            if _key(leaf) not in known and _key(leaf) not in self._own:
                allocates.append((i, len(self._own)))
                self._own[_key(leaf)] = len(self._own), leaf.untyped_storage()
            if _key(leaf) in self._own:
                self._results.append(weakref.ref(leaf))
        if allocates or writes:  # anything else is a view and has no kernel
            self.operations.append(_Operation(func, args_as_places, kwargs_as_places, allocates))
        return result

    def _place(self, tensor: Tensor) -> Place:
        key = _key(tensor)
        if key in self._own:
            return Place(tensor, self._own[key][0])
        return Place(tensor, self._constant.get(key) or Outside(tensor.untyped_storage()))

    def _note_writes(self, func: Any, args: Any, kwargs: Any) -> bool:
        arguments = func._schema.arguments
        given = [*zip(arguments, args, strict=False), *((a, kwargs[a.name]) for a in arguments if a.name in kwargs)]
        written = [value for argument, value in given if argument.is_write]
        for tensor in tensors_of(written):
            if _key(tensor) not in self._own:
                self.written[_key(tensor)] = self._place(tensor)
        return bool(written)

    def finish(self) -> bool:
        """Overwrite everything allocated inside with NaN; returns whether any of it is still in use."""
        for _, storage in self._own.values():
            if storage.nbytes() % 4 == 0:
                torch.empty(0).set_(storage).fill_(float("nan"))
        self._own.clear()
        self._constant.clear()
        return any(result() is not None for result in self._results)


def _mapped(kind: type, function: Callable[[Any], Any], value: Any) -> Any:
    """`value` with `function` applied to all items of type `kind`. pytree's takes longer than most CPU operations."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, dict):
        return {key: _mapped(kind, function, item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([_mapped(kind, function, item) for item in value])
    return value


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _is_gemm(func: Any) -> bool:
    return func._schema.name.removeprefix("aten::") in GEMMS


class StandInGraph:
    """One captured function."""

    def __init__(self, function: Callable[[], None], pool: StandInPool | None = None) -> None:
        self.replays = 0
        recorder = _Recorder(pool or StandInPool())
        _process.begin(recorder)
        token = watcher.set(recorder.native)
        try:
            with recorder:
                function()
        finally:
            watcher.reset(token)
            _process.end(recorder)
        _process.allocating = False
        if recorder.finish():
            raise StandInError("A tensor that was allocated in the capture outlives it, but its memory is the pool's.")
        self._operations: list[_Operation] | None = recorder.operations
        self._written, self._workspaces = [*recorder.written.values()], recorder.workspaces
        self._poison()

    @torch.no_grad()
    def replay(self) -> None:
        """Run the operations again. Raises StandInError if memory they use was freed."""
        if self._operations is None:
            raise StandInError("This graph was reset.")
        if any(workspace.gone for workspace in self._workspaces):
            raise StandInError("This graph uses a cuBLAS workspace that was freed.")
        allocated: dict[int, UntypedStorage] = {}
        # As at capture: below autocast, and without inference tensors, so that the next run may write to them.
        with torch.inference_mode(False), torch.autocast("cpu", enabled=False):
            self._poison()
            for function, args, kwargs, allocates in self._operations:
                args, kwargs = _mapped(Place, lambda place: place.tensor(allocated), (args, kwargs))
                results = tensors_of(function(*args, **kwargs))
                for i, n in allocates:
                    allocated[n] = results[i].untyped_storage()
        self.replays += 1

    def reset(self) -> None:
        """Drop the recorded operations."""
        self._operations, self._written = None, []
        if RESET_CLEARS:
            _process.clear_workspaces()

    @property
    def is_reset(self) -> bool:
        return self._operations is None

    def _poison(self) -> None:
        for place in self._written:
            tensor = place.tensor({})
            tensor.fill_(float("nan") if tensor.is_floating_point() else -1)


class StandInBackend:
    """`CaptureBackend` on a CPU, one instance per bucket: accelerate(pipe, cuda_graphs=StandInBackend)."""

    warm_ups = 1  # allocates the workspace; nothing here is tuned

    def __init__(self) -> None:
        self.graphs: list[StandInGraph] = []
        self.pools = self.entered = self.released = 0
        self._watches = False

    def pool(self) -> StandInPool:
        self.pools += 1
        return StandInPool()

    @contextmanager
    def on_capture_stream(self, device: torch.device) -> Iterator[None]:
        """Simulates one thing about streams: GEMMs outside a capture put their workspace in ordinary memory."""
        with _Watch():
            self._watches = True
            try:
                yield
            finally:
                self._watches = False

    def record(self, function: Callable[[], None], pool: StandInPool, device: torch.device) -> StandInGraph:
        """Capture. Raises StandInError if all graphs of the pool are reset.

        CUDA's allocator has then taken the pool back, and capturing into it fails an assertion there.
        """
        if pool.gone:
            raise StandInError("All graphs of this pool were reset, so it is the allocator's again.")
        # Beneath the recorder, `_Watch` would only make each operation slower.
        with _pop_mode_temporarily() if self._watches else nullcontext():
            self.graphs.append(StandInGraph(function, pool))
        pool.graphs.append(self.graphs[-1])
        return self.graphs[-1]

    def clear_workspaces(self) -> None:
        """Free all workspaces of the process, as CUDA graph trees do too."""
        _process.clear_workspaces()

    def abandon(self, pool: StandInPool, device: torch.device) -> None:
        _process.allocating = False

    def enter(self, device: torch.device) -> None:
        """Only counts: there are no streams to order."""
        self.entered += 1

    def synchronize(self, device: torch.device) -> None:
        """Nothing to wait for, but an error during any capture."""
        _process.synchronize()

    def release(self, device: torch.device) -> None:
        """Count the call. Raises StandInError if the allocator could not empty its cache."""
        if _process.capturing is not None or _process.allocating:
            raise StandInError("The allocator cannot empty its cache while it allocates to a pool.")
        self.released += 1
