"""One job at a time in a directory, and nothing of a live worker is removed."""

import errno
import json
import os
import signal
import time

import pytest
from folder import part_of
from support.disks import full_disk
from support.forks import fork, kill, ready, status, wait_for
from workers import HELD, clean, join, leave

from stepcache.errors import InvalidSetting

JOB, OTHER = {"steps": 2, "images": 4}, {"steps": 3, "images": 4}


@pytest.fixture
def out(tmp_path):
    yield tmp_path
    leave(tmp_path)


def part(out, name="000002.png"):
    with part_of(out / name) as path:
        pass
    path.write_bytes(b"half an ima")
    return path


def job(out):
    return json.loads((out / "job.json").read_text())


def test_the_same_job_shares_a_folder_and_another_one_waits(out):
    with ready(lambda: join(out, JOB)), ready(lambda: join(out, JOB)):
        for _ in range(2):
            join(out, JOB)
            with pytest.raises(InvalidSetting, match=r"A job with other .+ \(steps 2, now 3\)\. Wait until it ends"):
                join(out, OTHER)
            assert job(out) == JOB and not HELD
    join(out, OTHER)
    assert job(out) == OTHER
    join(out, OTHER)
    join(out, JOB)  # nobody else is at work
    assert job(out) == JOB


def test_a_killed_worker_holds_nothing(out):
    for name in (JOB, OTHER, JOB):
        child = fork(lambda name=name: (join(out, name), part(out), (out / "joined").touch(), time.sleep(60)))
        wait_for((out / "joined").exists)
        assert len(list(out.glob(".*.part"))) == 1  # the last one's is gone
        (out / "joined").unlink()
        kill(child)
    (out / ".000001.png.host-17.part").touch()  # a name of earlier versions
    part(out, "manifest.jsonl")
    others = [out / name for name in (".x.part", "000003.png", "a.part", ".000003.png")]
    for path in others:
        path.touch()
    join(out, OTHER)
    assert set(out.iterdir()) == {*others, out / "job.json", out / ".job.lock"}


def test_what_a_live_worker_writes_stays(out):
    with ready(lambda: (join(out, JOB), part(out))):
        join(out, JOB)
        clean(out)
        with pytest.raises(InvalidSetting):
            join(out, OTHER)
        assert len(list(out.glob(".*.part"))) == 1
        clean(out)  # not joined
        assert len(list(out.glob(".*.part"))) == 1
        join(out, JOB)
    clean(out)
    assert not list(out.glob(".*.part"))
    # Looking has not let others in.
    assert status(fork(lambda: join(out, OTHER))) == 1
    assert status(fork(lambda: join(out, JOB))) == 0


def test_what_a_worker_forks_holds_nothing(out):
    """Such as a process that loads data, and outlives it."""

    def work():
        join(out, JOB)
        (out / "child").write_text(str(fork(lambda: time.sleep(60))))

    assert status(fork(work)) == 0
    try:
        join(out, OTHER)
    finally:
        os.kill(int((out / "child").read_text()), signal.SIGKILL)


def test_of_two_jobs_that_start_at_once_one_gets_in(out):
    """With three workers each, 5 times."""
    for _ in range(5):
        reading, writing = os.pipe()
        ended_reading, ended_writing = os.pipe()

        def work(name, closed=(writing, ended_writing), begin=reading, end=ended_reading):
            for descriptor in closed:
                os.close(descriptor)
            os.read(begin, 1)  # all begin when the pipe is closed
            try:
                join(out, name)
            except InvalidSetting:
                os._exit(3)
            os.read(end, 1)  # those who got in stay until all have tried

        children = {fork(lambda name=name: work(name)): name["steps"] for name in (JOB, OTHER) * 3}
        os.close(writing)
        refused = {}
        for _ in range(3):
            child, ended = os.wait()
            refused[child] = os.waitstatus_to_exitcode(ended)
        os.close(ended_writing)
        stayed = {child: status(child) for child in children if child not in refused}
        os.close(reading)
        os.close(ended_reading)
        assert set(refused.values()) == {3} and set(stayed.values()) == {0}
        assert {children[child] for child in stayed} == {job(out)["steps"]}


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[]", '{"steps": 9}'])
def test_a_job_that_was_not_written_to_its_end(out, text):
    (out / "job.json").write_text(text)
    join(out, JOB)
    assert job(out) == JOB


def test_a_full_disk_keeps_nobody_out(out):
    with full_disk(5), pytest.raises(OSError):
        join(out, JOB)
    with ready(lambda: join(out, OTHER)):
        pass
    assert job(out) == OTHER


def no_flock(file, how):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


@pytest.mark.parametrize(
    ("attribute", "value", "reason"),
    [("fcntl", None, "this system has no flock"), ("fcntl.flock", no_flock, os.strerror(errno.ENOLCK))],
)
def test_without_locks_a_line_says_so(out, monkeypatch, capsys, attribute, value, reason):
    monkeypatch.setattr(f"workers.{attribute}", value)
    left = part(out)
    for name in (JOB, OTHER):
        join(out, name)
        clean(out)
        assert f"{out} is not locked ({reason}): start no other job in it" in capsys.readouterr().out
    assert left.exists() and not HELD
