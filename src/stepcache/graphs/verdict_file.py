"""A verdict on a join, and the CSV files that hold verdicts.

The user's own file is in the cache folder; `warmup` and `stepcache tune` add to it. It may be missing, broken,
read-only, of another version, or written by several processes at once.
"""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, get_type_hints

from ..errors import InvalidSetting
from ..files.reading import read_text
from ..files.replacing import write_text
from ..forwards.join_shape import JoinShape

logger = logging.getLogger("stepcache")


JOINS = "0.1.0"
"""The version of stepcache in which what a verdict measures last changed: the Triton ops, or a join's use of them."""


class Setup(NamedTuple):
    """What a verdict was measured on. If any of it changes, the verdict may no longer hold. stepcache: JOINS."""

    gpu: str
    torch: str
    triton: str
    stepcache: str


OK = "ok"


@dataclass(frozen=True)
class Verdict:
    """Microseconds of one join with its ResNet, both ways.

    status: "ok", or what is wrong with the result of the ops; then the times are None.
    """

    setup: Setup
    shape: JoinShape
    triton_us: float | None
    inductor_us: float | None
    status: str = OK

    @property
    def for_triton(self) -> bool:
        """Whether the join should run on the ops."""
        if self.status != OK or self.triton_us is None or self.inductor_us is None:
            return False
        return self.triton_us < self.inductor_us


COLUMNS = (*Setup._fields, *JoinShape._fields, "triton_us", "inductor_us", "status")


class NotATable(ValueError):
    """The text is not a table of verdicts, or not one that this version can read."""


def to_csv(verdicts: Iterable[Verdict]) -> str:
    """The table as text, sorted."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for verdict in sorted(verdicts, key=lambda verdict: (verdict.setup, verdict.shape)):
        times = ("" if us is None else f"{us:.2f}" for us in (verdict.triton_us, verdict.inductor_us))
        writer.writerow([*verdict.setup, *verdict.shape, *times, verdict.status])
    return text.getvalue()


def from_csv(text: str) -> list[Verdict]:
    """The verdicts in a table. Raises NotATable, naming the line, for anything else."""
    lines = csv.reader(io.StringIO(text))
    try:
        header = next(lines, [])
        if tuple(header) != COLUMNS:
            raise NotATable(f"its first line is {','.join(header)[:80]!r}")
        return [_verdict(cells, number) for number, cells in enumerate(lines, 2)]
    except csv.Error as error:
        raise NotATable(f"line {lines.line_num}: {error}") from error


def _verdict(cells: list[str], number: int) -> Verdict:
    try:
        named = dict(zip(COLUMNS, cells, strict=True))
        shape = JoinShape(**{name: kind(named[name]) for name, kind in get_type_hints(JoinShape).items()})
        triton_us, inductor_us = (float(named[n]) if named[n] else None for n in ("triton_us", "inductor_us"))
    except ValueError as error:
        raise NotATable(f"line {number}: {error}") from error
    if named["status"] == OK and not all(us is not None and 0 < us < float("inf") for us in (triton_us, inductor_us)):
        raise NotATable(f"line {number}: its times are {triton_us} and {inductor_us}")
    return Verdict(Setup(*(named[n] for n in Setup._fields)), shape, triton_us, inductor_us, named["status"])


def cache_folder() -> Path:
    """The folder of the user's table: $STEPCACHE_CACHE, else stepcache in $XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("STEPCACHE_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stepcache"


def add_to_file(path: Path, verdicts: Iterable[Verdict]) -> None:
    """Add verdicts to a table, replacing those for the same setup and join. Raises OSError if it cannot be written.

    The file changes as a whole or not at all, and one process at a time, so two that measure at once lose nothing. A
    file that is not a table is replaced.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{path}.lock", timeout=60):
            held = {(v.setup, v.shape): v for v in (*read(path), *verdicts)}
            write_text(path, to_csv(held.values()))
    except Timeout as error:
        raise OSError(f"{path}.lock is held by another process") from error


def read(path: Path) -> list[Verdict]:
    """The verdicts in a file; none, with a warning, if it cannot be read. A missing file is no reason for a warning."""
    if not path.exists():
        return []
    try:
        return from_csv(read_text(path))
    except InvalidSetting as error:
        logger.warning("%s Its verdicts are ignored.", error)
    except NotATable as error:
        logger.warning("%s is not read (%s); its verdicts are ignored.", path, error)
    return []
