"""Commands whose stdout or stderr nobody reads any more, or takes nothing more."""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.signalled import COMMAND, stand_in

from stepcache import cli
from stepcache.commands import inspect, streams


@contextmanager
def unread():
    """The end of a pipe to write to, whose reader has gone."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


SAYS_MUCH = """
print("x" * 100_000)
print("more", flush=True)
import logging
from stepcache.progress import progress
with progress("working", 3, "runs") as bar:
    for _ in range(3):
        bar.update()
logging.getLogger("stepcache").warning("slow")
open({path!r}, "w").close()
"""


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_the_work_goes_on_when_a_reader_has_gone(name, tmp_path):
    with unread() as write:
        status, output, errors = stand_in(SAYS_MUCH.format(path=str(tmp_path / "done")), **{name: write}).ended()
    assert status == 0 and (tmp_path / "done").exists()
    if name == "stdout":
        assert "3/3 runs" in errors and errors.endswith("stepcache: slow\n") and "Error" not in errors
    else:
        assert output == "x" * 100_000 + "\nmore\n"


def test_a_failure_keeps_its_status_when_a_reader_has_gone():
    work = "print('x')\nfrom stepcache.errors import StepCacheError\nraise StepCacheError('too bad')"
    with unread() as write:
        assert stand_in(work, stdout=write).ended() == (2, None, "stepcache: too bad\n")
        assert stand_in(work, stderr=write).ended() == (2, "x\n", None)


def test_help_that_nobody_reads():
    with unread() as write:
        done = subprocess.run([*COMMAND, "--help"], stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_fails_the_output_once_and_never_the_progress(tmp_path):
    with open("/dev/full", "w") as full:
        for end in ("", "\n"):
            status, _, errors = stand_in(f"print('x', end={end!r})", stdout=full).ended()
            assert (status, errors) == (2, "stepcache: [Errno 28] No space left on device\n")
        assert stand_in(SAYS_MUCH.format(path=str(tmp_path / "done")), stderr=full).ended()[0] == 0
    assert (tmp_path / "done").exists()


def test_streams_that_are_closed_from_the_start():
    process = stand_in("print('x')", stdout=None, preexec_fn=lambda: os.close(1))
    assert process.ended() == (0, None, "")
    work = "from stepcache.errors import StepCacheError\nraise StepCacheError('too bad')"
    process = stand_in(work, stderr=None, preexec_fn=lambda: os.close(2))
    assert process.ended() == (2, "", None)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_streams_are_otherwise_as_python_makes_them(unbuffered):
    work = (
        "ways = ('encoding', 'errors', 'line_buffering', 'write_through')\n"
        "pairs = ((sys.stdout, sys.__stdout__), (sys.stderr, sys.__stderr__))\n"
        "print([getattr(new, way) == getattr(old, way) for new, old in pairs for way in ways])\n"
        "print('é\\udc80', end='')\n"
        "os.write(1, b'|')\n"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1:replace", "PYTHONUNBUFFERED": unbuffered}
    process = stand_in(work, env=environment, encoding="latin-1")
    status, output, _ = process.ended()
    same = f"{[True] * 8}\n"
    assert (status, output) == (0, f"{same}é?|" if unbuffered else f"|{same}é?")


def test_a_caller_keeps_its_streams(monkeypatch, capfd):
    def run(args):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(inspect, "run", run)
    before = sys.stdout, sys.stderr, os.fstat(1).st_ino, len(os.listdir("/proc/self/fd"))
    assert cli.main(["inspect", "sd15"]) == 2
    assert (sys.stdout, sys.stderr, os.fstat(1).st_ino, len(os.listdir("/proc/self/fd"))) == before
    assert capfd.readouterr().err == "stepcache: [Errno 32] Broken pipe\n"


def test_what_somebody_else_has_put_there_stays(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", own := object())
    streams.outlast_readers()
    assert sys.stdout is None and sys.stderr is own
