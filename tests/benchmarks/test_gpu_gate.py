"""The GPU gate: its dry run, continued runs, and a checkout that is not installed."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from benchmarks import ROOT, gpu_gate
from benchmarks.engine.profile_steps import Row as ProfileRow
from benchmarks.gate import cells as gate_cells
from benchmarks.gate import checkout as gate_checkout
from benchmarks.gate import jobs as gate_jobs
from benchmarks.gate import plan as gate_plan
from benchmarks.gate.jobs import Outcome, read_outcomes, write_outcomes
from stepcache.bench.commit import commit_of
from stepcache.bench.rows import read
from stepcache.bench.schema import BenchRow


def gate(*options):
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_gate.py"), *map(str, options)]
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}  # a dry run is of a machine without a GPU
    return subprocess.run(command, capture_output=True, text=True, env=hidden)


@pytest.mark.slow
def test_the_dry_run_does_everything_in_small_and_red_tests_hold_up_no_figures(tmp_path, capsys):
    red, green, out = tmp_path / "test_red.py", tmp_path / "test_fine.py", tmp_path / "out"
    green.write_text("def test_fine(): pass\n")
    red.write_text("def test_fine(): pass\ndef test_wrong(): assert 1 == 2, 'so wrong'\n")
    done = gate("--dry-run", "--out", out, "--tests", red)  # DRY_TESTS are in this suite anyway
    assert all((ROOT / name).is_file() for name in gate_plan.DRY_TESTS)
    assert done.returncode == 1, done.stdout + done.stderr
    outcomes = read_outcomes(out / "gate.csv")
    assert [(o.job, o.status) for o in outcomes] == [
        (job.name, "failed" if job.name == "core tests" else "done") for job in gate_plan.dry_jobs(tmp_path, tmp_path)
    ]
    assert {o.commit for o in outcomes} == {commit_of(ROOT)}
    rows = read(out / gate_cells.FILE, BenchRow)
    assert [row.variant for row in rows] == ["eager", "DeepCache 0.1.1", "stepcache eager"]
    assert all(row.status == "ok" and row.pipeline_s > 0 for row in rows)
    profile = read(out / "profile_steps.csv", ProfileRow)
    assert [(row.variant, row.kind) for row in profile] == [("eager", "full"), ("eager", "partial")]
    log = (out / "gate.log").read_text()
    assert "passed" in log and log.count("21 joins agree") == 2
    assert "demo 64 b1  stepcache eager (3, 0)" in done.stdout and "A dry run: no GPU" in done.stdout
    # What is red is named first and last.
    before, _, after = done.stdout.partition("demo 64 b1  eager")
    assert "RED core tests: FAILED" in before and "so wrong" in before and "test_red.py::test_wrong" in before
    assert "RED TESTS: core tests. `make tables` leaves out this commit's GPU figures" in after

    options = ["--dry-run", "--out", str(tmp_path / "green"), "--tests", str(green), "--only", "core tests"]
    assert gpu_gate.main(options) == 0
    printed = capsys.readouterr().out
    assert "All 1 jobs done" in printed and "RED" not in printed


def test_without_a_test_that_passed_the_tests_are_red(tmp_path, capsys):
    path = tmp_path / "test_skipped.py"
    path.write_text("import pytest\n@pytest.mark.skip\ndef test_a(): pass\n")
    options = ["--dry-run", "--out", str(tmp_path / "out"), "--tests", str(path), "--only", "core tests"]
    assert gpu_gate.main(options) == 1 and "RED core tests: No test passed." in capsys.readouterr().out


def test_a_run_is_continued(tmp_path, capsys):
    (tmp_path / "earlier").mkdir()
    commit = commit_of(ROOT)
    write_outcomes(
        tmp_path / "earlier" / "gate.csv",
        [
            Outcome("core tests", "done", 1.0, "", commit),
            Outcome("profile", "cut short", 2.0, "It was ended after 2 s.", commit),
        ],
    )
    options = ["--dry-run", "--out", str(tmp_path / "out"), "--continue", str(tmp_path / "earlier")]
    assert gpu_gate.main([*options, "--only", "core tests", "profile", "--minutes", "0.2"]) == 2
    outcomes = {o.job: o for o in read_outcomes(tmp_path / "out" / "gate.csv")}
    assert outcomes["core tests"].seconds == 1.0
    assert outcomes["profile"].status == "not begun"  # 0.2 minutes are too little for it
    assert "Missing: profile." in capsys.readouterr().out
    with pytest.raises(SystemExit, match="nothing to continue"):
        gpu_gate.main([*options[:3], "--continue", str(tmp_path)])


def test_another_commits_run_is_not_continued_but_kept(tmp_path):
    theirs = Outcome("core tests", "failed", 1.0, "why", "0123456789ab")
    write_outcomes(tmp_path / "gate.csv", [theirs])
    with pytest.raises(SystemExit, match=r"it is of commit 0123456789ab, and this is fedcba987654\."):
        gpu_gate.take_over(tmp_path, tmp_path, "fedcba987654")
    mine = Outcome("core tests", "done", 1.0, "", "fedcba987654")
    write_outcomes(tmp_path / "gate.csv", [mine])
    assert read_outcomes(tmp_path / "gate.csv") == [theirs, mine]
    assert gpu_gate.take_over(tmp_path, tmp_path, "fedcba987654-dirty") == [mine]  # because of its results


def test_an_unknown_job_is_named(tmp_path):
    with pytest.raises(SystemExit, match="no job sd99"):
        gpu_gate.main(["--list", "--only", "sd99"])


# A bare checkout.


def bare(code, environment):
    """Run code with -S: without .pth files and the editable install's finder, as on a machine without them."""
    environment["PYTHONPATH"] += os.pathsep + str(Path(torch.__file__).parents[1])  # where packages are installed
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_checkout_is_importable_without_being_installed(tmp_path):
    code = "import stepcache.kernels.dual_conv1x1, stepcache.bench.commit as c; print(stepcache.__file__, c.CHECKOUT)"
    where, root = bare(code, gate_checkout.environment(tmp_path, None))
    assert where == str(tmp_path / "checkout" / "stepcache" / "__init__.py")
    assert root == str(ROOT)


