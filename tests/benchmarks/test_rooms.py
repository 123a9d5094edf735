"""The map of the rooms is that of the code, and imports run one way."""

import re

import pytest

from benchmarks import ROOT
from benchmarks.pages import rooms


def test_imports_run_one_way():
    edges = rooms.imports()
    floor = rooms.levels(edges)
    assert all(floor[name] > floor[other] for name, others in edges.items() for other in others)
    assert (
        floor["commands"] > floor["run"] > floor["graphs"] > floor["forwards"] > floor["reuse"] > floor["values"] == 0
    )


def test_a_circle_is_named():
    with pytest.raises(ValueError, match="a -> b -> a"):
        rooms.levels({"a": {"b"}, "b": {"a"}})


def test_arrows_that_a_longer_way_implies_are_left_out():
    assert rooms.direct({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {"a": {"b"}, "b": {"c"}, "c": set()}


def test_the_map_is_current():
    for name, text in rooms.FIGURE.files().items():
        assert (ROOT / "docs" / name).read_text() == text, "run `make tables`"


def test_every_room_has_its_line_in_the_architecture_page():
    page = (ROOT / "docs" / "architecture.md").read_text()
    table = page[page.index("| room |") : page.index("Outside `src`")]
    named = set(re.findall(r"`(\w+)(?:/|\.py)?`", table.replace("`kernels`", "`kernels/`")))
    assert set(rooms.rooms()) <= named


def test_every_file_that_it_names_is_there():
    page = (ROOT / "docs" / "architecture.md").read_text()
    links = re.findall(r"\]\(([^)#]+)\)", page)
    assert links and all((ROOT / "docs" / link).exists() for link in links if "://" not in link)


def test_the_glossary_is_short():
    page = (ROOT / "docs" / "architecture.md").read_text()
    words = [line for line in page[page.index("| word |") :].splitlines() if line.startswith("|")][2:]
    assert len(words) <= 25


def test_reuse_imports_no_torch():
    for path in (rooms.SOURCE / "reuse").glob("*.py"):
        assert not re.search(r"^\s*(import|from) torch", path.read_text(), re.M), path
