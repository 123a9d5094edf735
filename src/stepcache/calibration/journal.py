"""Measurements in a file, a line of JSON each, from which an interrupted search goes on."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import InvalidSetting
from ..files.lines import Held, Lines, OtherHeader
from ..files.reading import NotJson, infinity, parsed


class Journal:
    """Measurements by name, appended to a file (None: in memory only) that no other process may use until `close`.

    header: all that they depend on. Raises InvalidSetting for a file with another header (with what differs), one that
    another process has (with which), and one with a damaged line (with its number); a line that was not written to its
    end is dropped with a warning. OSError if the file cannot be read or written.
    """

    def __init__(self, path: Path | None, header: dict[str, Any]) -> None:
        self.known: dict[str, list[float]] = {}
        self._file = None if path is None else _opened(path, header)
        if self._file is not None:
            try:
                self.known = dict(_entry(line, self._file.path, i) for i, line in enumerate(self._file.lines, 2))
            except InvalidSetting:
                self.close()
                raise

    def add(self, name: str, values: list[float]) -> None:
        """Add a measurement."""
        if self._file is not None:
            self._file.add([json.dumps({"of": name, "is": values})])
        self.known[name] = values

    @staticmethod
    def has_any(path: Path) -> bool:
        """Whether the file has a measurement below its header. Reads it, even if another process has it."""
        return path.is_file() and path.read_bytes().count(b"\n") > 1

    def close(self) -> None:
        """Let other processes use the file."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _opened(path: Path, header: dict[str, Any]) -> Lines:
    try:
        return Lines(path, json.dumps(header), wait=False)
    except Held as error:
        raise InvalidSetting(f"{error}: let it finish, or write to another file.") from None
    except OtherHeader as error:
        differs = _difference(error.found, json.loads(json.dumps(header)))
    raise InvalidSetting(
        f"{path} is not of this calibration ({differs}). Move it away to start afresh, or use the same arguments to go "
        "on with it."
    )


def _difference(found: str, header: dict[str, Any]) -> str:
    try:
        other = parsed(found)
    except NotJson as error:
        return f"line 1: {error}"
    if not isinstance(other, dict):
        return "line 1: not an object"
    names = [name for name in {**header, **other} if name not in header or other.get(name) != header[name]]
    return f"not the same: {', '.join(names) or 'its form'}"


def _entry(line: str, path: Path, number: int) -> tuple[str, list[float]]:
    try:
        entry = parsed(line, constant=infinity)  # of two equal images, the PSNR is infinite
    except NotJson as error:
        raise _damaged(path, number, str(error)) from None
    if not isinstance(entry, dict) or set(entry) != {"of", "is"} or not isinstance(entry["of"], str):
        raise _damaged(path, number, 'it is not {"of": NAME, "is": [NUMBERS]}')
    values = entry["is"]
    if not isinstance(values, list) or not values or not all(type(value) in (int, float) for value in values):
        raise _damaged(path, number, f'"is" must be numbers, got {values!r:.60}')
    return entry["of"], [float(value) for value in values]


def _damaged(path: Path, number: int, reason: str) -> InvalidSetting:
    return InvalidSetting(f"{path}, line {number} is damaged: {reason}. Remove the line to measure it again.")
