"""Capture and replay: the interface that capture.py uses, and its CUDA implementation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch

logger = logging.getLogger("stepcache")


class CapturedGraph(Protocol):
    """A captured graph: the kernels of one function, with the addresses used at capture."""

    def replay(self) -> None:
        """Run it on the current stream."""

    def reset(self) -> None:
        """Free its memory. It can no longer be replayed."""


class CaptureBackend(Protocol):
    """What differs between capturing on a GPU and on its stand-in.

    warm_ups: how often a function runs on the capture stream before it is captured.
    """

    warm_ups: int

    def pool(self) -> object:
        """A memory pool for the graphs of one bucket."""

    def on_capture_stream(self, device: torch.device) -> AbstractContextManager[object]:
        """Run the block on the capture stream, ordered after earlier work and before later work."""

    def record(self, function: Callable[[], None], pool: object, device: torch.device) -> CapturedGraph:
        """The graph of `function`, which allocates from `pool`. It must write its results to static tensors."""

    def clear_workspaces(self) -> None:
        """Free all cuBLAS workspaces; the next GEMM on a stream allocates a new one."""

    def abandon(self, pool: object, device: torch.device) -> None:
        """Called after `record` failed: tell the allocator that the capture is over."""

    def enter(self, device: torch.device) -> None:
        """Called before each use of a bucket's graphs: order this stream after the one that last used them."""

    def synchronize(self, device: torch.device) -> None:
        """Called before graphs are reset: wait until no replay is in flight."""

    def release(self, device: torch.device) -> None:
        """Called after graphs were reset: return their pool to the device."""


def capture(backend: CaptureBackend, function: Callable[[], None], pool: object, device: torch.device) -> CapturedGraph:
    """Warm `function` up, then capture it. The caller must hold `turns.capturing`.

    The warm-ups run on the capture stream. They finish the autotuning and lazy initialisation of cuDNN and Triton,
    which a capture does not allow.

    A graph contains the address of its stream's cuBLAS workspace, which others may free: another graph's `reset` in
    torch 2.13, or torch's CUDA graph trees (pytorch#193402). So each pool gets its own workspace. Before the capture
    we free the one that the warm-ups allocated in ordinary memory; after it we make cuBLAS forget the one in the pool.
    """
    with backend.on_capture_stream(device):
        for _ in range(backend.warm_ups):
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
    """CUDA graphs; one instance per bucket."""

    warm_ups = 3

    def __init__(self) -> None:
        self._last: torch.cuda.Stream | None = None

    def pool(self) -> object:
        return torch.cuda.graph_pool_handle()

    @contextmanager
    def on_capture_stream(self, device: torch.device) -> Iterator[None]:
        """Make the device's capture stream current, ordered after the caller's stream."""
        with torch.cuda.device(device):
            stream, user = _capture_stream(device), torch.cuda.current_stream()
            stream.wait_stream(user)
            try:
                with torch.cuda.stream(stream):
                    yield
            finally:
                # After an invalidated capture, torch's context manager leaves the capture stream current.
                torch.cuda.set_stream(user)
            user.wait_stream(stream)

    def record(self, function: Callable[[], None], pool: object, device: torch.device) -> CapturedGraph:
        """Capture on the current stream. thread_local lets other threads allocate meanwhile."""
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream()
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            function()
        return graph

    def clear_workspaces(self) -> None:
        """torch's CUDA graph trees call the same function before and after each capture."""
        torch._C._cuda_clearCublasWorkspaces()

    def abandon(self, pool: object, device: torch.device) -> None:
        """Tell the allocator that the capture is over. torch 2.11 does not if CUDA has invalidated it."""
        try:
            torch._C._cuda_endAllocateToPool(_index(device), pool)
        except RuntimeError:
            return  # torch has done it, or the capture never began
        torch._C._cuda_releasePool(_index(device), pool)

    def enter(self, device: torch.device) -> None:
        """Wait, on the device and not on the host, for the stream that last used the static tensors."""
        stream = torch.cuda.current_stream(device)
        if self._last is not None and self._last != stream:
            stream.wait_stream(self._last)
        self._last = stream

    def synchronize(self, device: torch.device) -> None:
        """Wait for the whole device: static tensors and pool may be in use on any stream."""
        # The garbage collector may call this during the user's own capture.
        if not torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize(device)

    def release(self, device: torch.device) -> None:
        """Empty the allocator's cache, which keeps the pool of reset graphs reserved."""
        if torch.cuda.is_current_stream_capturing():
            return
        try:
            with torch.cuda.device(device):
                torch.cuda.empty_cache()
        except RuntimeError as error:
            logger.warning("The memory of captured graphs stays reserved: %s", error)


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


# One per device, because streams are few; captures take turns.
_capture_streams: dict[torch.device, torch.cuda.Stream] = {}


def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    if device not in _capture_streams:
        _capture_streams[device] = torch.cuda.Stream(device)
    return _capture_streams[device]
