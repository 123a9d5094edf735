"""A folder of packages, under full disks, second writers and kills."""

import os
import random
import resource
import signal
import time

import pytest

from stepcache.errors import InvalidSetting
from stepcache.packages import folder as folders
from stepcache.packages.folder import Writer, damage, read_manifest
from stepcache.packages.manifest import NAME, Entry, Unreadable

MAKER = {"torch": "2"}


def entry(number, sha256="", nbytes=0):
    graph = {"branch": number, "joins": []}
    return Entry(
        f"full graph {number}", "full", "m", graph, {"a": 1}, [], f"{number}-{sha256[:12]}.pt2", sha256, nbytes
    )


def add(writer, number, contents):
    with writer.place() as path:
        path.write_bytes(contents)
        return writer.add(path, lambda sha256, nbytes: entry(number, sha256, nbytes), {"class": "A"})


def contents_of(folder):
    """What the manifest promises; every package is whole."""
    manifest = read_manifest(folder)
    assert [damage(folder, each) for each in manifest.packages] == [""] * len(manifest.packages)
    return {each.graph["branch"]: (folder / each.file).read_bytes() for each in manifest.packages}


def names(folder):
    return sorted(path.suffix for path in folder.iterdir() if path.name != ".lock")


def test_packages_are_added_and_replaced(tmp_path):
    writer = Writer(tmp_path / "new" / "folder", MAKER)
    add(writer, 0, b"zero")
    added = add(writer, 1, b"one")
    assert contents_of(writer.folder) == {0: b"zero", 1: b"one"}
    assert writer.sound(added.key) == added and writer.sound(entry(2).key) is None
    add(writer, 1, b"another")
    assert contents_of(writer.folder) == {0: b"zero", 1: b"another"}
    assert ".part" not in names(writer.folder)


def test_another_python_is_the_same_maker(tmp_path, caplog):
    add(Writer(tmp_path, {**MAKER, "python": "3.11.1"}), 0, b"zero")
    add(Writer(tmp_path, {**MAKER, "python": "3.11.2"}), 1, b"one")
    assert set(contents_of(tmp_path)) == {0, 1} and not caplog.records


def test_other_makers_packages_are_replaced_with_a_word(tmp_path, caplog):
    add(Writer(tmp_path, {"torch": "1"}), 0, b"zero")
    assert not caplog.records
    add(Writer(tmp_path, MAKER), 1, b"one")
    assert "are replaced" in caplog.text
    assert contents_of(tmp_path) == {1: b"one"} and read_manifest(tmp_path).maker == MAKER


@pytest.mark.parametrize("text", ["", "{", "not one of ours"])
def test_a_damaged_manifest_is_replaced(tmp_path, text):
    (tmp_path / NAME).write_text(text)
    add(Writer(tmp_path, MAKER), 0, b"zero")
    assert contents_of(tmp_path) == {0: b"zero"}


def test_damage_is_named(tmp_path):
    writer = Writer(tmp_path, MAKER)
    added = add(writer, 0, b"0123456789")
    path = tmp_path / added.file
    for end in range(10):
        path.write_bytes(b"0123456789"[:end])
        assert f"{end} bytes instead of 10" in damage(tmp_path, added) and writer.sound(added.key) is None
    path.write_bytes(b"012345678X")
    assert "SHA-256" in damage(tmp_path, added)
    path.unlink()
    assert "No such file" in damage(tmp_path, added)
    path.mkdir()
    assert "Is a directory" in damage(tmp_path, added)


@pytest.mark.parametrize(
    ("prepare", "word"),
    [
        (lambda path: None, "is missing"),
        (lambda path: path.write_text("a file of before 0.2"), "is not a folder"),
        (lambda path: path.mkdir(), "manifest.json cannot be read: No such file"),
        (lambda path: (path.mkdir(), (path / NAME).write_bytes(b"\xff")), "line 1: not UTF-8"),
        (lambda path: (path.mkdir(), (path / NAME).write_text("{")), "manifest.json: it is not JSON"),
    ],
    ids=["missing", "file", "empty", "not UTF-8", "not JSON"],
)
def test_why_a_folder_cannot_be_read(tmp_path, prepare, word):
    prepare(tmp_path / "packages")
    with pytest.raises(Unreadable, match=word):
        read_manifest(tmp_path / "packages")


