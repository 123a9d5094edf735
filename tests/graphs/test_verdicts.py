"""The tables of verdicts: what is kept, what is ignored with a warning, and that several processes lose nothing."""

import multiprocessing
from dataclasses import replace
from importlib.resources import files

import pytest

from stepcache.forwards.join_shape import JoinShape
from stepcache.graphs import verdict_file
from stepcache.graphs.verdict_file import (
    COLUMNS,
    JOINS,
    NotATable,
    Setup,
    Verdict,
    add_to_file,
    cache_folder,
    from_csv,
    to_csv,
)
from stepcache.graphs.verdicts import Verdicts

SETUP = Setup("NVIDIA H100 80GB HBM3", "2.13.0", "3.9.0", "0.1.0")
SHAPE = JoinShape("float16", "channels_last", 2, 640, 320, 640, 32, 64, 64, 0, "default Conv2d shortcut")
FASTER = Verdict(SETUP, SHAPE, 20.0, 31.5)
SLOWER = Verdict(SETUP, SHAPE._replace(height=8, width=8), 9.0, 8.5)
WRONG = Verdict(SETUP, SHAPE._replace(hidden=1280), None, None, "wrong: error 0.5 against 0.1 of the stock operations")
ALL = [FASTER, SLOWER, WRONG]
NONE = ",".join(COLUMNS) + "\n"


def known(folder, setup=SETUP, shipped=NONE):
    return Verdicts(setup, shipped, folder)


def test_a_table_survives_the_file():
    assert sorted(from_csv(to_csv(ALL)), key=lambda v: v.shape) == sorted(ALL, key=lambda v: v.shape)
    assert to_csv(reversed(ALL)) == to_csv(ALL)
    assert from_csv(NONE) == []


def test_who_wins():
    assert FASTER.for_triton and not SLOWER.for_triton and not WRONG.for_triton
    assert not replace(FASTER, inductor_us=20.0).for_triton  # a tie


def test_what_is_measured_is_known_to_the_next_process(tmp_path):
    first = known(tmp_path / "not" / "there yet")
    assert first.for_triton == frozenset() and first.get(SHAPE) is None
    for verdict in ALL:
        first.add(verdict)
    second = known(tmp_path / "not" / "there yet")
    assert second.for_triton == first.for_triton == {SHAPE}
    assert [second.get(v.shape) for v in ALL] == ALL
    second.add(replace(FASTER, triton_us=40.0))  # measured anew
    third = known(tmp_path / "not" / "there yet")
    assert third.for_triton == frozenset() and third.get(SHAPE).triton_us == 40.0
    assert len(third.path.read_text().splitlines()) == 1 + len(ALL)


def test_the_users_own_holds_against_the_shipped_one(tmp_path):
    shipped = to_csv([replace(FASTER, triton_us=99.0), replace(SLOWER, triton_us=1.0)])
    known(tmp_path).add(FASTER)
    assert known(tmp_path, shipped=shipped).for_triton == {SHAPE, SLOWER.shape}
    assert known(tmp_path / "other", shipped=shipped).for_triton == {SLOWER.shape}
    elsewhere = SETUP._replace(gpu="another card")
    assert known(tmp_path / "other", elsewhere, shipped=shipped).for_triton == frozenset()


def test_the_shipped_ones_are_of_these_joins(tmp_path):
    """A release whose joins are as they were, under its own version, uses them; one that changes them measures anew."""
    shipped = from_csv((files("stepcache.kernels") / "defaults.csv").read_text())
    assert shipped and {verdict.setup.stepcache for verdict in shipped} == {JOINS}
    assert Verdicts(shipped[0].setup, folder=tmp_path).get(shipped[0].shape) == shipped[0]


