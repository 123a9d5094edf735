"""What has been measured, in a file."""

import json
import os
import random
import subprocess
import sys

import pytest
from support.disks import full_disk

from stepcache.calibration.journal import Journal
from stepcache.errors import InvalidSetting

HEADER = {"steps": 20, "size": (64, 64)}
KNOWN = {"a": [1 / 3, 0.1], "b": [float("inf"), 1.0], "caf\u00e9": [2.0]}


@pytest.fixture
def path(tmp_path):
    """A journal with KNOWN."""
    path = tmp_path / "trials.jsonl"
    with Journal(path, HEADER) as journal:
        for name, values in KNOWN.items():
            journal.add(name, values)
    return path


def known(path, header=HEADER):
    with Journal(path, header) as journal:
        return journal.known


def test_measurements_are_found_again(path):
    assert known(path) == KNOWN


def test_of_another_search(path):
    with pytest.raises(InvalidSetting, match=r"not of this calibration \(not the same: steps\)"):
        Journal(path, {**HEADER, "steps": 21})
    assert known(path) == KNOWN
    for text, reason in (("no json\n", "line 1: Expecting value"), ("[1]\n", "not an object"), ("x", "Expecting")):
        path.write_text(text)
        with pytest.raises(InvalidSetting, match=f"not of this calibration .*{reason}"):
            Journal(path, HEADER)
        assert path.read_text() == text


def test_a_cut_at_any_byte_loses_only_the_measurement_that_it_cut(path, caplog):
    data = path.read_bytes()
    header = data.index(b"\n") + 1
    for end in range(len(data) + 1):
        caplog.clear()
        path.write_bytes(data[:end])
        whole = max(0, data[:end].count(b"\n") - 1)
        with Journal(path, HEADER) as journal:
            assert journal.known == dict(list(KNOWN.items())[:whole])
            journal.add("c", [2.0])
        assert known(path)["c"] == [2.0] and len(known(path)) == whole + 1
        torn = end > 0 and (end < header or not data[:end].endswith(b"\n"))
        assert ("dropped, it was not written to its end" in caplog.text) == torn


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"3", "it is not"), (b"[]", "it is not"), (b'{"of": "a"}', "it is not"),
        (b'{"of": 3, "is": [1.0]}', "it is not"),
        (b'{"of": "a", "is": 3}', "must be numbers"), (b'{"of": "a", "is": []}', "must be numbers"),
        (b'{"of": "a", "is": [true]}', "must be numbers"), (b'{"of": "a", "is": [NaN]}', "NaN is not a number"),
        (b'{"of": "a", "is": ["1"]}', "must be numbers"), (b"", "Expecting value"), (b"{", "Expecting"),
        (b"[" * 10**5, "nested too deep"), (b"\0" * 9, "Expecting value"),
    ],
)  # fmt: skip
def test_a_damaged_line_is_named(path, line, reason):
    data = path.read_bytes() + line + b"\n" + b'{"of": "d", "is": [1.0]}\n'
    path.write_bytes(data)
    with pytest.raises(InvalidSetting, match=rf"trials.jsonl, line 5 is damaged: .*{reason}.*Remove the line"):
        Journal(path, HEADER)
    assert path.read_bytes() == data


def test_what_is_not_utf8_is_named(path):
    path.write_bytes(path.read_bytes() + b"\xe9\n")
    with pytest.raises(InvalidSetting, match=r"trials\.jsonl, line 5: not UTF-8"):
        Journal(path, HEADER)


def test_a_flipped_bit_gives_measurements_or_an_error(path):
    data, draw, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(500):
        place = draw.randrange(len(data))
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :])
        try:
            values = known(path)
        except InvalidSetting:
            refused += 1
        else:
            assert all(type(value) is float and value == value for each in values.values() for value in each)
    assert 250 < refused < 500


def test_a_second_calibration_is_told_who_has_it(path):
    code = "import sys, pathlib, stepcache.calibration.journal as x; x.Journal(pathlib.Path(sys.argv[1]), {})"
    with Journal(path, HEADER):
        with pytest.raises(InvalidSetting, match=f"in use by process {os.getpid()} .*: let it finish"):
            Journal(path, HEADER)
        second = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
        assert f"is in use by process {os.getpid()} (" in second.stderr
    assert known(path) == KNOWN


def test_a_full_disk_leaves_what_is_there(path):
    with Journal(path, HEADER) as journal, full_disk(path.stat().st_size + 10):
        with pytest.raises(OSError, match=r"trials\.jsonl"):
            journal.add("d", [3.0])
        assert "d" not in journal.known
    assert known(path) == KNOWN and json.loads(path.read_text().splitlines()[-1])["of"] == "caf\u00e9"


def test_without_a_file():
    with Journal(None, HEADER) as journal:
        journal.add("a", [1.0])
    assert journal.known == {"a": [1.0]}
