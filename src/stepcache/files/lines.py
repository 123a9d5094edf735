"""A file of lines below a header, which grows by whole lines, one process at a time.

Lines are added in one write and flushed. A kill or a power cut in the middle of it leaves a line without its end, which
the next opening drops with a warning; a full disk leaves the file as it was.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from io import FileIO
from pathlib import Path
from types import TracebackType

from .locks import holder, lock
from .reading import decoded
from .replacing import named

logger = logging.getLogger("stepcache")


class Held(Exception):
    """Another process has the file open; the message says which."""


class OtherHeader(Exception):
    """The file begins with another line. found: that line."""

    def __init__(self, found: str) -> None:
        super().__init__(found)
        self.found = found


class Lines:
    """The file `path`, locked until `close`. It is made if it is missing, with the line `header`.

    lines: those below the header, when it was opened. wait: for another process to close it, instead of raising Held.
    Raises OtherHeader for a file that begins with another line, which stays as it is, InvalidSetting, with the line,
    for one that is not UTF-8, and OSError, with `path` and the reason, for one that cannot be opened or written.
    """

    def __init__(self, path: Path, header: str, wait: bool = True) -> None:
        self.path = path
        with named(path):
            self._file = _opened(path, wait)
            try:
                self.lines = self._read(f"{header}\n")
            except BaseException:
                self.close()
                raise

    def _read(self, header: str) -> list[str]:
        data, start = self._file.read(), header.encode()
        if len(data) < len(start) and start.startswith(data):  # new, or cut off in its first line
            self._cut(data, 0)
            self._append(start)
            return []
        if not data.startswith(start):
            raise OtherHeader(decoded(data.partition(b"\n")[0], self.path))
        end = data.rfind(b"\n") + 1
        lines = decoded(data[:end], self.path).split("\n")[1:-1]
        self._cut(data, end)
        return lines

    def _cut(self, data: bytes, end: int) -> None:
        """Drop what is behind `end`: a line that was not written to its end."""
        torn = data[end:]
        if torn:
            line = data.count(b"\n") + 1
            logger.warning("%s, line %d: dropped, it was not written to its end: %.60r", self.path, line, torn)
            os.ftruncate(self._file.fileno(), end)

    def add(self, lines: Iterable[str]) -> None:
        """Add lines, all of them or none. Each is without its end, and has no line break."""
        lines = list(lines)
        if any("\n" in line for line in lines):
            raise ValueError(f"A line cannot have a line break: {lines!r:.200}")
        with named(self.path):
            self._append("".join(f"{line}\n" for line in lines).encode())

    def _append(self, data: bytes) -> None:
        before = os.fstat(self._file.fileno()).st_size
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except BaseException:
            os.ftruncate(self._file.fileno(), before)
            raise

    def close(self) -> None:
        """Let other processes in. Does nothing the second time."""
        self._file.close()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _opened(path: Path, wait: bool) -> FileIO:
    """The file, locked. Raises Held if another process has it and `wait` is false."""
    while True:
        file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666), "r+")
        try:
            if not lock(file.fileno(), path, wait):
                raise Held(f"{path} is in use by {holder(file.fileno())}")
            if _is(file.fileno(), path):
                return file
        except BaseException:
            file.close()
            raise
        file.close()  # it was removed or replaced while this process waited


def _is(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
