"""The one table of what stepcache does with each pipeline and feature.

tests/pipelines/test_cases.py runs every row, and docs/support.md is made from it.
"""

from support.cases import adapters, control, diffusion, editing, families, own_loops, refused, video
from support.cases.case import Case

CASES: list[Case] = [
    *diffusion.CASES,
    *control.CASES,
    *adapters.CASES,
    *editing.CASES,
    *families.CASES,
    *own_loops.CASES,
    *refused.CASES,
    *video.CASES,
]


def case_of(name: str) -> Case:
    """The row of that name: "pipeline: feature"."""
    return next(case for case in CASES if case.name == name)
