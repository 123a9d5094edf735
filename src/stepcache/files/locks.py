"""Locks on open files, which the system lets go of when their process ends, however it ends."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger("stepcache")


def lock(descriptor: int, path: Path, wait: bool = True) -> bool:
    """Lock an open file for this process alone; whether it did. It is let go of when the file is closed.

    wait: for another process to let go. Where files cannot be locked (Windows, some network file systems), a warning
    says so, and the file counts as locked.
    """
    flock = _flock()
    if flock is None:
        reason = "this system has no flock"
    else:
        try:
            flock(descriptor, wait)
            return True
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
                return False
            reason = str(error.strerror)
    logger.warning("%s is not locked (%s): let no other process write to it meanwhile.", path, reason)
    return True


def _flock() -> Callable[[int, bool], None] | None:
    try:
        from fcntl import LOCK_EX, LOCK_NB, flock
    except ImportError:
        return None
    return lambda descriptor, wait: flock(descriptor, LOCK_EX | (0 if wait else LOCK_NB))


def holder(descriptor: int) -> str:
    """The process that has locked an open file, in words: "process 1234 (its command line)", where Linux tells."""
    number = os.fstat(descriptor).st_ino
    try:
        with open("/proc/locks", encoding="ascii") as locks:
            fields = [line.split() for line in locks]
        pids = [part[4] for part in fields if part[1] == "FLOCK" and part[5].rpartition(":")[2] == str(number)]
        if not pids or int(pids[0]) <= 0:
            return "another process"
        command = Path(f"/proc/{pids[0]}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (OSError, ValueError, IndexError):
        return "another process"
    return f"process {pids[0]} ({command:.80})"
