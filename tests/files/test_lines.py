"""Files that grow by whole lines."""

import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
from support.disks import full_disk

from stepcache.errors import InvalidSetting
from stepcache.files import locks
from stepcache.files.lines import Held, Lines, OtherHeader

TEXT = "a,b\n1,2\ncaf\u00e9,\n3,4\n"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.csv"


def test_lines_are_added_and_read(path):
    with Lines(path, "a,b") as file:
        assert file.lines == []
        file.add(["1,2"])
        file.add(["caf\u00e9,", "3,4"])
    assert path.read_text() == TEXT
    with Lines(path, "a,b") as file:
        assert file.lines == ["1,2", "caf\u00e9,", "3,4"]
    assert path.read_text() == TEXT


def test_a_cut_at_any_byte_loses_only_the_line_that_it_cut(path, caplog):
    data = TEXT.encode()
    for end in range(len(data) + 1):
        caplog.clear()
        path.write_bytes(data[:end])
        with Lines(path, "a,b") as file:
            file.add(["5,6"])
        whole = data[: data[:end].rfind(b"\n") + 1] or b"a,b\n"
        assert path.read_bytes() == whole + b"5,6\n"
        torn = 0 < end < len(b"a,b\n") or data[:end].rfind(b"\n") + 1 < end
        assert (len(caplog.records) == 1) == torn
    assert "a.csv, line 4: dropped, it was not written to its end: b'3,4'" in caplog.text or not torn


def test_zeros_after_a_power_cut_are_dropped(path, caplog):
    path.write_bytes(b"a,b\n1,2\n" + b"\0" * 500)
    with Lines(path, "a,b") as file:
        assert file.lines == ["1,2"]
    assert path.read_bytes() == b"a,b\n1,2\n" and "line 3: dropped" in caplog.text


@pytest.mark.parametrize("text", ["x", "a,c\n1,2\n", "a,b,c\n", "a\n", "\n"])
def test_another_file_stays_as_it_is(path, text):
    path.write_text(text)
    with pytest.raises(OtherHeader) as caught:
        Lines(path, "a,b")
    assert caught.value.found == text.split("\n")[0] and path.read_text() == text


@pytest.mark.parametrize(("data", "line"), [(b"\xff\xfe", 1), (b"a,b\n1\n\xe9\n", 3)])
def test_what_is_not_utf8(path, data, line):
    path.write_bytes(data)
    with pytest.raises(InvalidSetting, match=f"a.csv, line {line}: not UTF-8"):
        Lines(path, "a,b")
    assert path.read_bytes() == data


def test_a_full_disk_leaves_the_file_and_names_it(path):
    with Lines(path, "a,b") as file:
        file.add(["1,2"])
        with full_disk(20), pytest.raises(OSError, match=r"File too large: '.*a\.csv'"):
            file.add(["3,4", "5" * 20])
        file.add(["7,8"])
    assert path.read_text() == "a,b\n1,2\n7,8\n"
    path.unlink()
    with full_disk(2), pytest.raises(OSError, match=r"a\.csv"):
        Lines(path, "a,b")
    assert path.read_bytes() == b""


def test_no_line_can_have_a_break(path):
    with Lines(path, "a,b") as file, pytest.raises(ValueError, match="line break"):
        file.add(["1\n2"])
    assert path.read_text() == "a,b\n"


@pytest.mark.parametrize("name", ["no/a.csv", "."])
def test_what_cannot_be_opened(tmp_path, name):
    with pytest.raises(OSError) as caught:
        Lines(tmp_path / name, "a,b")
    assert caught.value.filename == str(tmp_path / name) or caught.value.filename == tmp_path / name


ADDER = """
import sys
from pathlib import Path
from stepcache.files.lines import Lines
for i in range(int(sys.argv[3])):
    with Lines(Path(sys.argv[1]), "name,number") as file:
        file.add([f"{sys.argv[2]},{i}{'.' * 500}"])
"""


def adder(path, name, count):
    return subprocess.Popen([sys.executable, "-c", ADDER, path, name, str(count)])


def test_several_processes_at_once_lose_no_line(path):
    adders = [adder(path, name, 100) for name in "abc"]
    assert [process.wait(60) for process in adders] == [0, 0, 0]
    header, *lines = path.read_text().splitlines()
    assert header == "name,number" and all(line.endswith("." * 500) for line in lines)
    assert sorted(line.rstrip(".") for line in lines) == sorted(f"{name},{i}" for name in "abc" for i in range(100))


def test_kills_at_random_moments_tear_no_line_that_stays(path):
    draw = random.Random(0)
    for _ in range(8):
        process = adder(path, "a", 10**6)
        while not path.exists():
            time.sleep(0.001)
        time.sleep(draw.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        process.wait()
        with Lines(path, "name,number") as file:
            assert all(re.fullmatch(r"a,\d+\.{500}", line) for line in file.lines)
    assert file.lines


def test_a_second_process_is_told_who_has_it(path):
    with Lines(path, "a,b") as file:
        code = "import sys, pathlib, stepcache.files.lines as x; x.Lines(pathlib.Path(sys.argv[1]), 'a,b', False)"
        second = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
        assert f"Held: {path} is in use by process {os.getpid()} (" in second.stderr
        with pytest.raises(Held):
            Lines(path, "a,b", wait=False)
        file.add(["1,2"])
    with Lines(path, "a,b", wait=False) as file:
        assert file.lines == ["1,2"]
        file.close()


def test_who_has_it_may_be_unknown(path, monkeypatch):
    with Lines(path, "a,b") as file:
        monkeypatch.setattr("builtins.open", lambda *args, **kwargs: (_ for _ in ()).throw(OSError))
        assert locks.holder(file._file.fileno()) == "another process"


def test_a_file_that_was_removed_while_waiting_is_not_written_to(path, monkeypatch):
    there = locks.lock
    calls = []

    def lock(descriptor, name, wait):
        if not calls:
            path.unlink()
        calls.append(descriptor)
        return there(descriptor, name, wait)

    monkeypatch.setattr("stepcache.files.lines.lock", lock)
    with Lines(path, "a,b") as file:
        file.add(["1,2"])
    assert path.read_text() == "a,b\n1,2\n" and len(calls) == 2


def test_where_nothing_can_be_locked_a_warning_says_so(path, monkeypatch, caplog):
    def flock(descriptor, flags):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with Lines(path, "a,b") as file:
        file.add(["1,2"])
    assert path.read_text() == "a,b\n1,2\n"
    assert "a.csv is not locked (No locks available): let no other process write" in caplog.text
    caplog.clear()
    monkeypatch.setitem(sys.modules, "fcntl", None)
    Lines(path, "a,b").close()
    assert "is not locked (this system has no flock)" in caplog.text
