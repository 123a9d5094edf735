"""Capture and replay: the small interface that the capture engine speaks to, and its CUDA implementation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch

logger = logging.getLogger("stepcache")

WARM_UPS = 3


class CapturedGraph(Protocol):
    """A captured graph: the kernels of one function, on the addresses that they had at capture."""

    def replay(self) -> None:
        """Run it on the current stream."""

    def reset(self) -> None:
        """Give its memory back; it cannot be replayed any more."""


class CaptureBackend(Protocol):
    """Where graphs are captured. Only what differs between a GPU and its stand-in is here."""

    def pool(self) -> object:
        """A memory pool for the graphs of one bucket."""

    def on_capture_stream(self, device: torch.device) -> AbstractContextManager[object]:
        """Inside, work goes to the stream that captures; what was queued before and comes after is in order with it."""

    def record(self, function: Callable[[], None], pool: object, device: torch.device) -> CapturedGraph:
        """The graph of `function`, which allocates from `pool`. Its results must go to static tensors."""

    def clear_workspaces(self) -> None:
        """Give all workspaces of cuBLAS back to their allocator; the next GEMM on a stream makes a new one."""

    def abandon(self, pool: object, device: torch.device) -> None:
        """Called after a `record` that failed: the allocator must know that it is over."""

    def enter(self, device: torch.device) -> None:
        """Called before each use of a bucket's graphs: order this stream after the one that used them last."""

    def synchronize(self, device: torch.device) -> None:
        """Called before graphs are reset: wait until no replay is in flight."""

    def release(self, device: torch.device) -> None:
        """Called after graphs were reset: give their pool back to the device."""


def capture(backend: CaptureBackend, function: Callable[[], None], pool: object, device: torch.device) -> CapturedGraph:
    """Three warm-ups and the capture. Called in the turn of a capture (turns.py).

    The warm-ups run on the capture stream, so that cuDNN's and Triton's autotuning and lazy initialisation are over
    before the capture, in which neither is allowed.

    A graph has the address of cuBLAS's workspace baked in, one a stream, which others free: another graph's `reset` in
    torch 2.13, torch's CUDA graph trees (pytorch#193402). So each pool gets a workspace of its own: the one that the
    warm-ups made in ordinary memory goes before the capture, and the one of the capture, which lies in the pool, is
    forgotten after it.
    """
    with backend.on_capture_stream(device):
        for _ in range(WARM_UPS):
            function()
        backend.clear_workspaces()
        try:
            return backend.record(function, pool, device)
        except BaseException:
            backend.abandon(pool, device)
            raise
        finally:
            backend.clear_workspaces()


class CudaBackend:
    """CUDA graphs, one instance a bucket."""

    def __init__(self) -> None:
        self._last: torch.cuda.Stream | None = None

    def pool(self) -> object:
        """A new private pool."""
        return torch.cuda.graph_pool_handle()

    @contextmanager
    def on_capture_stream(self, device: torch.device) -> Iterator[None]:
        """Inside, the current stream is the device's capture stream, behind the one that was current before."""
        with torch.cuda.device(device):
            stream, user = _capture_stream(device), torch.cuda.current_stream()
            stream.wait_stream(user)
            try:
                with torch.cuda.stream(stream):
                    yield
            finally:
                # Where a capture was invalidated, torch's context manager leaves the capture stream current.
                torch.cuda.set_stream(user)
            user.wait_stream(stream)

    def record(self, function: Callable[[], None], pool: object, device: torch.device) -> CapturedGraph:
        """Capture on the current stream. thread_local: other threads may allocate meanwhile."""
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream()
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            function()
        return graph

    def clear_workspaces(self) -> None:
        """As torch's own CUDA graph trees do before and after each of their captures."""
        torch._C._cuda_clearCublasWorkspaces()

    def abandon(self, pool: object, device: torch.device) -> None:
        """Tell the allocator that the capture is over. torch does not where CUDA has invalidated it (2.11)."""
        try:
            torch._C._cuda_endAllocateToPool(_index(device), pool)
        except RuntimeError:
            return  # torch did, or the capture never began
        torch._C._cuda_releasePool(_index(device), pool)

    def enter(self, device: torch.device) -> None:
        """Wait on the device, not on the host, for the stream that used the static tensors last."""
        stream = torch.cuda.current_stream(device)
        if self._last is not None and self._last != stream:
            stream.wait_stream(self._last)
        self._last = stream

    def synchronize(self, device: torch.device) -> None:
        """Wait for the whole device: slots and pool may be in use on any stream."""
        if not torch.cuda.is_current_stream_capturing():  # a capture of the user's, which the garbage collector is in
            torch.cuda.synchronize(device)

    def release(self, device: torch.device) -> None:
        """The pool of graphs that are gone is free for the allocator, but stays reserved until its cache is emptied."""
        if torch.cuda.is_current_stream_capturing():
            return
        try:
            with torch.cuda.device(device):
                torch.cuda.empty_cache()
        except RuntimeError as error:
            logger.warning("The memory of captured graphs stays reserved: %s", error)


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


# One a device, since streams are few; no two captures are on it at once.
_capture_streams: dict[torch.device, torch.cuda.Stream] = {}


def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    if device not in _capture_streams:
        _capture_streams[device] = torch.cuda.Stream(device)
    return _capture_streams[device]
