"""The README says what the CSVs say."""

import shutil

import pytest
import tables
from stepcache.bench.rows import RESULTS, ROOT


def test_the_readmes_tables_are_those_of_the_csvs():
    text = (ROOT / "README.md").read_text()
    assert tables.fill(text) == text, "run `make tables`"
    for name in tables.TABLES:
        assert f"<!-- table: {name} -->" in text


def test_another_figure_in_a_csv_makes_another_table(tmp_path):
    shutil.copytree(RESULTS, tmp_path / "results")
    path = tmp_path / "results" / "cold_start.csv"
    text = path.read_text()
    first = text.splitlines()[1].split(",")
    seconds = text.splitlines()[0].split(",").index("first_image_s")
    first[seconds] = "987654.3"
    path.write_text("\n".join([text.splitlines()[0], ",".join(first), *text.splitlines()[2:]]) + "\n")
    readme = (ROOT / "README.md").read_text()
    filled = tables.fill(readme, tmp_path / "results")
    assert filled != readme and "987654.3" in filled


def test_an_unknown_table():
    with pytest.raises(KeyError, match="no_such_table"):
        tables.fill("<!-- table: no_such_table -->\n<!-- end -->", RESULTS)
