"""Child processes that start in no time: forks of this one."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def fork(work: Callable[[], object]) -> int:
    """A child process that calls `work` and ends, with status 0, or with 1 and a printed error. Its id."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def status(child: int) -> int:
    """What the child ended with, once it has: its exit status, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    assert status(child) == -signal.SIGKILL


def wait_for(happened: Callable[[], bool]) -> None:
    """Return once `happened()`. AssertionError if it has not within a minute."""
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end, "it has not happened"
        time.sleep(0.001)


@contextmanager
def ready(work: Callable[[], object]) -> Iterator[int]:
    """A child process that has called `work` and lives until the end of the block, where it is killed."""
    reading, writing = os.pipe()

    def wait() -> None:
        work()
        os.write(writing, b"x")
        signal.pause()

    child = fork(wait)
    os.close(writing)
    try:
        assert os.read(reading, 1) == b"x", "the child failed"
        yield child
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
