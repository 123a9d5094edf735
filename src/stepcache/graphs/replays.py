"""The time of a call on a GPU, without the host's: a CUDA graph of many calls, replayed between events.

The host takes longer to launch a small kernel than the GPU to run it, and the more so the more Python is around it, so
that calls one by one measure the host. In a graph all calls are there before the first one runs, and whoever is
compared is measured the same way. The graph's calls go through all sets of inputs in turn: where they are larger than
the L2 cache together (`copies_beyond_l2`), no call finds its inputs there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch

from .backends import CudaBackend, capture
from .turns import capturing

CALLS = 50
"""At least so many calls are in a graph."""
REPLAYS = 20


def copies_beyond_l2(bytes_per_call: int, device: torch.device | None = None) -> int:
    """How many sets of inputs exceed twice the L2 cache (of the current device by default), and at least two."""
    l2 = torch.cuda.get_device_properties(device or torch.cuda.current_device()).L2_cache_size
    return max(2, 2 * l2 // bytes_per_call + 1)


def calls_in_graph(sets: int) -> int:
    """At least CALLS, and every set of inputs as often as the others."""
    return sets * -(-CALLS // sets)


def times_us(
    call: Callable[..., object], inputs: Sequence[tuple[Any, ...]], device: torch.device | None = None
) -> list[float]:
    """Microseconds of a call on `device` (default: the current one): of REPLAYS replays, each one's over its calls."""
    device = device or torch.device("cuda", torch.cuda.current_device())
    calls, backend = calls_in_graph(len(inputs)), CudaBackend()

    def run() -> None:
        for i in range(calls):
            call(*inputs[i % len(inputs)])

    # To its end the turn of a capture: nobody else replays, and nobody captures while this synchronises.
    with torch.cuda.device(device), capturing(device):
        graph = capture(backend, run, backend.pool(), device)
        # Between the first two events the device may still wait for the host, which from then on is ahead.
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
        """How many inputs of so many bytes exceed twice the L2 cache."""
        return copies_beyond_l2(nbytes, self.device)

    def times_us(self, call: Callable[..., object], inputs: Sequence[tuple[Any, ...]]) -> list[float]:
        """Microseconds of a call, once for each replay."""
        return times_us(call, inputs, self.device)