def test_the_rooms_are_those_of_the_package():
    tomllib = pytest.importorskip("tomllib")
    mapped = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    rooms = {f"stepcache.{name}": folder for name, folder in gate_checkout.ROOMS.items()}
    assert mapped == {"stepcache": "src/stepcache", **rooms}


def test_wheels_beside_the_checkout_are_found(tmp_path):
    wheels = tmp_path / "given"
    wheels.mkdir()
    with pytest.raises(FileNotFoundError, match="no wheels in"):
        gate_checkout.environment(tmp_path / "a", wheels)
    with zipfile.ZipFile(wheels / "carried-1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried/__init__.py", "answer = 42")
        wheel.writestr("carried-1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: carried\nVersion: 1.2\n")
    code = "import carried; from importlib.metadata import version; print(carried.answer, version('carried'))"
    assert bare(code, gate_checkout.environment(tmp_path / "b", wheels)) == ["42", "1.2"]
    (wheels / "broken-1-py3-none-any.whl").write_text("not a zip")
    with pytest.raises(ValueError, match=r"broken-1-py3-none-any\.whl is not a wheel"):
        gate_checkout.environment(tmp_path / "c", wheels)


def test_what_cannot_be_imported_is_named(monkeypatch):
    monkeypatch.setattr(gpu_gate, "NEEDED", ("torch", "no_such_package"))
    with pytest.raises(SystemExit, match=r"No module named 'no_such_package'\. Install it, or put it into wheels/"):
        gpu_gate.report_environment(dry=True)


def test_without_the_rival_or_tests_packages_the_rest_goes_on(monkeypatch, capsys):
    monkeypatch.setattr(gpu_gate, "WANTED", {"no_such_rival": "the rival", "torch": "all"})
    gpu_gate.report_environment(dry=True)
    (note,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(gate_jobs.NOTE)]
    assert "without the rival" in note and "no_such_rival" in note


def test_without_a_gpu_only_a_dry_run_goes_on(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    gpu_gate.report_environment(dry=True)
    assert f"stepcache from {Path(ROOT, 'src', 'stepcache')}" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="sees no CUDA GPU"):
        gpu_gate.report_environment(dry=False)


def test_joins_are_measured_as_the_command_does(monkeypatch):
    asked = []
    monkeypatch.setattr("stepcache.cli.main", lambda argv: asked.append(argv) or 2)
    assert gpu_gate.main(["--tune", "sdxl"]) == 2
    assert asked == [["tune", "sdxl", "--size", "1024"]]
