"""The support matrix says what the tables of the tests say."""

from types import SimpleNamespace

from benchmarks import RESULTS
from benchmarks.pages import support_matrix


def cells_of(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def case(pipeline, feature="", family="A", status="works", reuses=True):
    return SimpleNamespace(pipeline=pipeline, feature=feature, family=family, status=status, reuses=reuses)


def test_a_line_for_each_way_and_a_column_for_each_engine():
    way = SimpleNamespace(feature="offloading", status={"eager": "works", "captured": "refused"}.get)
    assert cells_of(support_matrix.running_table([way], ["eager", "captured"])) == [
        ["way of running", "eager", "captured"],
        ["---"] * 3,
        ["offloading", "works", "refused"],
    ]


def test_pipelines_are_counted_by_family_and_listed_with_their_features():
    cases = [
        case("OnePipeline", "text"),
        case("OnePipeline", "LoRA"),
        case("OnePipeline", "one step", reuses=False),
        case("TwoPipeline", family="B", status="refused"),
        case("ThreePipeline", status="refused"),
        case("FourPipeline", "maps", reuses=False),
    ]
    _, _, *counts, header, _, one, two, three, four = cells_of(support_matrix.pipelines_table(cases))
    assert counts == [["A", "1", "1", "1"], ["B", "", "", "1"]]
    assert header == ["pipeline", "U-Net", "works", "works, nothing reused", "refused"]
    assert one == ["One", "A", "text; LoRA", "one step", ""]
    assert two == ["Two", "B", "", "", "refused"]
    assert three == ["Three", "A", "", "", "refused"]
    assert four == ["Four", "A", "", "maps", ""]


def test_every_row_of_the_tests_is_in_the_matrix():
    made = support_matrix.support_table(RESULTS)
    ways, cases = (support_matrix._of_tests(name) for name in ("support.ways", "support.cases"))
    cells = cells_of(made)
    for way in ways.WAYS:
        assert [way.feature, *map(way.status, ways.ENGINES)] in cells
    lines = {line[0]: line for line in cells}
    for row in cases.CASES:
        line = lines[row.pipeline.removesuffix("Pipeline")]
        place = 4 if row.status == "refused" else 2 if row.reuses else 3
        assert (row.feature or "refused") in line[place]
