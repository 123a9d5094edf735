"""Real work that gets signals: what is done is kept and whole."""

import csv
import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
from support.signalled import COMMAND, Process

from stepcache.packages.folder import read_manifest
from stepcache.packages.manifest import Unreadable

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")]
SIGNALS = [
    ([signal.SIGINT], 130, "interrupted"),
    ([signal.SIGTERM], 143, "terminated"),
    ([signal.SIGHUP], 129, "hung up"),
    ([signal.SIGINT, signal.SIGINT], 130, "interrupted"),
    ([signal.SIGTERM, signal.SIGINT], 143, "terminated"),
]


def signalled(folder, arguments, sent, begun):
    """(status, last line of stderr) of a command that gets signals, 50 ms apart, once stderr matches `begun`."""
    errors = folder / "errors"
    with errors.open("w") as file:
        process = Process([*COMMAND, *arguments], cwd=folder, stderr=file)
    deadline = time.monotonic() + 120
    while not re.search(begun, errors.read_text(errors="replace")):
        assert process.popen.poll() is None and time.monotonic() < deadline, errors.read_text()
        time.sleep(0.02)
    for number in sent:
        process.send(number)
        time.sleep(0.05)
    status, output, _ = process.ended()
    text = errors.read_text()
    assert "Traceback" not in text + output and text.count("stepcache: ") == 1
    assert [name for name in os.listdir(folder) if name.endswith(".part")] == []
    last = text.rstrip("\n").splitlines()[-1]
    return status, last


def expected(status, sent):
    """Of two signals, the second may come when Python has taken its handlers off."""
    return (status,) if len(sent) == 1 else (status, -sent[1])


@pytest.mark.parametrize(("sent", "status", "word"), SIGNALS)
def test_compare_writes_whole_prompts(sent, status, word, tmp_path):
    arguments = ["compare", "demo", "--steps", "2", "--interval", "2", "--drift", "0"]
    got, line = signalled(tmp_path, arguments, sent, r"\b([6-9]|[1-4]\d)/\d+ images")
    assert got in expected(status, sent) and line.startswith(f"stepcache: {word}")
    page, sheet = tmp_path / "stepcache-compare.html", tmp_path / "stepcache-compare.png"
    if len(sent) == 1:
        assert re.fullmatch(rf"stepcache: {word}; the page has \d+ of 12 prompts", line) and sheet.exists()
    assert not page.exists() or page.read_text().rstrip().endswith("</html>")


@pytest.mark.parametrize(("sent", "status", "word"), SIGNALS)
def test_bench_keeps_the_repeats_done(sent, status, word, tmp_path):
    arguments = ["bench", "demo", "--device", "cpu", "--steps", "2", "--repeats", "60", "--reuse", "2:1"]
    arguments += ["--variants", "eager,stepcache-eager", "--out", "rows.csv"]
    got, line = signalled(tmp_path, arguments, sent, r"\b(1[2-9]|[2-9]\d)/124 ")
    assert got in expected(status, sent) and line.startswith(f"stepcache: {word}")
    rows = tmp_path / "rows.csv"
    if len(sent) == 1:
        assert line == f"stepcache: {word}; the rows done are in rows.csv" and rows.exists()
    if rows.exists():
        assert rows.read_bytes().endswith(b"\n")
        with rows.open(newline="") as file:
            assert {int(row["repeats"]) > 2 for row in csv.DictReader(file)} == {True}


@pytest.mark.parametrize(("sent", "status", "word"), SIGNALS)
def test_calibrate_keeps_its_journal(sent, status, word, tmp_path):
    arguments = ["calibrate", "demo", "--steps", "4", "--trials", "60", "--out", "plan.json"]
    got, line = signalled(tmp_path, arguments, sent, r"\b([3-9]|[1-4]\d)/60 ")
    assert got in expected(status, sent) and line.startswith(f"stepcache: {word}")
    if len(sent) == 1:
        assert line == f"stepcache: {word}; run the same command to go on from plan.json.trials.jsonl"
    lines = (tmp_path / "plan.json.trials.jsonl").read_text().splitlines()
    assert len(lines) > 2 and all(json.loads(line) for line in lines)
    assert not (tmp_path / "plan.json").exists()


@pytest.mark.parametrize(("sent", "status", "word"), SIGNALS)
def test_compile_ends_its_compilers(sent, status, word, tmp_path):
    arguments = ["compile", "demo", "--device", "cpu", "--out", "packages"]
    got, line = signalled(tmp_path, arguments, sent, "compiling")
    assert got in expected(status, sent) and line.startswith(f"stepcache: {word}")
    for _ in range(300):
        if not processes_of(tmp_path):
            break
        time.sleep(0.1)
    assert processes_of(tmp_path) == []
    try:
        manifest = read_manifest(tmp_path / "packages")
    except Unreadable:
        return
    assert all((tmp_path / "packages" / entry.file).exists() for entry in manifest.packages)


def processes_of(folder):
    """Command lines of processes that work in this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(path / "cwd") == str(folder):
                found.append((path / "cmdline").read_bytes())
        except OSError:
            continue
    return found


@pytest.mark.parametrize("twentieths", range(60))
def test_at_every_moment_of_the_imports(twentieths, tmp_path):
    process = Process([*COMMAND, "compare", "demo", "--drift", "0"], cwd=tmp_path).watching()
    time.sleep(twentieths / 20)
    process.send(signal.SIGINT if twentieths % 2 else signal.SIGTERM)
    status, output, errors = process.ended()
    assert (status, output) in [(130, ""), (143, "")]
    assert errors == f"stepcache: {'interrupted' if status == 130 else 'terminated'}\n"
    assert list(tmp_path.iterdir()) == []
