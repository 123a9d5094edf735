"""A folder of packages: read with everything checked, written so that nobody ever sees half of anything.

A package is written beside its final name, flushed, and renamed. Then the manifest, which alone says what is there, is
replaced in the same way, under a lock. So a full disk, a second writer or a kill at any moment leave the manifest of
before or of after; what they may leave besides are files that it does not name, which the next writer removes.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import InvalidSetting
from .manifest import NAME, Entry, Manifest, Unreadable, manifest_of

_LOCK = ".lock"
_PART = ".part"
_FORSAKEN = 3600.0
"""Seconds after which a file that no manifest names is taken for that of a writer that is gone."""


def read_manifest(folder: Path) -> Manifest:
    """The folder's manifest. Raises Unreadable, with file and reason."""
    if not folder.is_dir():
        raise Unreadable(f"{folder} is {'not a folder' if folder.exists() else 'missing'}")
    path = folder / NAME
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise Unreadable(f"{path} cannot be read: {reason}") from None
    try:
        return manifest_of(text)
    except Unreadable as error:
        raise Unreadable(f"{path}: {error}") from None


def damage(folder: Path, entry: Entry) -> str:
    """What is wrong with the package's file, by its size and hash; "" if nothing."""
    path = folder / entry.file
    try:
        size = path.stat().st_size
        if size != entry.nbytes:
            return f"{path} has {size} bytes instead of {entry.nbytes}"
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else _digest(file)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    return "" if found.hexdigest() == entry.sha256 else f"{path} was changed: its SHA-256 is not that of the manifest"


def _digest(file: Any) -> Any:  # Python 3.10
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest


class Writer:
    """Adds packages to a folder, which it makes if it is missing.

    maker: of the packages to be added. Packages of another maker are dropped when the first one is added. Raises
    InvalidSetting, with file and reason, for a path that is no folder, and for what cannot be written.
    """

    def __init__(self, folder: Path, maker: dict[str, Any]) -> None:
        self.folder, self._maker = folder, maker
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if not folder.is_dir():
                raise NotADirectoryError(20, "Not a directory", str(folder))

    def read(self) -> Manifest:
        """What is there of this maker. A manifest that cannot be read counts as none: adding replaces it."""
        try:
            manifest = read_manifest(self.folder)
        except Unreadable:
            return Manifest(self._maker)
        return manifest if manifest.maker == self._maker else Manifest(self._maker)

    def sound(self, key: str) -> Entry | None:
        """The package of this key, if its file is there and whole."""
        found = [entry for entry in self.read().packages if entry.key == key]
        return found[0] if found and not damage(self.folder, found[0]) else None

    @contextmanager
    def place(self) -> Iterator[Path]:
        """A new file name for one package on its way into the folder, removed afterwards if something is left there."""
        path = self.folder / f"{secrets.token_hex(8)}{_PART}.pt2"
        try:
            yield path
        finally:
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def add(self, path: Path, describe: Callable[[str, str, int], Entry], model: dict[str, Any]) -> Entry:
        """Take the package in the file `path` (of `place`) into the folder.

        describe: (file name's ending, SHA-256, size) -> its entry. model: the `about` of its model's state.
        """
        with _writing(self.folder):
            data = path.read_bytes()
            sha256 = hashlib.sha256(data).hexdigest()
            entry = describe(f"{sha256[:12]}.pt2", sha256, len(data))
            _flush(path)
            path.replace(self.folder / entry.file)
            with _locked(self.folder):
                manifest = self.read().with_packages([entry], {entry.model: model})
                _write(self.folder / NAME, manifest.written())
                self._clean(manifest)
        return entry

    def _clean(self, manifest: Manifest) -> None:
        """Remove files of packages that no manifest names, unless another writer may be about to add them."""
        named = {entry.file for entry in manifest.packages}
        for path in (*self.folder.glob("*.pt2"), *self.folder.glob(f"*{_PART}")):
            with suppress(OSError):
                if path.name not in named and time.time() - path.stat().st_mtime > _FORSAKEN:
                    path.unlink()


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Say what could not be written, and why."""
    try:
        yield
    except OSError as error:
        name = error.filename2 or error.filename or folder
        raise InvalidSetting(f"Packages cannot be written to {str(folder)!r}: {name}: {error.strerror}.") from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """While no other process that does the same is inside."""
    try:
        import fcntl
    except ImportError:  # Windows: the last of two writers at the same instant wins
        yield
        return
    with (folder / _LOCK).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(path: Path, text: str) -> None:
    """Replace the file `path`, whole or not at all."""
    part = path.with_name(f"{path.name}.{secrets.token_hex(8)}{_PART}")
    try:
        part.write_text(text, encoding="utf-8")
        _flush(part)
        part.replace(path)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """To the disk itself: a rename must not outlive the contents."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
