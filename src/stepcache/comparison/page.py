"""Writes the page of a comparison: one file, or past some size a page with its pictures beside it."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from ..errors import InvalidSetting
from ..files.replacing import check_replaceable, write_bytes, write_text
from .report import html_report
from .results import Comparison

INSIDE = 20_000_000
"""Bytes of pictures that a page may hold. A browser reads all of them before it shows anything."""

_OURS = re.compile(r"[0-9a-f]{16}\.webp")


def check_pictures(path: Path) -> None:
    """OSError or InvalidSetting if `write_page` could not put pictures beside `path`. Leaves everything as it is.

    For the start of a run: only at its end it is known whether they fit inside.
    """
    folder = _folder(path)
    if folder.is_dir():
        check_replaceable(folder / "0.webp")  # whatever their names
    elif os.path.lexists(folder):
        raise InvalidSetting(
            f"{folder} is no folder, and the pictures of {path} may need one of that name: move it away, or name "
            "another page."
        )


def write_page(comparison: Comparison, path: Path) -> Path | None:
    """Write the page; returns the folder `NAME_files` beside it that its pictures are in, None if they are inside.

    The pictures are written first, then the page, and then pictures that only the page before had are removed. So
    `path` is at any moment one of the two pages, with its pictures. OSError, with file and reason, if one cannot be
    written.
    """
    folder = _folder(path)
    names: dict[str, str] = {}
    if sum(len(uri) * 3 // 4 for uri in _pictures(comparison)) > INSIDE:
        folder.mkdir(exist_ok=True)
        for uri in _pictures(comparison):
            names[uri] = _put(uri, folder)
        write_text(path, html_report(comparison, lambda uri: f"{quote(folder.name)}/{names[uri]}" if uri else uri))
    else:
        write_text(path, html_report(comparison))
    _clean(folder, set(names.values()))
    return folder if names else None


def _folder(path: Path) -> Path:
    return path.with_name(f"{path.stem}_files")


def _pictures(comparison: Comparison) -> Iterator[str]:
    for result in comparison.results:
        for shot in (result.original, *result.shots):
            yield from (uri for uri in (shot.picture, shot.difference) if uri)


def _put(uri: str, folder: Path) -> str:
    """Write a picture under a name that is made from its contents, and so stays as it is if it is there."""
    data = base64.b64decode(uri.partition(",")[2])
    path = folder / f"{hashlib.sha256(data).hexdigest()[:16]}.webp"
    if not path.is_file() or path.read_bytes() != data:
        write_bytes(path, data)
    return path.name


def _clean(folder: Path, used: set[str]) -> None:
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if _OURS.fullmatch(path.name) and path.name not in used:
            with suppress(OSError):
                path.unlink()
    if not used:
        with suppress(OSError):  # it has something else
            folder.rmdir()
