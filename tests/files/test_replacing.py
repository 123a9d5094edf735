"""Files that are written in one piece."""

import os
import subprocess
import sys
import threading

import pytest
from support.disks import full_disk

from stepcache.files.replacing import check_replaceable, replacing, write_bytes, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_and_replaced(tmp_path):
    path = tmp_path / "a.json"
    write_text(path, "caf\u00e9")
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new" and names(tmp_path) == ["a.json"]


def test_an_error_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), replacing(path) as file:
            file.write(b"new")
            raise error
    assert path.read_text() == "old" and names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("old", [None, "old"])
def test_a_full_disk_leaves_the_old_file(tmp_path, old):
    path = tmp_path / "a.json"
    if old:
        path.write_text(old)
    with full_disk(1000), pytest.raises(OSError, match=r"File too large: '.*a\.json'"):
        write_bytes(path, b"x" * 3000)
    assert names(tmp_path) == (["a.json"] if old else [])
    assert not old or path.read_text() == old


def test_permissions_stay(tmp_path):
    path = tmp_path / "a.json"
    write_text(path, "x")
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    path.chmod(0o640)
    write_text(path, "y")
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_symlink_is_followed(tmp_path):
    target, link = tmp_path / "there" / "a.json", tmp_path / "link.json"
    target.parent.mkdir()
    link.symlink_to(target)
    check_replaceable(link)
    assert not target.exists()
    for text in ("first", "second"):  # a dangling link, and one to a file
        write_text(link, text)
        assert link.is_symlink() and target.read_text() == text
    assert names(target.parent) == ["a.json"]


def test_a_pipe_is_written_to(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    found = []
    reader = threading.Thread(target=lambda: found.append(path.read_bytes()))
    reader.start()
    write_text(path, "x")
    reader.join(10)
    assert found == [b"x"] and path.is_fifo()


def missing(path):
    return path / "no" / "a.json", "No such file or directory"


def folder(path):
    return path, "Is a directory"


def loop(path):
    (path / "loop").symlink_to("loop")
    return path / "loop", "Too many levels of symbolic links"


def below_a_file(path):
    (path / "file").touch()
    return path / "file" / "a.json", "Not a directory"


def too_long(path):
    return path / ("x" * 300), "File name too long"


def read_only(path):
    return type(path)("/proc/version"), "Permission denied|Read-only|Operation not permitted|No such file"


@pytest.mark.parametrize("case", [missing, folder, loop, below_a_file, too_long, read_only])
def test_what_cannot_be_written_is_said_before_and_then(tmp_path, case):
    path, reason = case(tmp_path)
    before = names(tmp_path)
    for do in (check_replaceable, lambda path: write_text(path, "x")):
        with pytest.raises(OSError, match=reason) as caught:
            do(path)
        assert caught.value.filename == str(path)
    assert names(tmp_path) == before


def test_a_long_name(tmp_path):
    path = tmp_path / ("\U0001f600" * 60 + ".json")  # 245 of at most 255 bytes
    check_replaceable(path)
    write_text(path, "x")
    assert path.read_text() == "x"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anything")
def test_a_file_that_is_read_only_is_not_replaced(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    path.chmod(0o444)
    for do in (check_replaceable, lambda path: write_text(path, "x")):
        with pytest.raises(PermissionError):
            do(path)
    assert path.read_text() == "old"


WRITER = """
import sys
from pathlib import Path
from stepcache.files.replacing import write_text
while True:
    write_text(Path(sys.argv[1]), sys.argv[2] * 200_000)
"""


def test_two_writers_and_kills_leave_a_whole_file(tmp_path):
    """A reader never sees anything else. The writers are killed at random moments."""
    path = tmp_path / "a.json"
    whole = {letter * 200_000 for letter in "ab"}
    seen = set()
    for _ in range(3):
        writers = [subprocess.Popen([sys.executable, "-c", WRITER, path, letter]) for letter in "ab"]
        try:
            while not path.exists() or len(seen) < 2:
                seen |= {path.read_text()} if path.exists() else set()
            seen |= {path.read_text() for _ in range(200)}
        finally:
            for writer in writers:
                writer.kill()
                writer.wait()
        seen.add(path.read_text())
    assert seen == whole
