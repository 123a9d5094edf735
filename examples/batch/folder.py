"""The images of a directory: each is there whole or not at all, and none is overwritten.

An image is written under another name, flushed to the disk, and then gets its own name as a second one (a hard link),
which fails if the name is taken, also between two processes.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo

from stepcache.errors import InvalidSetting

TEXT = "stepcache"  # the PNG text chunk with the record of what an image was made from

# Pillow decodes more, but for some it runs other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")

# How file systems say that they have no hard links.
NO_LINKS = {errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


def is_done(path: Path, record: dict[str, Any]) -> bool:
    """Whether `path` is the whole image of this record. InvalidSetting for an image of another record, or without one.

    What is missing, empty, cut off or damaged is not done. Each call reads the whole file and compares its checksums:
    a millisecond for 1024 x 1024 pixels, and the time of the disk. Decoding the pixels would take 60, and find no more
    of what kills and disks do.
    """
    found, whole = look(path)
    if found is not None and found != record:
        raise InvalidSetting(
            f"{path} is not of this batch ({difference(found, record)}). Use another --out, or move it away."
        )
    return whole


def look(path: Path) -> tuple[dict[str, Any] | None, bool]:
    """The record of an image, {} if it has none, None if nothing there can be decoded; and whether it is whole."""
    if path.exists() and not path.is_file():
        return {}, False  # a folder or the like: nothing to replace
    try:
        with path.open("rb") as file:
            whole = is_whole(file)
            record = record_of(file, decode=not whole)
    except FileNotFoundError:
        return None, False
    return record, whole and record is not None


def is_whole(file: BinaryIO) -> bool:
    """Whether it is a PNG of which no byte is missing, wrong or too many."""
    size = os.fstat(file.fileno()).st_size
    if file.read(8) != b"\x89PNG\r\n\x1a\n":
        return False
    kinds = []
    while not kinds or kinds[-1] != b"IEND":
        head = file.read(8)
        if len(head) < 8:
            return False
        length, kind = struct.unpack(">I4s", head)
        if length > size:  # a wrong length may be more than memory holds
            return False
        if zlib.crc32(file.read(length), zlib.crc32(kind)).to_bytes(4, "big") != file.read(4):
            return False
        kinds.append(kind)
    return kinds[0] == b"IHDR" and b"IDAT" in kinds and not file.read(1)


def record_of(file: BinaryIO, decode: bool) -> dict[str, Any] | None:
    """The record of an image of any format, {} if it has none; None for what is no image.

    decode: the pixels too, without which it is no image.
    """
    file.seek(0)
    lenient, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        with Image.open(file, formats=FORMATS) as image:
            if decode:
                image.load()
            return parsed(image.info.get(TEXT, "{}"))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError):
        return {}  # somebody's large image
    except Exception:  # Pillow raises errors of many kinds
        return None
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def parsed(text: str | bytes) -> dict[str, Any]:
    """The object in a JSON text; {} if there is none."""
    try:
        found = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def difference(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """In words, what differs."""
    differs = [
        f"{key} {found.get(key)!r:.80}, now {wanted.get(key)!r:.80}"
        for key in {**wanted, **found}
        if found.get(key) != wanted.get(key)
    ]
    return "; ".join(differs[:3])


def put(path: Path, record: dict[str, Any], image: Image.Image) -> None:
    """Write an image, which becomes `path` once it is whole. What is broken there is replaced, with a printed line.

    If another process was sooner, its image stays. InvalidSetting if that is of another record.
    """
    info = PngInfo()
    info.add_text(TEXT, json.dumps(record))
    with part_of(path) as part:
        with part.open("xb") as file:
            image.save(file, format="PNG", pnginfo=info)
            flush(file)
        for _ in range(10):
            if give_name(part, path) or is_done(path, record):
                return
            if take_away(path, record):
                print(f"{path} was empty, cut off or damaged: it is made again.", flush=True)
    raise InvalidSetting(f"{path} is broken again each time it is replaced. What else writes to this folder?")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which replaces `path` once everything is written."""
    with part_of(path) as part:
        with part.open("xb") as file:
            yield file
            flush(file)
        os.replace(part, path)


@contextmanager
def part_of(path: Path) -> Iterator[Path]:
    """A new name beside `path`. A file that still has it at the end is removed."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        yield part
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def remove_parts(out: Path) -> None:
    """Remove what killed workers left. Only for when no worker is alive."""
    for pattern in (".*.png.*.part", ".manifest.jsonl.*.part"):
        for part in out.glob(pattern):
            part.unlink(missing_ok=True)


def flush(file: BinaryIO) -> None:
    """Have the contents on the disk before the name, in case power fails."""
    file.flush()
    os.fsync(file.fileno())


def give_name(part: Path, path: Path) -> bool:
    """Give a file the name `path`; False if that is taken.

    On a file system without hard links, an empty file holds the name for a moment. If a kill leaves that, or another
    worker of the job finds it, the image is made again.
    """
    try:
        try:
            os.link(part, path)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            path.open("xb").close()
            os.replace(part, path)
    except FileExistsError:
        return False
    return True


def take_away(path: Path, record: dict[str, Any]) -> bool:
    """Remove a broken file; False if another process has done so. If it has put an image there, that stays."""
    with part_of(path) as aside:
        try:
            os.rename(path, aside)
        except FileNotFoundError:
            return False
        found, whole = look(aside)
        if whole or found not in (None, record):
            give_name(aside, path)
            return False
    return True
