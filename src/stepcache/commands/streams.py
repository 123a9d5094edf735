"""stdout and stderr whose readers may go away (`stepcache ... | head`): the work goes on, and what it says is lost."""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
from typing import Any


class Outlasting(io.FileIO):
    """A descriptor that takes what nobody reads any more: a pipe without a reader, or a terminal that was closed.

    Other errors, such as those of a full disk, are raised once, and never where `needed` is false: a command's
    product is incomplete then, but not for want of its progress.
    """

    def __init__(self, descriptor: int, needed: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._raises = needed

    def write(self, data: Any) -> int:
        """Write, or drop all of it."""
        try:
            return super().write(data)
        except OSError as error:
            if self._raises and not self._unread(error):
                self._raises = False  # the buffer above tries it again, once more when Python shuts down
                raise
            return len(data)

    def _unread(self, error: OSError) -> bool:
        closed_terminal = error.errno == errno.EIO and stat.S_ISCHR(os.fstat(self.fileno()).st_mode)
        return isinstance(error, BrokenPipeError) or closed_terminal


def outlast_readers() -> None:
    """Put such streams in the place of sys.stdout and sys.stderr, for the rest of the process."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and stream is getattr(sys, f"__{name}__"):  # not what somebody else has put there
            stream.flush()
            raw = Outlasting(stream.fileno(), needed=name == "stdout")
            # As Python makes its own: without a buffer under PYTHONUNBUFFERED.
            buffer: Any = raw if stream.write_through else io.BufferedWriter(raw)
            new = io.TextIOWrapper(
                buffer,
                stream.encoding,
                stream.errors,
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, new)
