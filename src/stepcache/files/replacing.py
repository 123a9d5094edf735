"""Writing a file in one piece: at any moment its name stands for the old file or for the new one, whole.

The new one is written beside its name, flushed to the disk, and renamed. So a full disk or a kill leaves the old file,
and of two writers the last one wins. A kill may leave a file `.NAME.*.part` behind, which nothing reads.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

PART = ".part"
"""The end of the names of files that are being written."""


def write_text(path: Path, text: str, mode: int = 0o666) -> None:
    """Write a UTF-8 file, or replace it, as in `replacing`."""
    write_bytes(path, text.encode(), mode)


def write_bytes(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write a file, or replace it, as in `replacing`."""
    with replacing(path, mode) as file:
        file.write(data)


@contextmanager
def replacing(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A file to write to, which becomes `path` once the block has ended; if it raises, `path` is as it was.

    mode: the permissions of a new file, less the umask; those of a file that is replaced stay. A symlink is followed.
    What is no regular file (a pipe, a terminal) is written to as it is. OSError, with `path` and the reason, if that
    cannot be done.
    """
    with named(path):
        target = _target(path)
        if target is None:
            with path.open("wb") as file:
                yield file
            return
        part = part_of(target)
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                yield file
                file.flush()
                with suppress(FileNotFoundError):
                    os.fchmod(file.fileno(), stat.S_IMODE(target.stat().st_mode))
                os.fsync(file.fileno())  # the contents before the name, in case power fails
            os.replace(part, target)
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)


def check_replaceable(path: Path) -> None:
    """OSError, with `path` and the reason, if `replacing` could not write it. Leaves everything as it is.

    For the start of a run that writes its result only at its end.
    """
    with named(path):
        target = _target(path)
        if target is not None:
            part = part_of(target)
            try:
                os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            finally:
                with suppress(OSError):
                    part.unlink(missing_ok=True)


def part_of(target: Path) -> Path:
    """A new name beside `target`, not too long for any that `target` may have."""
    return target.with_name(f".{target.name[:40]}.{secrets.token_hex(8)}{PART}")


def _target(path: Path) -> Path | None:
    """The file that is to be replaced, with symlinks followed; None for what is no regular file."""
    target = Path(os.path.realpath(path))
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return target
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not os.access(target, os.W_OK):  # a rename would not ask
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return target if stat.S_ISREG(mode) else None


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Give the errors of a file's system calls its name: a full disk does not say which file was cut off."""
    try:
        yield
    except OSError as error:
        own = error.filename is None or str(error.filename).endswith(PART)
        if error.errno is None or not own:
            raise
        raise OSError(error.errno, os.strerror(error.errno), os.fspath(path)) from error
