"""Rows as CSVs: columns, rig, appending, reading."""

from dataclasses import dataclass, fields

import pytest

from stepcache.bench.rows import Rig, read, write


@dataclass(frozen=True)
class Sample:
    name: str
    interval: int | None
    seconds: float
    failed: bool


ROWS = [Sample('a "quoted", one', 3, 0.1 + 0.2, False), Sample("zwei\nZeilen", None, 1e-9, True)]


def test_rows_survive_the_file(tmp_path):
    path = tmp_path / "results" / "sample.csv"
    write(path, ROWS)
    assert read(path, Sample) == ROWS


def test_columns_are_the_fields_and_every_row_has_the_rig(tmp_path):
    path = tmp_path / "sample.csv"
    write(path, ROWS)
    assert path.read_text().splitlines()[0].split(",") == [f.name for kind in (Sample, Rig) for f in fields(kind)]
    rigs = read(path, Rig)
    assert len(rigs) == len(ROWS)
    assert all(rig.cpu and rig.cores >= 1 and rig.torch and rig.stepcache and rig.command and rig.date for rig in rigs)


def test_append_writes_the_header_once(tmp_path):
    path = tmp_path / "sample.csv"
    for row in ROWS:
        write(path, [row], append=True)
    assert read(path, Sample) == ROWS
    assert path.read_text().count("interval,") == 1


def test_write_without_append_replaces(tmp_path):
    path = tmp_path / "sample.csv"
    write(path, ROWS)
    write(path, ROWS[:1])
    assert read(path, Sample) == ROWS[:1]


def test_other_columns_are_not_appended(tmp_path):
    @dataclass(frozen=True)
    class Other:
        name: str

    path = tmp_path / "sample.csv"
    write(path, ROWS)
    before = path.read_text()
    with pytest.raises(ValueError, match="columns"):
        write(path, [Other("b")], append=True)
    with pytest.raises(ValueError, match="one kind"):
        write(path, [ROWS[0], Other("b")])
    assert path.read_text() == before


def test_no_rows_no_file(tmp_path):
    write(tmp_path / "sample.csv", [])
    assert not (tmp_path / "sample.csv").exists()


def test_the_commit_without_a_repository_is_the_one_told(monkeypatch, tmp_path):
    from stepcache.bench import rows

    monkeypatch.setattr(rows, "CHECKOUT", tmp_path)
    monkeypatch.delenv("STEPCACHE_COMMIT", raising=False)
    assert Rig.now().commit == ""
    monkeypatch.setenv("STEPCACHE_COMMIT", "0123456789ab")
    assert Rig.now().commit == "0123456789ab"
