"""Rows as CSVs: columns, rig, appending, reading."""

import random
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, fields, replace

import pytest
from support.disks import full_disk

from stepcache.bench.rows import Rig, check_out, read, write
from stepcache.errors import InvalidSetting


@dataclass(frozen=True)
class Sample:
    name: str
    interval: int | None
    seconds: float
    failed: bool


ROWS = [Sample('a "quoted", one', 3, 0.1 + 0.2, False), Sample("zwei\nZeilen", None, 1e-9, True)]
READ = [ROWS[0], replace(ROWS[1], name="zwei Zeilen")]


def test_rows_survive_the_file(tmp_path):
    path = tmp_path / "results" / "sample.csv"
    write(path, ROWS)
    assert read(path, Sample) == READ


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
    assert read(path, Sample) == READ
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


def test_a_cut_at_any_byte_loses_only_the_row_that_it_cut(tmp_path, caplog):
    path = tmp_path / "sample.csv"
    write(path, ROWS)
    data = path.read_bytes()
    header = data.index(b"\n") + 1
    ends = [header, data.index(b"\n", header) + 1, len(data)]
    for end in range(len(data) + 1):
        caplog.clear()
        path.write_bytes(data[:end])
        check_out(path, Sample)
        assert path.read_bytes() == data[:end]
        whole = READ[: sum(end >= each for each in ends[1:])]
        torn = end not in (0, *ends)
        if end >= header:
            assert read(path, Sample) == whole
            assert ("left out, it was not written to its end" in caplog.text) == torn
        write(path, [ROWS[0]], append=True)
        assert read(path, Sample) == [*whole, READ[0]] and ("dropped" in caplog.text) == torn


def test_a_flipped_bit_gives_rows_or_the_line(tmp_path):
    path = tmp_path / "sample.csv"
    write(path, ROWS)
    data, draw, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(500):
        place = draw.randrange(len(data))
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :])
        with suppress(InvalidSetting):
            assert len(read(path, Sample)) <= 2
            continue
        refused += 1
    assert 0 < refused < 500


@pytest.mark.parametrize(
    ("line", "reason"),
    [("a,b", "argument 2 is shorter|shorter"), ("a,x,1.0,True", "invalid literal"), ('a,1,1.0,"True', "unexpected end"),
     ("a,1,1.0,Yes", "'Yes' is neither True nor False"), ("a,1,,True", "could not convert")],
)  # fmt: skip
def test_a_damaged_row_is_named_with_its_line(tmp_path, line, reason):
    path = tmp_path / "sample.csv"
    path.write_text(f"name,interval,seconds,failed\na,1,1.0,True\n{line}\n")
    with pytest.raises(InvalidSetting, match=rf"sample.csv, line 3 is damaged: .*({reason})"):
        read(path, Sample)
    path.write_text("name\n")
    with pytest.raises(InvalidSetting, match=r"line 1 is damaged: there is no column failed"):
        read(path, Sample)


@pytest.mark.parametrize("append", [False, True])
def test_a_full_disk_leaves_the_rows_and_names_the_file(tmp_path, append):
    path = tmp_path / "sample.csv"
    write(path, ROWS)
    before = path.read_bytes()
    with full_disk(len(before) + 50), pytest.raises(OSError, match=r"sample\.csv"):
        write(path, ROWS * 2, append=append)
    assert path.read_bytes() == before and [each.name for each in tmp_path.iterdir()] == ["sample.csv"]


FIRST = """
import sys
from pathlib import Path
from dataclasses import dataclass
from stepcache.bench.rows import write
@dataclass(frozen=True)
class Sample:
    name: str
    interval: int
print("ready", flush=True)
sys.stdin.readline()
for i in range(20):
    write(Path(sys.argv[1]), [Sample(sys.argv[2], i)], append=True)
"""


def test_two_first_writes_at_once_lose_nothing(tmp_path):
    @dataclass(frozen=True)
    class Sample:
        name: str
        interval: int

    path = tmp_path / "sample.csv"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    writers = [subprocess.Popen([sys.executable, "-c", FIRST, path, name], **pipes) for name in "ab"]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("\n")
        writer.stdin.flush()
    assert [writer.wait(60) for writer in writers] == [0, 0]
    assert sorted(read(path, Sample), key=str) == sorted((Sample(n, i) for n in "ab" for i in range(20)), key=str)


def test_what_rows_can_be_added_to(tmp_path):
    with pytest.raises(FileNotFoundError):
        check_out(tmp_path / "new" / "sample.csv", Sample)
    path = tmp_path / "sample.csv"
    check_out(path, Sample)
    assert list(tmp_path.iterdir()) == []
    for text in ("x", "name,interval\n", "\n"):
        path.write_text(text)
        with pytest.raises(InvalidSetting, match="has other columns"):
            check_out(path, Sample)
        assert path.read_text() == text
    with pytest.raises(IsADirectoryError):
        check_out(tmp_path, Sample)