@pytest.mark.parametrize("field", Setup._fields, ids="another {}".format)
def test_another_setups_verdicts_are_not_used_but_kept(tmp_path, caplog, field):
    other = SETUP._replace(**{field: "another"})
    known(tmp_path).add(FASTER)
    caplog.clear()
    here = known(tmp_path, other)
    assert here.for_triton == frozenset()
    # Of another GPU nobody needs to hear; of another version of something on this one, once.
    told = "knows this GPU's joins for other versions only (torch 2.13.0, triton 3.9.0, joins of stepcache 0.1.0)"
    assert (told in caplog.text) == (field != "gpu")
    here.add(replace(FASTER, setup=other))
    assert known(tmp_path).for_triton == known(tmp_path, other).for_triton == {SHAPE}
    caplog.clear()
    known(tmp_path, other)
    assert not caplog.text


BROKEN = {
    "empty": b"",
    "of an earlier version": b"gpu,dtype,hidden,skip,triton_us,inductor_us\n",
    "another program's": b"joins\n1\n",
    "no text": b"\xff\xfe\x00\x80",
    "cut off": to_csv(ALL).encode()[:-60],
    "a cell without end": to_csv(ALL).encode() + b"x" * 200_000 + b"\n",
    "no number": to_csv(ALL).replace("640", "many").encode(),
    "no time": to_csv([replace(FASTER, triton_us=None)]).encode(),
    "negative time": to_csv([replace(FASTER, triton_us=-1.0)]).encode(),
    "not a time": to_csv([replace(FASTER, triton_us=float("nan"))]).encode(),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file_is_named_and_then_as_if_it_were_not_there(tmp_path, caplog, what):
    (tmp_path / "joins.csv").write_bytes(BROKEN[what])
    here = known(tmp_path)
    assert str(tmp_path / "joins.csv") in caplog.text and "verdicts are ignored" in caplog.text
    assert here.for_triton == frozenset()
    here.add(FASTER)
    caplog.clear()
    assert known(tmp_path).for_triton == {SHAPE} and not caplog.text


def test_what_is_wrong_with_a_table_is_said():
    with pytest.raises(NotATable, match="its first line is 'a,b'"):
        from_csv("a,b\n")
    with pytest.raises(NotATable, match="line 3: invalid literal"):
        from_csv(to_csv([SLOWER]) + to_csv([replace(FASTER, shape=SHAPE._replace(width="wide"))]).splitlines()[1])


def test_a_folder_that_cannot_be_written_to(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    here = known(tmp_path / "file" / "folder")
    caplog.clear()
    here.add(FASTER)
    assert "cannot be written" in caplog.text and "STEPCACHE_CACHE" in caplog.text
    assert here.for_triton == {SHAPE}  # for this process


def test_where_the_disk_is_full_the_old_file_stays(tmp_path, caplog, monkeypatch):
    known(tmp_path).add(FASTER)
    before = (tmp_path / "joins.csv").read_text()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(verdict_file.os, "fsync", full)
    known(tmp_path).add(SLOWER)
    assert "No space left on device" in caplog.text
    assert (tmp_path / "joins.csv").read_text() == before
    assert {path.name for path in tmp_path.iterdir()} <= {"joins.csv", "joins.csv.lock"}


def add_forty(path, batch, all_ready):
    all_ready.wait()
    for height in range(40):
        add_to_file(path, [replace(FASTER, shape=SHAPE._replace(batch=batch, height=height))])


def test_several_processes_lose_nothing(tmp_path):
    path, fork = tmp_path / "joins.csv", multiprocessing.get_context("fork")  # which need not import torch again
    all_ready = fork.Barrier(3, timeout=60)
    processes = [fork.Process(target=add_forty, args=(path, batch, all_ready)) for batch in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(from_csv(path.read_text())) == 120


def test_a_table_that_is_given_is_added_to(tmp_path):
    add_to_file(tmp_path / "defaults.csv", [FASTER])
    add_to_file(tmp_path / "defaults.csv", [SLOWER])
    assert from_csv((tmp_path / "defaults.csv").read_text()) == [SLOWER, FASTER]


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("STEPCACHE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "stepcache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "stepcache"
    monkeypatch.setenv("STEPCACHE_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own" and known(None).path == tmp_path / "own" / "joins.csv"


def test_the_shipped_table_is_one(tmp_path):
    Verdicts(SETUP, folder=tmp_path)
