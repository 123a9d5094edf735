"""Benchmark results as data: a row is a frozen dataclass, its fields are the CSV's columns, the rig is on every row.

@dataclass(frozen=True)
class Row:
    variant: str
    seconds: float

write(RESULTS / "mine.csv", [Row("original", 1.5)])
"""

from __future__ import annotations

import csv
import datetime
import importlib.metadata
import os
import platform
import shlex
import statistics
import sys
import types
import typing
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from tqdm import tqdm

from stepcache import __version__

from .commit import commit_of

ROOT = Path(__file__).resolve().parents[3]  # of the checkout, where this is one
RESULTS = ROOT / "benchmarks" / "results"

Row = TypeVar("Row")
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Rig:
    """Where a row comes from. `commit` ends in "-dirty" where a file other than a result differed from it."""

    cpu: str
    gpu: str  # "" where there is none
    cores: int
    threads: int
    python: str
    torch: str
    diffusers: str
    triton: str
    stepcache: str
    commit: str
    command: str
    date: str  # ISO 8601, UTC

    @classmethod
    def now(cls) -> Rig:
        """This process on this machine, at this moment (`threads` is torch's present setting)."""
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
            commit=commit_of(ROOT),
            command=_command(),
            date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        )


class Spread(NamedTuple):
    """Median, 20th and 80th percentile."""

    median: float
    p20: float
    p80: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value; percentiles are interpolated between neighbours."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        fifths = statistics.quantiles(values, n=5, method="inclusive")
        return cls(statistics.median(values), fifths[0], fifths[3])


def interleave(jobs: Mapping[Key, Callable[[], float]], repeats: int, title: str = "") -> dict[Key, list[float]]:
    """What each job returned in each repeat, after one repeat of warm-up, which is thrown away.

    All jobs run in every repeat, so that drift of the machine hits all alike; the one that begins rotates.
    """
    keys = list(jobs)
    values: dict[Key, list[float]] = {key: [] for key in keys}
    with tqdm(total=(repeats + 1) * len(keys), desc=title, unit="run", mininterval=1) as progress:
        for repeat in range(repeats + 1):
            first = repeat % len(keys)
            for key in keys[first:] + keys[:first]:
                value = jobs[key]()
                if repeat > 0:
                    values[key].append(value)
                progress.update()
    return values


def write(path: Path, rows: Iterable[object], *, append: bool = False) -> None:
    """Write dataclass rows of one kind, each with the rig's columns behind its own, as a CSV with one header.

    With `append`, rows are added to a file that is there (a long run writes as it goes). Raises ValueError for rows of
    different kinds, and where the file has other columns: a schema that changed makes a new file.
    """
    rows = list(rows)
    if not rows:
        return
    if len({type(row) for row in rows}) > 1:
        raise ValueError(f"Rows of one file are of one kind, got {sorted({type(row).__name__ for row in rows})}.")
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
    """The rows of a CSV as `kind` (a row's class, or `Rig`); columns that it has no field for are left out.

    A field with a default may have no column: the file is older than the field.
    """
    hints = typing.get_type_hints(kind)
    needed = {field.name for field in fields(kind) if field.default is MISSING}  # type: ignore[arg-type]
    with path.open(newline="") as file:
        lines = csv.DictReader(file)
        present = [name for name in hints if name in needed or name in (lines.fieldnames or ())]
        return [kind(**{name: _parse(hints[name], line[name]) for name in present}) for line in lines]


def _parse(hint: Any, text: str) -> Any:
    if isinstance(hint, types.UnionType):  # "T | None", None being written as an empty cell
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
    name = str(script.relative_to(ROOT)) if script.is_relative_to(ROOT) else script.name
    return shlex.join(["python", name, *sys.argv[1:]])
