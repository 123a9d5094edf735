"""Capture and replay: the small interface that the capture engine speaks to, and its CUDA implementation."""

from __future__ import annotations

import logging
from collections.abc import Callable
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

    def capture(self, function: Callable[[], None], pool: object, device: torch.device) -> CapturedGraph:
        """Warm `function` up and capture it. It allocates from `pool`; its results must go to static tensors."""

    def enter(self, device: torch.device) -> None:
        """Called before each use of a bucket's graphs: order this stream after the one that used them last."""

    def synchronize(self, device: torch.device) -> None:
        """Called before graphs are reset: wait until no replay is in flight."""

    def release(self, device: torch.device) -> None:
        """Called after graphs were reset: give their pool back to the device."""


class CudaBackend:
    """CUDA graphs, one instance a bucket."""

    def __init__(self) -> None:
        self._last: torch.cuda.Stream | None = None

    def pool(self) -> object:
        """A new private pool."""
        return torch.cuda.graph_pool_handle()

    def capture(self, function: Callable[[], None], pool: object, device: torch.device) -> CapturedGraph:
        """Three warm-ups and the capture, on a stream of their own.

        The warm-ups run on the capture stream, so that cuDNN's and Triton's autotuning and lazy initialisation are
        over before the capture, in which neither is allowed. thread_local: other threads may allocate meanwhile.
        """
        with torch.cuda.device(device):
            stream, user = _capture_stream(device), torch.cuda.current_stream()
            stream.wait_stream(user)
            try:
                with torch.cuda.stream(stream):
                    for _ in range(WARM_UPS):
                        function()
                stream.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                    function()
            finally:
                # Where a capture was invalidated, torch's context manager leaves the capture stream current.
                torch.cuda.set_stream(user)
            user.wait_stream(stream)
        return graph

    def enter(self, device: torch.device) -> None:
        """Wait on the device, not on the host, for the stream that used the static tensors last."""
        stream = torch.cuda.current_stream(device)
        if self._last is not None and self._last != stream:
            stream.wait_stream(self._last)
        self._last = stream

    def synchronize(self, device: torch.device) -> None:
        """Wait for the whole device: slots and pool may be in use on any stream."""
        if not torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize(device)

    def release(self, device: torch.device) -> None:
        """The pool of graphs that are gone is free for the allocator, but stays reserved until its cache is emptied."""
        if torch.cuda.is_current_stream_capturing():
            return  # another capture of this thread, in which the garbage collector found a dead pipe
        try:
            with torch.cuda.device(device):
                torch.cuda.empty_cache()
        except RuntimeError as error:
            # After a capture that was invalidated the allocator believes that it still goes on.
            logger.warning("The memory of captured graphs stays reserved: %s", error)


# One a device: each stream on which a GEMM runs gets a workspace of its own from cuBLAS, which is never returned.
_capture_streams: dict[torch.device, torch.cuda.Stream] = {}


def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    if device not in _capture_streams:
        _capture_streams[device] = torch.cuda.Stream(device)
    return _capture_streams[device]
