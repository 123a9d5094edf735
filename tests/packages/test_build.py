"""Packages made side by side: what is missing, and nothing twice; with a stand-in for the compiler's process."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from support.small import ONE_LEVEL, loop_pipe

from stepcache import accelerate
from stepcache.errors import GraphCompileError, InvalidSetting
from stepcache.packages import build as builds
from stepcache.packages.build import build
from stepcache.packages.folder import Writer, damage, read_manifest
from stepcache.packages.maker import maker_of
from stepcache.run.attach import attachment_of
from stepcache.run.packaging import jobs_of

# argv: job, package. Writes a line to the log beside the package's folder, then the package.
COMPILER = """
import json, os, re, sys, time
with open(sys.argv[1], "rb") as file:
    what = re.search(rb"(full|partial) graph [0-9x]+", file.read()).group().decode()  # unpickling imports torch
with open({log!r}, "a") as log:
    log.write(json.dumps([what, time.time(), os.environ["TORCHINDUCTOR_COMPILE_THREADS"]]) + "\\n")
{work}
with open(sys.argv[2], "wb") as file:
    file.write(what.encode())
"""


@pytest.fixture(scope="module")
def jobs():
    made = accelerate(loop_pipe("least", **ONE_LEVEL), 2, compile=False)
    made(2), made(2, batch=3)
    return list(jobs_of(made, attachment_of(made)).made.values())


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    def use(work=""):
        script = COMPILER.format(log=str(tmp_path / "log"), work=work)
        monkeypatch.setattr(builds, "COMMAND", (sys.executable, "-c", script))

    use()
    return use


def log_of(tmp_path):
    path = tmp_path / "log"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def writer_of(tmp_path):
    return Writer(tmp_path / "packages", maker_of(torch.device("cpu")))


class Told:
    """Collects what `build` tells."""

    def __init__(self):
        self.lines = []

    def __call__(self, text, done, total):
        self.lines.append((text, done, total))


def test_each_is_made_once_and_kept(jobs, compiler, tmp_path):
    assert [job.entry.what for job in jobs] == [
        "full graph 2x4x16x16", "partial graph 2x4x16x16", "full graph 3x4x16x16", "partial graph 3x4x16x16",
    ]  # fmt: skip
    told = Told()
    entries = build(jobs[:3], writer_of(tmp_path), told, side_by_side=2)
    assert [entry.what for entry in entries] == [job.entry.what for job in jobs[:3]]
    assert told.lines[0] == ("compiling", 0, 3) and [line[1] for line in told.lines] == [0, 1, 2, 3]
    assert all("graph" in text and text.endswith(" s)") for text, _, _ in told.lines[1:])
    folder = tmp_path / "packages"
    assert all((folder / entry.file).read_bytes() == entry.what.encode() for entry in entries)
    assert all(not damage(folder, entry) and entry.seconds >= 0 for entry in entries)
    assert entries[0].file.startswith("full-2x4x16x16-")
    again = build(jobs, writer_of(tmp_path), told, side_by_side=2)
    assert [again[i] for i in range(3)] == entries and told.lines[-2] == ("compiling", 3, 4)
    assert sorted(what for what, _, _ in log_of(tmp_path)) == sorted(job.entry.what for job in jobs)
    (folder / entries[0].file).write_bytes(b"half")
    build(jobs, writer_of(tmp_path), told)
    assert log_of(tmp_path)[-1][0] == entries[0].what and len(log_of(tmp_path)) == 5
    assert told.lines[-1][1:] == (4, 4)
    build(jobs, writer_of(tmp_path), told)
    assert told.lines[-1] == ("all there", 4, 4) and len(log_of(tmp_path)) == 5


def test_side_by_side_they_share_the_cores(jobs, compiler, tmp_path, monkeypatch):
    monkeypatch.setattr(builds, "_cores", lambda: 6)
    monkeypatch.setattr(builds, "_free_bytes", lambda: 3 * builds.BYTES_PER_COMPILER)
    monkeypatch.delenv("TORCHINDUCTOR_COMPILE_THREADS", raising=False)
    assert builds._side_by_side() == 3
    compiler("time.sleep(0.3)")
    build(jobs[:3], writer_of(tmp_path), Told())
    times = [when for _, when, _ in log_of(tmp_path)]
    assert [threads for _, _, threads in log_of(tmp_path)] == ["2"] * 3
    assert max(times) - min(times) < 20  # none waited for another to end
    monkeypatch.setattr(builds, "_free_bytes", lambda: 0)
    assert builds._side_by_side() == 1
    assert builds._environment({"OMP_NUM_THREADS": "4"}, 2)["OMP_NUM_THREADS"] == "4"


def test_a_compiler_that_fails_is_quoted_and_the_others_are_kept(jobs, compiler, tmp_path):
    compiler("if 'partial' in what: print('the reason'); sys.exit(3)")
    with pytest.raises(GraphCompileError, match=r"partial graph 2x4x16x16 .* status 3\.\nthe reason"):
        build(jobs[:2], writer_of(tmp_path), Told(), side_by_side=2)
    assert [entry.program for entry in read_manifest(tmp_path / "packages").packages] == ["full"]
    compiler("os.kill(os.getpid(), 9)")
    with pytest.raises(GraphCompileError, match="status -9"):
        build(jobs[:2], writer_of(tmp_path), Told(), side_by_side=1)
    compiler()
    assert len(build(jobs[:2], writer_of(tmp_path), Told())) == 2


def test_a_compiler_that_writes_nothing_has_failed(jobs, compiler, tmp_path):
    compiler("sys.exit(0)")
    with pytest.raises(GraphCompileError, match="status 0"):
        build(jobs[:1], writer_of(tmp_path), Told())


def test_interrupted_it_stops_at_once_and_keeps_what_is_done(jobs, compiler, tmp_path):
    compiler("if 'full' not in what: time.sleep(100)")

    def interrupt():
        while not (tmp_path / "packages" / "manifest.json").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        build(jobs[:2], writer_of(tmp_path), Told(), side_by_side=2)
    thread.join()
    assert time.perf_counter() - start < 60
    assert [entry.program for entry in read_manifest(tmp_path / "packages").packages] == ["full"]
    assert not [*(tmp_path / "packages").glob("*.part*")]


def test_interrupted_while_it_starts_compilers_it_stops_them(jobs, compiler, tmp_path, monkeypatch):
    compiler("time.sleep(100)")
    submit = builds.ThreadPoolExecutor.submit

    def first_only(pool, *args):
        submit(pool, *args)
        while not log_of(tmp_path):
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(builds.ThreadPoolExecutor, "submit", first_only)
    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        build(jobs[:2], writer_of(tmp_path), Told(), side_by_side=2)
    assert time.perf_counter() - start < 60


def test_a_folder_that_cannot_be_written(jobs, compiler, tmp_path):
    compiler("import shutil; shutil.rmtree(os.path.dirname(sys.argv[2]))")
    with pytest.raises((InvalidSetting, GraphCompileError)):
        build(jobs[:1], writer_of(tmp_path), Told())


def test_compilers_end_with_the_process_that_started_them(tmp_path):
    """Killed, it cannot stop them itself."""
    child = "import sys; from stepcache.packages.__main__ import end_with; end_with(int(sys.argv[1]))"
    parent = (
        "import os, subprocess, sys\n"
        f"command = [sys.executable, '-c', {child!r}, str(os.getpid())]\n"
        "child = subprocess.Popen(command, start_new_session=True)\n"
        "print(child.pid, flush=True)\n"
        "child.wait()"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    pid = int(process.stdout.readline())
    time.sleep(1)
    assert process.poll() is None
    process.kill()
    process.wait()
    for _ in range(300):
        status = Path(f"/proc/{pid}/status")
        if not status.exists() or "zombie" in status.read_text():
            break
        time.sleep(0.1)
    else:
        raise AssertionError("it goes on")
