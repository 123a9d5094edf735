"""One job at a time in a directory, with as many workers as it likes.

A worker shares a lock on `.job.lock` until its process ends, however it ends: the system lets go of it. Whoever gets
that lock alone knows that no other worker is alive. `job.json` says what their job is, and is locked itself while one
worker comes in or looks whether it is alone, so that nobody comes in meanwhile.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, BinaryIO

from folder import difference, parsed, remove_parts

from stepcache.errors import InvalidSetting

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

JOB, LOCK = "job.json", ".job.lock"

# Directory -> its LOCK, which this process has open and thereby locked.
HELD: dict[Path, BinaryIO] = {}


class NoLocks(Exception):
    """Why files cannot be locked."""


def join(out: Path, job: dict[str, Any]) -> None:
    """Make this process a worker of a job in the directory `out`, until it ends.

    InvalidSetting, with what differs, if workers of another job are alive. The first worker removes what killed ones
    left. Where files cannot be locked (Windows, some network file systems), a printed line says so, and nothing else
    happens.
    """
    try:
        with (out / JOB).open("a+b") as file:
            lock(file, alone=True)
            held = HELD[out.resolve()] = HELD.get(out.resolve()) or (out / LOCK).open("ab")
            if lock(held, alone=True, wait=False):
                remove_parts(out)
                file.truncate(0)
                file.write(json.dumps(job).encode())
                file.flush()
            lock(held, alone=False)
            file.seek(0)
            found = parsed(file.read())
            if found != job:
                raise InvalidSetting(
                    f"A job with other prompts or settings is at work in {out} ({difference(found, job)}). "
                    "Wait until it ends, or use another --out."
                )
    except BaseException as error:
        leave(out)
        if not isinstance(error, NoLocks):
            raise
        print(
            f"{out} is not locked ({error}): start no other job in it meanwhile. "
            "What killed workers leave (.*.part) is not removed.",
            flush=True,
        )


def leave(out: Path) -> None:
    """End what `join` began, before the process ends. Does nothing if it has not joined."""
    held = HELD.pop(out.resolve(), None)
    if held is not None:
        held.close()


def leave_all() -> None:
    """`leave` every directory."""
    while HELD:
        HELD.popitem()[1].close()


if hasattr(os, "register_at_fork"):
    # A forked process has its parent's locks, and would hold them for as long as it lives itself.
    os.register_at_fork(after_in_child=leave_all)


def clean(out: Path) -> None:
    """Remove what killed workers left, if this process has joined and is the only worker that is alive."""
    held = HELD.get(out.resolve())
    if held is None:
        return
    with (out / JOB).open("a+b") as file:
        lock(file, alone=True)
        if lock(held, alone=True, wait=False):
            remove_parts(out)
        lock(held, alone=False)


def lock(file: BinaryIO, alone: bool, wait: bool = True) -> bool:
    """Lock an open file until it is closed, or change its lock. NoLocks, with the reason, if that cannot be done.

    alone: for this process only, else with others. wait: for others to let go; else it is False if they do not, and the
    file is not locked at all.
    """
    if fcntl is None:
        raise NoLocks("this system has no flock")
    try:
        fcntl.flock(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        raise NoLocks(error.strerror) from error
    return True
