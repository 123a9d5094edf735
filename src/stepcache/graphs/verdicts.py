"""Verdicts: for one join on one GPU, how long it takes on the Triton ops and how long as Inductor compiles it.

A verdict holds for the setup that it was measured on: the GPU by name, and the versions of torch, Triton and stepcache.
Two tables have them, both CSV files with the header `COLUMNS`: the one that comes with the package
(csrc_triton/defaults.csv), and the user's own in the cache folder, which `warmup` and `stepcache tune` add to. Where
both know a join the user's own holds: it was measured on that very machine.

The user's file may be anything: gone, broken, read-only, of another version, written by several processes at once. A
warning says so, and the verdicts of this process are kept in memory all the same. Nothing here raises for a file.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple, get_type_hints

logger = logging.getLogger("stepcache")


class Setup(NamedTuple):
    """What a verdict was measured on. A change of any of them may turn it around."""

    gpu: str
    torch: str
    triton: str
    stepcache: str


class JoinShape(NamedTuple):
    """All of a join that its time depends on.

    dtype: "float16". layout: "channels_last" or "contiguous". hidden, skip, out: channels. height, width: pixels of the
    latent. buffers: those that the hidden state is blended of, 0 where it is a tensor. resnet: what kind of ResNet
    (`join.shape_of`).
    """

    dtype: str
    layout: str
    batch: int
    hidden: int
    skip: int
    out: int
    groups: int
    height: int
    width: int
    buffers: int
    resnet: str

    def __str__(self) -> str:
        mixed = f" of {self.buffers} buffers" if self.buffers else ""
        return f"{self.batch} x {self.hidden}{mixed} + {self.skip} -> {self.out} at {self.height} x {self.width}"


OK = "ok"


@dataclass(frozen=True)
class Verdict:
    """Microseconds of one join with the ResNet behind it, both ways.

    status: "ok", or what is wrong with the result of the ops. Then the times are None.
    """

    setup: Setup
    shape: JoinShape
    triton_us: float | None
    inductor_us: float | None
    status: str = OK

    @property
    def for_triton(self) -> bool:
        """Whether the join is to run on the ops."""
        if self.status != OK or self.triton_us is None or self.inductor_us is None:
            return False
        return self.triton_us < self.inductor_us


COLUMNS = (*Setup._fields, *JoinShape._fields, "triton_us", "inductor_us", "status")
Key = tuple[Setup, JoinShape]


class NotATable(ValueError):
    """A file that is no table of verdicts, or not one that this version can read."""


def to_csv(verdicts: Iterable[Verdict]) -> str:
    """The table, sorted."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for verdict in sorted(verdicts, key=lambda verdict: (verdict.setup, verdict.shape)):
        times = ("" if us is None else f"{us:.2f}" for us in (verdict.triton_us, verdict.inductor_us))
        writer.writerow([*verdict.setup, *verdict.shape, *times, verdict.status])
    return text.getvalue()


def from_csv(text: str) -> list[Verdict]:
    """The verdicts of a table; NotATable, with the line, for anything else."""
    lines = csv.reader(io.StringIO(text))
    header = next(lines, [])
    if tuple(header) != COLUMNS:
        raise NotATable(f"its first line is {','.join(header)[:80]!r}")
    return [_verdict(cells, number) for number, cells in enumerate(lines, 2)]


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
    """Where the user's file is: $STEPCACHE_CACHE, else stepcache in $XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("STEPCACHE_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stepcache"


class Verdicts:
    """What is known about the joins of one setup: of the shipped table, the user's file, and this process.

    shipped: the text of a table. folder: the user's; None for `cache_folder()`.
    """

    def __init__(self, setup: Setup, shipped: str | None = None, folder: Path | None = None) -> None:
        self.setup = setup
        self.path = (cache_folder() if folder is None else folder) / "joins.csv"
        self._lock = threading.Lock()
        shipped = (files("stepcache.kernels") / "defaults.csv").read_text() if shipped is None else shipped
        self._known = {v.shape: v for v in from_csv(shipped) if v.setup == setup}
        self._known |= {v.shape: v for v in self._own() if v.setup == setup}

    def _own(self) -> list[Verdict]:
        """The user's file, with a warning where it is of no use."""
        verdicts = _read(self.path)
        others = {v.setup for v in verdicts if v.setup.gpu == self.setup.gpu and v.setup != self.setup}
        if others and not any(v.setup == self.setup for v in verdicts):
            versions = "; ".join(f"torch {o.torch}, triton {o.triton}, stepcache {o.stepcache}" for o in sorted(others))
            logger.warning(
                "%s knows this GPU's joins for other versions only (%s): they are not used. warmup(pipe, ...) or "
                "`stepcache tune` measures them for torch %s, triton %s, stepcache %s.",
                self.path, versions, self.setup.torch, self.setup.triton, self.setup.stepcache,
            )  # fmt: skip
        return verdicts

    def get(self, shape: JoinShape) -> Verdict | None:
        """What is known about a join."""
        return self._known.get(shape)

    @property
    def for_triton(self) -> frozenset[JoinShape]:
        """The joins that are to run on the ops."""
        with self._lock:
            return frozenset(shape for shape, verdict in self._known.items() if verdict.for_triton)

    def add(self, verdict: Verdict) -> None:
        """Know it from now on, and write it to the user's file. A warning where it cannot be written."""
        with self._lock:
            self._known[verdict.shape] = verdict
        try:
            add_to_file(self.path, [verdict])
        except OSError as error:
            logger.warning(
                "%s cannot be written (%s): this process alone knows which joins are faster with Triton. Set "
                "STEPCACHE_CACHE to a folder that can be written to.", self.path, error.strerror or error,
            )  # fmt: skip


def add_to_file(path: Path, verdicts: Iterable[Verdict]) -> None:
    """Put verdicts into a table, in the place of those for the same setup and join. OSError where that cannot be.

    Whole or not at all, and one process at a time: two that measure at once lose nothing. What is no table is replaced.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{path}.lock", timeout=60):
            held: dict[Key, Verdict] = {(v.setup, v.shape): v for v in (*_read(path), *verdicts)}
            _replace(path, to_csv(held.values()))
    except Timeout as error:
        raise OSError(f"{path}.lock is held by another process") from error


def _read(path: Path) -> list[Verdict]:
    try:
        return from_csv(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:  # of the latter, NotATable and what is no UTF-8
        reason = error.strerror if isinstance(error, OSError) else error
        logger.warning("%s is not read (%s); it is taken as if it were not there.", path, reason)
        return []


def _replace(path: Path, text: str) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
