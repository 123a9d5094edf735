"""A folder of packages: read with everything checked, written so that nobody ever sees half of anything.

A package is written beside its final name, flushed, and renamed. Then the manifest, which alone says what is there, is
replaced in the same way, under a lock. So a full disk, a second writer or a kill at any moment leave the manifest of
before or of after; what they may leave besides are files that it does not name, which the next writer removes.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..errors import InvalidSetting
from ..files.owners import others_may_write
from ..files.reading import read_text
from ..files.replacing import write_text
from .manifest import NAME, Entry, Manifest, Unreadable, manifest_of

logger = logging.getLogger("stepcache")

_LOCK = ".lock"
_PART = ".part"
_OURS = re.compile(
    r"(full|partial|decoder)-[\w-]+-[0-9a-f]{12}\.pt2|([0-9a-f]{16}|\.manifest\.json\.[0-9a-f]{16})\.part(\.pt2)?"
)
"""Names of files that writers make: nobody else's are removed."""
_FORSAKEN = 3600.0
"""Seconds after which a file that no manifest names is taken for that of a writer that is gone."""


def read_manifest(folder: Path) -> Manifest:
    """The folder's manifest. Raises Unreadable, with file and reason."""
    if not folder.is_dir():
        raise Unreadable(f"{folder} is {'not a folder' if folder.exists() else 'missing'}")
    path = folder / NAME
    try:
        text = read_text(path)
    except InvalidSetting as error:
        raise Unreadable(str(error).removesuffix(".")) from None
    try:
        return manifest_of(text)
    except Unreadable as error:
        raise Unreadable(f"{path}: {error}") from None


def not_yours(folder: Path, file: str) -> str:
    """Why a file of the folder cannot be trusted to be what this user put there, and the way out; "" if it can.

    Packages are native code. A hash only shows that package and manifest belong together.
    """
    try:
        return others_may_write(folder) or others_may_write(folder / file)
    except OSError as error:
        return f"{folder / file} cannot be read: {error.strerror}"


def damage(folder: Path, entry: Entry) -> str:
    """What is wrong with the package's file, by its size and hash; "" if nothing."""
    path = folder / entry.file
    try:
        data = path.read_bytes()
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    if len(data) != entry.nbytes:
        return f"{path} has {len(data)} bytes instead of {entry.nbytes}"
    return "" if _hash(data) == entry.sha256 else f"{path} was changed: its SHA-256 is not that of the manifest"


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Writer:
    """Adds packages to a folder, which it makes if it is missing.

    maker: of the packages to be added. Packages of another maker are dropped when the first one is added. Raises
    InvalidSetting, with file and reason, for a path that is no folder, for what cannot be written, and for a folder
    that other users may write, whose packages `accelerate` would refuse.
    """

    def __init__(self, folder: Path, maker: dict[str, Any]) -> None:
        self.folder, self._maker = folder, maker
        with _writing(folder):
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)  # raises for a file
        unsafe = not_yours(folder, NAME) if (folder / NAME).exists() else others_may_write(folder)
        if unsafe:
            raise InvalidSetting(f"Packages in {str(folder)!r} would be refused: {unsafe}.")
        with suppress(Unreadable):
            there = read_manifest(folder)
            if there.packages and _kind(there.maker) != _kind(maker):
                logger.warning("The packages in %s were made elsewhere or by another torch: they are replaced.", folder)

    def read(self) -> Manifest:
        """What is there of this maker. A manifest that cannot be read counts as none: adding replaces it."""
        try:
            manifest = read_manifest(self.folder)
        except Unreadable:
            return Manifest(self._maker)
        return manifest if _kind(manifest.maker) == _kind(self._maker) else Manifest(self._maker)

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

    def add(self, path: Path, described: Callable[[str, int], Entry], model: dict[str, Any]) -> Entry:
        """Take the package in the file `path` (of `place`) into the folder.

        described: (SHA-256, size) -> its entry. model: the `about` of its model's state.
        """
        with _writing(self.folder):
            data = path.read_bytes()
            entry = described(_hash(data), len(data))
            path.chmod(0o644)  # whatever the umask: not_yours
            _flush(path)
            path.replace(self.folder / entry.file)
            with FileLock(self.folder / _LOCK):
                manifest = self.read().with_packages([entry], {entry.model: model})
                write_text(self.folder / NAME, manifest.written(), 0o644)
                self._clean(manifest)
        return entry

    def _clean(self, manifest: Manifest) -> None:
        """Remove files of packages that no manifest names, unless another writer may be about to add them."""
        named = {entry.file for entry in manifest.packages}
        for path in self.folder.iterdir():
            with suppress(OSError):
                if (
                    path.name not in named
                    and _OURS.fullmatch(path.name)
                    and time.time() - path.stat().st_mtime > _FORSAKEN
                ):
                    path.unlink()


def _kind(maker: dict[str, Any]) -> dict[str, Any]:
    """A maker without Python's version, which no package depends on."""
    return {name: value for name, value in maker.items() if name != "python"}


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Say what could not be written, and why."""
    try:
        yield
    except OSError as error:
        name = error.filename2 or error.filename or folder
        raise InvalidSetting(f"Packages cannot be written to {str(folder)!r}: {name}: {error.strerror}.") from error


def _flush(path: Path) -> None:
    """To the disk itself: a rename must not outlive the contents."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
