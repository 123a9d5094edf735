"""docs/support.md says what the tables of the tests say, and counts diffusers' pipelines only."""

from types import SimpleNamespace

import diffusers
import pytest
from support.cases import CASES, own_loops
from support.ways import ENGINES, WAYS

from benchmarks import RESULTS
from benchmarks.pages import support_matrix


def cells_of(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def made(name):
    return cells_of(support_matrix.TABLES[name](RESULTS))


def case(pipeline, feature="", family="A", status="works", reuses=True, of_diffusers=True):
    return SimpleNamespace(
        pipeline=pipeline, feature=feature, family=family, status=status, reuses=reuses, of_diffusers=of_diffusers
    )


SOME = [
    case("OnePipeline", "text"),
    case("OnePipeline", "LoRA"),
    case("OnePipeline", "one step", reuses=False),
    case("TwoPipeline", family="B", status="refused"),
    case("MinePipeline", "tiles", of_diffusers=False),
    case("ThreePipeline", status="refused"),
    case("FourPipeline", "maps", reuses=False),
    case("OursPipeline", "no step", reuses=False, of_diffusers=False),
]


def test_a_line_for_each_way_and_a_column_for_each_engine():
    way = SimpleNamespace(feature="offloading", carries=True, status={"eager": "works", "captured": "refused"}.get)
    new = SimpleNamespace(feature="from_pipe", carries=False, status={"eager": "works", "captured": "works"}.get)
    assert cells_of(support_matrix.ways_table([way, new], ["eager", "captured"])) == [
        ["way of running", "eager", "captured"],
        ["---"] * 3,
        ["offloading", "works", "refused"],
        ["from_pipe: accelerate the new pipe itself", "works", "works"],
    ]


def test_pipelines_are_counted_by_unet():
    _, _, *counts = cells_of(support_matrix.unets_table(SOME))
    assert counts == [["A", "1", "1", "1"], ["B", "", "", "1"]]


def test_pipelines_are_listed_with_their_features():
    header, _, *lines = cells_of(support_matrix.pipelines_table(SOME))
    assert header == ["pipeline", "U-Net", "works", "works, nothing reused", "refused"]
    assert lines == [
        ["One", "A", "text; LoRA", "one step", ""],
        ["Two", "B", "", "", "refused"],
        ["Three", "A", "", "", "refused"],
        ["Four", "A", "", "maps", ""],
    ]


def test_loops_of_the_tests_stand_apart():
    _, _, *lines = cells_of(support_matrix.own_loops_table(SOME))
    assert lines == [["tiles", "works"], ["no step", "works, nothing reused"]]


def test_the_counts_in_short():
    statuses = ["works", "works", "works, runs eager", "works, not captured", "refused"]
    ways = [SimpleNamespace(status={"captured": status}.get) for status in statuses]
    _, _, pipelines, running = cells_of(support_matrix.counts_table(SOME, ways, "captured"))
    assert pipelines == ["4 pipelines of diffusers", "1", "1: nothing to reuse", "2"]
    assert running == ["5 ways of running one", "2", "2: without compiled graphs or CUDA graphs", "1"]


def test_the_page_counts_what_diffusers_has():
    """By hand: each class of the tests' rows that diffusers hands out, with the best that comes of its rows."""
    outcomes = {}
    for row in CASES:
        if hasattr(diffusers, row.pipeline):
            outcome = 0 if row.error else 2 if row.reuses else 1
            outcomes[row.pipeline] = max(outcome, outcomes.get(row.pipeline, 0))
    refused, idle, works = (list(outcomes.values()).count(n) for n in range(3))
    _, _, pipelines, running = made("support_counts")
    assert pipelines == [
        f"{len(outcomes)} pipelines of diffusers",
        f"{works}",
        f"{idle}: nothing to reuse",
        f"{refused}",
    ]
    captured = [way.status("captured") for way in WAYS]
    assert running[:2] == [f"{len(captured)} ways of running one", f"{captured.count('works')}"]
    _, _, *by_unet = made("support_unets")
    assert [sum(int(line[n] or 0) for line in by_unet) for n in (1, 2, 3)] == [works, idle, refused]


@pytest.mark.parametrize("row", own_loops.CASES, ids=lambda row: row.pipeline)
def test_a_class_that_the_tests_wrote_is_told_from_diffusers(row):
    assert not row.of_diffusers
    assert row.pipeline.removesuffix("Pipeline") not in {line[0] for line in made("support_pipelines")}
    assert row.feature in {line[0] for line in made("support_own_loops")}


def test_every_other_class_is_diffusers():
    assert {row.pipeline for row in CASES if not row.of_diffusers} == {row.pipeline for row in own_loops.CASES}


def test_every_row_of_the_tests_is_on_the_page():
    ways = made("support_ways")
    for way in WAYS:
        feature = way.feature if way.carries else f"{way.feature}{support_matrix.NOT_CARRIED}"
        assert [feature, *map(way.status, ENGINES)] in ways
    lines = {line[0]: line for line in made("support_pipelines")}
    for row in CASES:
        if row.of_diffusers:
            line = lines[row.pipeline.removesuffix("Pipeline")]
            place = 4 if row.status == "refused" else 2 if row.reuses else 3
            assert (row.feature or "refused") in line[place]
