"""Locks that decide who may use the device while a graph is captured.

CUDA allows one capture at a time in a process, and no device-wide synchronisation meanwhile: one from any thread fails
and invalidates the capture too (CUDA Programming Guide, "Prohibited and Unhandled Operations"). So captures take turns
with everything that synchronises: compiling, because Inductor and Triton then time candidates, and freeing graphs.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

_exclusive = threading.RLock()
_capturing = False  # hold `_exclusive` to read or write it
_postponed: deque[Callable[[], None]] = deque()

# One per device: a single replay or capture runs at a time. A replay holds it for microseconds.
_replays: dict[torch.device, threading.RLock] = {}


@contextmanager
def exclusive() -> Iterator[None]:
    """Hold this to compile or synchronise: nothing is captured meanwhile. Other threads may still replay."""
    try:
        with _exclusive:
            yield
    finally:
        _catch_up()


@contextmanager
def capturing(device: torch.device) -> Iterator[None]:
    """Hold this for one capture on `device`: no other thread compiles, synchronises or replays there meanwhile."""
    global _capturing
    with exclusive(), replaying(device):
        _capturing = True
        try:
            yield
        finally:
            _capturing = False


def replaying(device: torch.device) -> threading.RLock:
    """The lock of replays on `device`. Do not wait for `exclusive` while holding it."""
    return _replays.setdefault(device, threading.RLock())


def when_quiet(job: Callable[[], None]) -> None:
    """Run `job`, which synchronises, now, or once the thread that holds `exclusive` releases it. Never waits.

    The garbage collector may free a pipe in any thread, even during a replay or a capture.
    """
    _postponed.append(job)
    _catch_up()


def _catch_up() -> None:
    while _postponed:
        # Another thread holds it, and calls this again when it is done.
        if not _exclusive.acquire(blocking=False):
            return
        try:
            if _capturing:  # by this thread itself
                return
            while _postponed:
                _postponed.popleft()()
        finally:
            _exclusive.release()