def test_a_path_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InvalidSetting, match="file"):
        Writer(tmp_path / "file", MAKER)


def test_nobody_else_may_write_what_a_writer_makes(tmp_path):
    """Under a umask that lets groups write."""
    before = os.umask(0o002)
    try:
        writer = Writer(tmp_path / "new", MAKER)
        add(writer, 0, b"zero")
    finally:
        os.umask(before)
    paths = [writer.folder, *(path for path in writer.folder.iterdir() if path.name != ".lock")]
    assert len(paths) == 3 and not any(path.stat().st_mode & 0o022 for path in paths)


@pytest.mark.parametrize("name", [".", NAME])
def test_a_folder_that_others_may_write_is_refused_before_anything_is_compiled(tmp_path, name):
    add(Writer(tmp_path, MAKER), 0, b"zero")
    (tmp_path / name).chmod(0o775)
    with pytest.raises(InvalidSetting, match=r"would be refused: .* may be written by its group: run `chmod g-w"):
        Writer(tmp_path, MAKER)
    assert contents_of(tmp_path) == {0: b"zero"}


def forked(work):
    """The process id of a child that does `work`."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


def test_on_a_full_disk_the_old_packages_stay(tmp_path):
    writer = Writer(tmp_path, MAKER)
    add(writer, 0, b"zero")

    def fill():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        try:
            add(writer, 1, b"one")  # the manifest does not fit
        except InvalidSetting as error:
            (tmp_path / "said").write_text(str(error)[:90])

    os.waitpid(forked(fill), 0)
    assert "cannot be written" in (tmp_path / "said").read_text()
    assert contents_of(tmp_path) == {0: b"zero"}
    assert ".part" not in names(tmp_path)


def test_two_writers_lose_nothing(tmp_path):
    def write(numbers):
        writer = Writer(tmp_path, MAKER)
        for number in numbers:
            add(writer, number, bytes([number]) * 1000)

    children = [forked(lambda start=start: write(range(start, start + 12))) for start in (0, 6, 50)]
    for child in children:
        os.waitpid(child, 0)
    assert set(contents_of(tmp_path)) == {*range(18), *range(50, 62)}


def test_a_kill_at_any_moment_leaves_whole_packages(tmp_path):
    chance = random.Random(0)

    def write():
        writer = Writer(tmp_path, MAKER)
        for number in range(100000):
            add(writer, number % 3, bytes([number % 256]) * 100000)

    add(Writer(tmp_path, MAKER), 0, b"zero")
    for _ in range(25):
        child = forked(write)
        time.sleep(chance.uniform(0.005, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert contents_of(tmp_path)
    assert set(contents_of(tmp_path)) == {0, 1, 2}


def test_what_killed_writers_left_is_removed_after_a_while(tmp_path):
    writer = Writer(tmp_path, MAKER)
    left = [
        tmp_path / f"{'a' * 16}.part.pt2", tmp_path / f".{NAME}.{'a' * 16}.part",
        tmp_path / f"full-2x4x16x16-{'0' * 12}.pt2",
    ]  # fmt: skip
    users = [tmp_path / "my_model.pt2", tmp_path / "notes.part", tmp_path / "full.pt2"]
    for path in (*left, *users):
        path.touch()
    add(writer, 0, b"zero")
    assert all(path.exists() for path in left)  # their writers may still be at work
    before = time.time() - folders._FORSAKEN - 1
    for path in (*left, *users):
        os.utime(path, (before, before))
    add(writer, 1, b"one")
    assert not any(path.exists() for path in left) and all(path.exists() for path in users)
    assert contents_of(tmp_path) == {0: b"zero", 1: b"one"}
