"""The tables of docs/support.md, made from the tables that the tests check.

tests/support/ways.py and tests/support/cases hold one row for each way of running and each pipeline, and what comes of
it; tests/pipelines/test_ways.py and tests/pipelines/test_cases.py check every row. Pipelines that the tests wrote
themselves have a table of their own, and are in no count.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.pages.markdown_table import table

TESTS = ROOT / "tests"
NOT_CARRIED = ": accelerate the new pipe itself"
OUTCOMES = WORKS, IDLE, REFUSED = "works", "works, nothing reused", "refused"


def counts_table(cases: Iterable[Any], ways: Iterable[Any], engine: str) -> str:
    """How many pipelines and ways of running work, work without a gain, or are refused; ways as `engine` runs them."""
    outcomes = [best for _, _, best, _ in _pipelines(case for case in cases if case.of_diffusers)]
    statuses = [way.status(engine) for way in ways]
    works, refused = (statuses.count(status) for status in (WORKS, REFUSED))
    lessened = len(statuses) - works - refused
    lines = [
        (
            f"{len(outcomes)} pipelines of diffusers", f"{outcomes.count(WORKS)}",
            f"{outcomes.count(IDLE)}: nothing to reuse", f"{outcomes.count(REFUSED)}",
        ),
        (
            f"{len(statuses)} ways of running one", f"{works}",
            f"{lessened}: without compiled graphs or CUDA graphs", f"{refused}",
        ),
    ]  # fmt: skip
    return table(("", WORKS, "works, with a limit", REFUSED), lines)


def ways_table(ways: Iterable[Any], engines: Sequence[str]) -> str:
    """A line for each way of running (`feature`, `carries`, `status(engine)`) with a column for each engine."""
    lines = [
        (way.feature + NOT_CARRIED * (not way.carries), *(way.status(engine) for engine in engines)) for way in ways
    ]
    return table(("way of running", *engines), lines)


def unets_table(cases: Iterable[Any]) -> str:
    """How many pipelines of diffusers work or are refused, for each class of U-Net."""
    best = [(family, outcome) for _, family, outcome, _ in _pipelines(case for case in cases if case.of_diffusers)]
    lines = [
        (family, *(str(best.count((family, outcome)) or "") for outcome in OUTCOMES))
        for family in dict.fromkeys(family for family, _ in best)
    ]
    return table(("U-Net", *OUTCOMES), lines)


def pipelines_table(cases: Iterable[Any]) -> str:
    """A line for each pipeline of diffusers, with what is tried with it."""
    lines = [
        (pipeline.removesuffix("Pipeline"), family, *("; ".join(features[outcome]) for outcome in OUTCOMES))
        for pipeline, family, _, features in _pipelines(case for case in cases if case.of_diffusers)
    ]
    return table(("pipeline", "U-Net", *OUTCOMES), lines)


def own_loops_table(cases: Iterable[Any]) -> str:
    """A line for each kind of loop that the tests wrote themselves, with what comes of it."""
    lines = [
        (feature, outcome)
        for _, _, _, features in _pipelines(case for case in cases if not case.of_diffusers)
        for outcome in OUTCOMES
        for feature in features[outcome]
    ]
    return table(("loop", "what comes of it"), lines)


def _pipelines(cases: Iterable[Any]) -> list[tuple[str, str, str, dict[str, list[str]]]]:
    """(pipeline, family, outcome, outcome -> features) of each pipeline: it counts with the best of its rows.

    cases: rows with `pipeline`, `family`, `feature`, `status` ("works" or "refused"), `reuses` and `of_diffusers`.
    """
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for case in cases:
        features = found.setdefault((case.pipeline, case.family), {outcome: [] for outcome in OUTCOMES})
        outcome = REFUSED if case.status == "refused" else WORKS if case.reuses else IDLE
        features[outcome].append(case.feature or outcome)
    return [(*key, next(filter(features.get, OUTCOMES)), features) for key, features in found.items()]


def of_tests(name: str) -> Any:
    """A module of the tests."""
    if str(TESTS) not in sys.path:
        sys.path.append(str(TESTS))
    return importlib.import_module(name)


def _of_cases(make: Callable[[Iterable[Any]], str]) -> Callable[[Path], str]:
    """`make` of the tests' cases, whatever the results."""
    return lambda results: make(of_tests("support.cases").CASES)


def _ways(results: Path) -> str:
    ways = of_tests("support.ways")
    return ways_table(ways.WAYS, ways.ENGINES)


def _counts(results: Path) -> str:
    ways = of_tests("support.ways")
    return counts_table(of_tests("support.cases").CASES, ways.WAYS, ways.ENGINES[-1])


TABLES: dict[str, Callable[[Path], str]] = {
    "support_counts": _counts,
    "support_ways": _ways,
    "support_unets": _of_cases(unets_table),
    "support_pipelines": _of_cases(pipelines_table),
    "support_own_loops": _of_cases(own_loops_table),
}
