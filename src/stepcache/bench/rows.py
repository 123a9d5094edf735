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
import os
import platform
import shlex
import sys
import types
import typing
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch

from stepcache import __version__

from .commit import CHECKOUT, commit_of

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
            command=_command(),
            date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        )


def write(path: Path, rows: Iterable[object], *, append: bool = False) -> None:
    """Write dataclass rows of one kind as a CSV: their columns, then the rig's.

    append: add to an existing file, for runs that write as they go. ValueError for rows of different kinds, and for a
    file with other columns.
    """
    rows = list(rows)
    if not rows:
        return
    if len({type(row) for row in rows}) > 1:
        raise ValueError(f"All rows of a file must be of one kind, got {sorted({type(row).__name__ for row in rows})}.")
    header = [field.name for kind in (type(rows[0]), Rig) for field in fields(kind)]  # type: ignore[arg-type]
    append = append and path.exists()
    if append and (there := _header(path)) != header:
        raise ValueError(f"{path} has columns {there}, these rows have {header}: move the file away and run again.")
    rig = asdict(Rig.now())
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a" if append else "w", newline="") as file:
        writer = csv.DictWriter(file, header, lineterminator="\n")
        if not append:
            writer.writeheader()
        writer.writerows({**asdict(row), **rig} for row in rows)  # type: ignore[call-overload]


def read(path: Path, kind: type[Row]) -> list[Row]:
    """The rows of a CSV as `kind`: a row's class, or `Rig`. Columns without a field of `kind` are ignored.

    A field with a default may lack its column: the file is older than the field.
    """
    hints = typing.get_type_hints(kind)
    needed = {field.name for field in fields(kind) if field.default is MISSING}  # type: ignore[arg-type]
    with path.open(newline="") as file:
        lines = csv.DictReader(file)
        present = [name for name in hints if name in needed or name in (lines.fieldnames or ())]
        return [kind(**{name: _parse(hints[name], line[name]) for name in present}) for line in lines]


def _parse(hint: Any, text: str) -> Any:
    if isinstance(hint, types.UnionType):  # "T | None"; None is written as an empty cell
        return None if text == "" else _parse(typing.get_args(hint)[0], text)
    return text == "True" if hint is bool else hint(text)


def _header(path: Path) -> list[str]:
    with path.open(newline="") as file:
        return next(csv.reader(file), [])


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


def _command() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None:  # python -m
        return shlex.join(["python", "-m", spec.name.removesuffix(".__main__"), *sys.argv[1:]])
    script = Path(sys.argv[0]).resolve()
    name = str(script.relative_to(CHECKOUT)) if script.is_relative_to(CHECKOUT) else script.name
    return shlex.join(["python", name, *sys.argv[1:]])
