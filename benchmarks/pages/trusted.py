"""The rows that pages may show: not GPU figures of a commit whose tests failed on a GPU.

The gate measures even if its tests fail, since GPU time is scarce and each figure has its own check. But a page speaks
for the whole commit. gate.csv says how the tests ended.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from benchmarks.gate.jobs import read_outcomes
from benchmarks.gate.plan import TESTS
from stepcache.bench.rows import Rig, Row, read
from stepcache.bench.schema import BenchRow

OUTCOMES = "gate.csv"


class Trusted(NamedTuple):
    """Rows of a CSV with their rigs, and a sentence about what was left out, or ""."""

    rows: list[BenchRow]
    rigs: list[Rig]
    left_out: str


def red_commits(results: Path) -> dict[str, str]:
    """Commit -> its failed test jobs, each with its first failure."""
    red: dict[str, list[str]] = {}
    for outcome in read_outcomes(results / OUTCOMES):
        if outcome.job in TESTS and outcome.status == "failed":
            red.setdefault(_bare(outcome.commit), []).append(f"{outcome.job}: {outcome.detail}")
    return {commit: "; ".join(jobs) for commit, jobs in red.items()}


def trusted(path: Path) -> Trusted:
    """The trusted rows of a CSV of `stepcache bench`, according to the gate.csv in its folder."""
    return Trusted(*sifted(path, BenchRow))


def sifted(path: Path, kind: type[Row]) -> tuple[list[Row], list[Rig], str]:
    """The same for rows of any kind. Those that name no device were measured on the GPU, if their machine has one."""
    red = red_commits(path.parent)
    rows, rigs, left_out = [], [], dict.fromkeys(red, 0)
    for row, rig in zip(read(path, kind), read(path, Rig), strict=True):
        if rig.gpu and getattr(row, "device", "cuda") == "cuda" and _bare(rig.commit) in red:
            left_out[_bare(rig.commit)] += 1
        else:
            rows.append(row)
            rigs.append(rig)
    texts = [
        f"**Left out: {count} rows of commit {commit or 'unknown'}, whose tests were red on a GPU** ({red[commit]})."
        for commit, count in left_out.items()
        if count
    ]
    return rows, rigs, " ".join(texts)


def _bare(commit: str) -> str:
    # Results written by a run may have made its checkout "-dirty".
    return commit.removesuffix("-dirty")
