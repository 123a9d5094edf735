"""Benchmark results as CSVs: a row is a frozen dataclass whose fields are the columns; each row carries its `Rig`.

@dataclass(frozen=True)
class Row:
    variant: str
    seconds: float

write(Path("mine.csv"), [Row("original", 1.5)])
"""

from __future__ import annotations

import csv
import datetime
import importlib.metadata
import io
import logging
import os
import platform
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch

from .._version import __version__
from ..errors import InvalidSetting
from ..files.lines import Lines, OtherHeader
from ..files.reading import read_text
from ..files.replacing import check_replaceable, write_text
from .command import command_line
from .commit import CHECKOUT, commit_of

logger = logging.getLogger("stepcache")

Row = TypeVar("Row")


@dataclass(frozen=True)
class Rig:
    """The machine, versions and command that a row was measured with."""

    cpu: str
    gpu: str  # "" without one
    cores: int
    threads: int
    python: str
    torch: str
    diffusers: str
    triton: str
    stepcache: str
    commit: str  # "-dirty" at its end: files other than results differed from it
    command: str
    date: str  # ISO 8601, UTC

    @classmethod
    def now(cls) -> Rig:
        """Of this process, now; `threads` is torch's current setting."""
        return cls(
            cpu=_cpu(),
            gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else "",
            cores=_cores(),
            threads=torch.get_num_threads(),
            python=platform.python_version(),
            torch=torch.__version__,
            diffusers=_version("diffusers"),
            triton=_version("triton"),
            stepcache=__version__,
            commit=commit_of(CHECKOUT),
            command=command_line(),
            date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        )


def write(path: Path, rows: Iterable[object], *, append: bool = False) -> None:
    """Write dataclass rows of one kind as a CSV: their columns, then the rig's. A line break in a cell becomes a space.

    append: add to an existing file, for runs that write as they go; several processes may. All rows are added or none,
    and a last line that an earlier run did not write to its end is dropped with a warning. Raises ValueError for rows
    of different kinds, InvalidSetting for a file with other columns, and OSError, with `path` and the reason, for one
    that cannot be written, which stays as it was.
    """
    rows = list(rows)
    if not rows:
        return
    if len({type(row) for row in rows}) > 1:
        raise ValueError(f"All rows of a file must be of one kind, got {sorted({type(row).__name__ for row in rows})}.")
    header = _columns(type(rows[0]))
    rig = asdict(Rig.now())
    lines = [_line([{**asdict(row), **rig}[name] for name in header]) for row in rows]  # type: ignore[call-overload]
    path.parent.mkdir(parents=True, exist_ok=True)
    if not append:
        write_text(path, "".join(f"{line}\n" for line in [_line(header), *lines]))
        return
    try:
        with Lines(path, _line(header)) as file:
            file.add(lines)
    except OtherHeader as error:
        raise _other_columns(path, error.found) from None


def check_out(path: Path, kind: type) -> None:
    """What `write` with `append` would raise for rows of this kind, and OSError without a folder. Changes nothing.

    For the start of a run: a folder that is not there is a slip of the hand then. `write` makes it, to lose no rows.
    """
    check_replaceable(path)
    text = read_text(path) if path.exists() else ""
    header = _columns(kind)
    found, end, _ = text.partition("\n")
    if found != _line(header) if end else not _line(header).startswith(found):
        raise _other_columns(path, found)


def _columns(kind: type) -> list[str]:
    return [field.name for each in (kind, Rig) for field in fields(each)]


def _other_columns(path: Path, found: str) -> InvalidSetting:
    return InvalidSetting(
        f"{path} has other columns ({found:.200}) than these rows: move the file away, or name another one."
    )


def _line(cells: Iterable[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(
        [" ".join(cell.splitlines()) if isinstance(cell, str) else cell for cell in cells]
    )
    return text.getvalue()


def read(path: Path, kind: type[Row]) -> list[Row]:
    """The rows of a CSV as `kind`: a row's class, or `Rig`. Columns without a field of `kind` are ignored.

    A field with a default may lack its column: the file is older than the field. A last line that was not written to
    its end is left out with a warning. InvalidSetting, with file and line, for all else that is not such a row.
    """
    text = read_text(path)
    whole = text.rfind("\n") + 1
    if whole < len(text):
        number = text.count("\n") + 1
        logger.warning("%s, line %d: left out, it was not written to its end: %.60r", path, number, text[whole:])
    hints = typing.get_type_hints(kind)
    needed = {field.name for field in fields(kind) if field.default is MISSING}  # type: ignore[arg-type]
    lines = csv.reader(io.StringIO(text[:whole], newline=""), strict=True)
    try:
        header = next(lines, [])
        if lacking := sorted(needed - set(header)):
            raise ValueError(f"there is no column {lacking[0]}")
        return [_row(kind, hints, dict(zip(header, cells, strict=True))) for cells in lines if cells]
    except (ValueError, csv.Error) as error:
        raise InvalidSetting(f"{path}, line {max(1, lines.line_num)} is damaged: {error}.") from error


def _row(kind: type[Row], hints: Mapping[str, Any], cells: Mapping[str, str]) -> Row:
    return kind(**{name: _parse(hint, cells[name]) for name, hint in hints.items() if name in cells})


def _parse(hint: Any, text: str) -> Any:
    if isinstance(hint, types.UnionType):  # "T | None"; None is written as an empty cell
        return None if text == "" else _parse(typing.get_args(hint)[0], text)
    if hint is bool and text not in ("True", "False"):
        raise ValueError(f"{text!r:.60} is neither True nor False")
    return text == "True" if hint is bool else hint(text)


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
