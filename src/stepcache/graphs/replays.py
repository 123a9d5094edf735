"""GPU time of a call, without the host's: replay a CUDA graph of many calls between events.

The host takes longer to launch a small kernel than the GPU takes to run it, and Python adds to that, so timing calls
one by one measures the host. In a graph all calls are queued before the first one runs, the same for everything that
is compared. The calls take the sets of inputs in turn: if these exceed the L2 cache (`copies_beyond_l2`), no call finds
its inputs there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch

from .backends import CudaBackend, capture
from .turns import capturing

CALLS = 50
"""The fewest calls in a graph."""
REPLAYS = 20


def copies_beyond_l2(bytes_per_call: int, device: torch.device | None = None) -> int:
    """How many sets of inputs exceed twice the L2 cache of `device` (default: the current one); at least two."""
    l2 = torch.cuda.get_device_properties(device or torch.cuda.current_device()).L2_cache_size
    return max(2, 2 * l2 // bytes_per_call + 1)


def calls_in_graph(sets: int) -> int:
    """How many calls a graph holds: at least CALLS, and equally many for each set of inputs."""
    return sets * -(-CALLS // sets)


def times_us(
    call: Callable[..., object], inputs: Sequence[tuple[Any, ...]], device: torch.device | None = None
) -> list[float]:
    """Microseconds per call on `device` (default: the current one), one figure for each of REPLAYS replays."""
    device = device or torch.device("cuda", torch.cuda.current_device())
    calls, backend = calls_in_graph(len(inputs)), CudaBackend()

    def run() -> None:
        for i in range(calls):
            call(*inputs[i % len(inputs)])

    # Hold the capture lock throughout: no other thread replays meanwhile, or captures while this synchronises.
    with torch.cuda.device(device), capturing(device):
        graph = capture(backend, run, backend.pool(), device)
        # The first interval may include waiting for the host, so it is dropped; after that the host is ahead.
        events = [torch.cuda.Event(enable_timing=True) for _ in range(REPLAYS + 2)]
        events[0].record()
        for event in events[1:]:
            graph.replay()
            event.record()
        torch.cuda.synchronize()
        graph.reset()
        backend.release(device)
    return [1000 * begin.elapsed_time(end) / calls for begin, end in pairwise(events[1:])]


class ReplayTimer:
    """Times calls on one CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def sets(self, nbytes: int) -> int:
        """How many sets of inputs of `nbytes` each exceed twice the L2 cache."""
        return copies_beyond_l2(nbytes, self.device)

    def times_us(self, call: Callable[..., object], inputs: Sequence[tuple[Any, ...]]) -> list[float]:
        """Microseconds per call, one figure for each replay."""
        return times_us(call, inputs, self.device)
