"""The README's support matrix, made from the tables that the tests check.

tests/support/ways.py and tests/support/cases hold one row for each way of running and each pipeline, and what comes of
it; tests/pipelines/test_ways.py and tests/pipelines/test_cases.py check every row.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.pages.markdown_table import table

TESTS = ROOT / "tests"
OUTCOMES = WORKS, IDLE, REFUSED = "works", "works, nothing reused", "refused"
NOTE = (
    "Each cell is a row of the tests' tables ([ways of running](tests/support/ways.py), "
    "[pipelines](tests/support/cases)), which `make test` checks on a CPU: compiled by Dynamo alone, captured by "
    "a stand-in for CUDA graphs. *Runs eager* and *not captured*: correct, but without compiled graphs or CUDA graphs, "
    "as a warning says. *Nothing reused*: the pipeline needs the whole U-Net in every call. *Refused*: an error before "
    "the run says why. torchao's rows run if it is installed; with 0.18.0 they passed."
)


def support_table(results: Path) -> str:
    """Both tables. They come from the tests; `results` is not used."""
    ways, cases = _of_tests("support.ways"), _of_tests("support.cases").CASES
    return f"{running_table(ways.WAYS, ways.ENGINES)}\n\n{pipelines_table(cases)}\n\n{NOTE}"


def running_table(ways: Iterable[Any], engines: Sequence[str]) -> str:
    """A line for each way of running (`feature`, `status(engine)`) with a column for each engine."""
    lines = [(way.feature, *(way.status(engine) for engine in engines)) for way in ways]
    return table(("way of running", *engines), lines)


def pipelines_table(cases: Iterable[Any]) -> str:
    """The number of pipelines that work or are refused for each class of U-Net; and, folded, a line for each pipeline.

    cases: rows with `pipeline`, `family`, `feature`, `status` ("works" or "refused") and `reuses`.
    """
    pipelines: dict[tuple[str, str], dict[str, list[str]]] = {}
    for case in cases:
        found = pipelines.setdefault((case.pipeline, case.family), {outcome: [] for outcome in OUTCOMES})
        outcome = REFUSED if case.status == "refused" else WORKS if case.reuses else IDLE
        found[outcome].append(case.feature or outcome)
    # A pipeline counts with the best of its rows.
    best = [(family, next(filter(found.get, OUTCOMES))) for (_, family), found in pipelines.items()]
    counts = [
        (family, *(str(best.count((family, outcome)) or "") for outcome in OUTCOMES))
        for family in dict.fromkeys(family for family, _ in best)
    ]
    lines = [
        (pipeline.removesuffix("Pipeline"), family, *("; ".join(found[outcome]) for outcome in OUTCOMES))
        for (pipeline, family), found in pipelines.items()
    ]
    return (
        f"{table(('U-Net', *(f'pipelines: {outcome}' for outcome in OUTCOMES)), counts)}\n\n"
        f"<details><summary>Each of the {len(pipelines)} pipelines, and what is tried with it</summary>\n\n"
        f"{table(('pipeline', 'U-Net', *OUTCOMES), lines)}\n\n</details>"
    )


def _of_tests(name: str) -> Any:
    """A module of the tests."""
    if str(TESTS) not in sys.path:
        sys.path.append(str(TESTS))
    return importlib.import_module(name)
