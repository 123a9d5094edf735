"""Who may use the device while a graph is captured.

CUDA allows one capture at a time in a process, and no device-wide synchronisation beside it: one from any thread fails,
and invalidates the capture too (CUDA Programming Guide, "Prohibited and Unhandled Operations"). So captures take turns
with all that synchronises: compiling, since Inductor and Triton time their candidates then, and giving graphs back.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

_exclusive = threading.RLock()
_capturing = False  # read and written by whoever holds `_exclusive`
_postponed: deque[Callable[[], None]] = deque()

# Of each device: replays and captures are one at a time. Held for microseconds by a replay.
_replays: dict[torch.device, threading.RLock] = {}


@contextmanager
def exclusive() -> Iterator[None]:
    """For compiling and synchronising: nothing is captured meanwhile. Other threads may go on replaying."""
    try:
        with _exclusive:
            yield
    finally:
        _catch_up()


@contextmanager
def capturing(device: torch.device) -> Iterator[None]:
    """For one capture on `device`: nobody compiles, synchronises or replays there meanwhile."""
    global _capturing
    with exclusive(), replaying(device):
        _capturing = True
        try:
            yield
        finally:
            _capturing = False


def replaying(device: torch.device) -> threading.RLock:
    """The lock of replays on `device`. Whoever holds it must not wait for `exclusive`."""
    return _replays.setdefault(device, threading.RLock())


def when_quiet(job: Callable[[], None]) -> None:
    """Run `job`, which synchronises: now, or where a thread is in its turn, as soon as that is over. Never waits.

    The garbage collector may free a pipe in any thread, in the midst of a replay or a capture.
    """
    _postponed.append(job)
    _catch_up()


def _catch_up() -> None:
    while _postponed:
        # Somebody else's turn: this is called again at its end.
        if not _exclusive.acquire(blocking=False):
            return
        try:
            if _capturing:  # it is this thread's own turn
                return
            while _postponed:
                _postponed.popleft()()
        finally:
            _exclusive.release()
