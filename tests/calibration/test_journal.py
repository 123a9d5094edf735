"""What has been measured, in a file."""

import pytest

from stepcache.calibration.journal import Journal
from stepcache.errors import InvalidSetting

HEADER = {"steps": 20, "size": (64, 64)}


def test_measurements_are_found_again(tmp_path):
    path = tmp_path / "trials.jsonl"
    journal = Journal(path, HEADER)
    journal.add("a", [1 / 3, 0.1])
    journal.add("b", [float("inf"), 1.0])
    assert Journal(path, HEADER).known == {"a": [1 / 3, 0.1], "b": [float("inf"), 1.0]}


def test_of_another_search(tmp_path):
    path = tmp_path / "trials.jsonl"
    Journal(path, HEADER).add("a", [1.0])
    with pytest.raises(InvalidSetting, match=r"another calibration \(not the same: steps\)"):
        Journal(path, {**HEADER, "steps": 21})
    path.write_text("no json\n")
    with pytest.raises(InvalidSetting, match="not a file of trials"):
        Journal(path, HEADER)


def test_a_last_line_that_was_cut_off_is_left_out(tmp_path):
    path = tmp_path / "trials.jsonl"
    journal = Journal(path, HEADER)
    journal.add("a", [1.0])
    with path.open("a") as file:
        file.write('{"of": "b", "i')
    again = Journal(path, HEADER)
    assert again.known == {"a": [1.0]}
    again.add("c", [2.0])
    assert Journal(path, HEADER).known == {"a": [1.0], "c": [2.0]}


def test_without_a_file():
    journal = Journal(None, HEADER)
    journal.add("a", [1.0])
    assert journal.known == {"a": [1.0]}
