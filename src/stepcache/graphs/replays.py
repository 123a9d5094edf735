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

from .turns import capturing

WARM_UP = 3
"""Calls before the capture, on its stream: autotuning and lazy loading are not allowed in one."""
CALLS = 50
"""At least so many calls are in a graph."""
REPLAYS = 20


def copies_beyond_l2(bytes_per_call: int) -> int:
    """How many sets of inputs exceed twice the L2 cache, and at least two."""
    l2 = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    return max(2, 2 * l2 // bytes_per_call + 1)


def calls_in_graph(sets: int) -> int:
    """At least CALLS, and every set of inputs as often as the others."""
    return sets * -(-CALLS // sets)


def times_us(call: Callable[..., object], inputs: Sequence[tuple[Any, ...]]) -> list[float]:
    """Microseconds of a call on the current device: of REPLAYS replays, each one's time over the calls in it."""
    with capturing(torch.device("cuda", torch.cuda.current_device())):
        return _times_us(call, inputs)


def _times_us(call: Callable[..., object], inputs: Sequence[tuple[Any, ...]]) -> list[float]:
    calls = calls_in_graph(len(inputs))
    graph = _captured(call, [inputs[i % len(inputs)] for i in range(calls)])
    # Between the first two events the device may still wait for the host, which from then on is ahead.
    events = [torch.cuda.Event(enable_timing=True) for _ in range(REPLAYS + 2)]
    events[0].record()
    for event in events[1:]:
        graph.replay()
        event.record()
    torch.cuda.synchronize()
    times = [begin.elapsed_time(end) for begin, end in pairwise(events[1:])]
    graph.reset()
    return [1000 * time / calls for time in times]


def _captured(call: Callable[..., object], arguments: Sequence[tuple[Any, ...]]) -> Any:
    """One graph of a call with each of the arguments."""
    user, stream = torch.cuda.current_stream(), torch.cuda.Stream()
    stream.wait_stream(user)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.stream(stream):
            for given in arguments[:WARM_UP]:
                call(*given)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            for given in arguments:
                call(*given)
    finally:
        torch.cuda.set_stream(user)  # where a capture failed, torch leaves its stream current
    user.wait_stream(stream)
    return graph


class ReplayTimer:
    """Times calls on one CUDA device (`tuning.Timer`)."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def sets(self, nbytes: int) -> int:
        """How many inputs of so many bytes exceed twice the L2 cache."""
        with torch.cuda.device(self.device):
            return copies_beyond_l2(nbytes)

    def times_us(self, call: Callable[..., object], inputs: Sequence[tuple[Any, ...]]) -> list[float]:
        """Microseconds of a call, once for each replay."""
        with torch.cuda.device(self.device):
            return times_us(call, inputs)
