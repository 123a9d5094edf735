"""The gate for a GPU: its dry run, its jobs under a clock, and what a bare checkout needs."""

import itertools
import os
import signal
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import gate_cells
import gate_checkout
import gate_jobs
import gate_plan
import gpu_gate
import pytest
from gate_jobs import Job, Outcome, Runner, read_outcomes, write_outcomes
from gate_plan import failures, red_lines
from gate_summary import summary
from kernel_bench import KernelRow
from profile_steps import Row as ProfileRow
from stepcache.bench.rows import ROOT, read, write
from stepcache.bench.schema import BenchRow


def gate(*options):
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_gate.py"), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_dry_run_does_everything_in_small(tmp_path):
    done = gate("--dry-run", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = read_outcomes(tmp_path / "out" / "gate.csv")
    assert [(o.job, o.status) for o in outcomes] == [
        (job.name, "done") for job in gate_plan.dry_jobs(tmp_path, tmp_path)
    ]
    rows = read(tmp_path / "out" / gate_cells.FILE, BenchRow)
    assert [row.variant for row in rows] == ["eager", "DeepCache 0.1.1", "stepcache eager"]
    assert all(row.status == "ok" and row.pipeline_s > 0 for row in rows)
    profile = read(tmp_path / "out" / "profile_steps.csv", ProfileRow)
    assert [(row.variant, row.kind) for row in profile] == [("eager", "full"), ("eager", "partial")]
    log = (tmp_path / "out" / "gate.log").read_text()
    assert "passed" in log and "21 joins agree" in log
    assert "demo 64 b1  stepcache eager (3, 0)" in done.stdout
    assert "A dry run: no GPU" in done.stdout and f"All {len(outcomes)} jobs done" in done.stdout


def test_red_tests_give_no_figures(tmp_path):
    path = tmp_path / "test_red.py"
    path.write_text("def test_fine(): pass\ndef test_wrong(): assert 1 == 2, 'so wrong'\n")
    out = tmp_path / "out"
    done = gate("--dry-run", "--out", out, "--tests", path, "--only", "tests", "demo-64-b1")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "No figures: tests failed." in done.stdout
    assert "test_red.py::test_wrong" in done.stdout and "so wrong" in done.stdout
    assert sorted(p.name for p in out.iterdir()) == ["gate.csv", "gate.log"]
    assert [(o.job, o.status) for o in read_outcomes(out / "gate.csv")] == [("tests", "failed")]


def test_without_a_test_that_passed_there_are_no_figures_either(tmp_path):
    path = tmp_path / "test_skipped.py"
    path.write_text("import pytest\n@pytest.mark.skip\ndef test_a(): pass\n")
    done = gate("--dry-run", "--out", tmp_path / "out", "--tests", path, "--only", "tests")
    assert done.returncode == 1 and "No test passed." in done.stdout


def test_a_run_is_continued(tmp_path, capsys):
    (tmp_path / "earlier").mkdir()
    write_outcomes(
        tmp_path / "earlier" / "gate.csv",
        [Outcome("tests", "done", 1.0), Outcome("profile", "cut short", 2.0, "It was ended after 2 s.")],
    )
    options = ["--dry-run", "--out", str(tmp_path / "out"), "--continue", str(tmp_path / "earlier")]
    assert gpu_gate.main([*options, "--only", "tests", "profile", "--minutes", "0.2"]) == 2
    outcomes = {o.job: o for o in read_outcomes(tmp_path / "out" / "gate.csv")}
    assert outcomes["tests"].seconds == 1.0
    assert outcomes["profile"].status == "not begun"  # 0.2 minutes, less what ending takes, are too little for it
    assert "Missing: profile." in capsys.readouterr().out
    with pytest.raises(SystemExit, match="nothing to continue"):
        gpu_gate.main([*options[:3], "--continue", str(tmp_path)])


def test_an_unknown_job_is_named(tmp_path):
    with pytest.raises(SystemExit, match="no job sd99"):
        gpu_gate.main(["--list", "--only", "sd99"])


# Jobs under a clock.


def python(name, code, *, least=0.0, most=30.0, **more):
    return Job(name, [sys.executable, "-S", "-c", code], least=least, most=most, **more)


@pytest.fixture
def runner(tmp_path):
    return Runner(tmp_path, dict(os.environ), gate_jobs.time.monotonic() + 120)


def statuses(runner):
    return {name: outcome.status for name, outcome in runner.outcomes.items()}


@pytest.mark.parametrize("background", [False, True])
def test_a_crash_and_a_hang_are_named_and_the_rest_goes_on(background, runner, monkeypatch, capsys):
    """background: as under a shell's `&`, which leaves SIGINT ignored."""
    monkeypatch.setattr(gate_jobs, "GRACE", 5)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if background else signal.default_int_handler)
    try:
        crash_and_hang(runner, capsys)
    finally:
        signal.signal(signal.SIGINT, before)


def crash_and_hang(runner, capsys):
    deaf = (
        "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('deaf', flush=True); time.sleep(99)"
    )
    others = sum(30.0 for _ in range(4))
    runner.deadline += others  # so that no job gets more than its own `most`
    jobs = [
        python("crash", "print('began'); raise ValueError('that is why')"),
        python("killed", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"),
        python(
            "hang", "import time; print('waiting', flush=True)\ntry: time.sleep(99)\nfinally: print('saved')", most=4
        ),
        python("deaf", deaf, most=4),
        python("fine", "print('fine')", most=300),
    ]
    assert runner.run(jobs)
    assert statuses(runner) == {
        "crash": "failed", "killed": "failed", "hang": "cut short", "deaf": "cut short", "fine": "done"
    }  # fmt: skip
    assert runner.outcomes["crash"].detail == "exit status 1: ValueError: that is why"
    assert runner.outcomes["killed"].detail.startswith("SIGSEGV")
    assert "saved" in runner.output("hang")  # it was interrupted, not killed
    assert runner.output("fine") == "fine\n"
    assert read_outcomes(runner.out / "gate.csv") == list(runner.outcomes.values())
    assert "crash: failed" in capsys.readouterr().out


def test_jobs_share_the_time_that_is_left(tmp_path):
    now = 0.0
    runner = Runner(tmp_path, dict(os.environ), deadline=100 + gate_jobs.GRACE, clock=lambda: now)
    tell = "import sys; print(*sys.argv[1:])"
    jobs = [
        python("first", tell, most=20, told=True),
        python("too long", tell, least=101, most=200),
        python("last", tell, least=60, most=70, told=True),
    ]
    runner.run(jobs)
    assert runner.output("first") == f"--seconds {20 - gate_jobs.GRACE}\n"  # the others leave it nothing more
    assert runner.outcomes["too long"].detail == "It needs 101 s; 100 s were left."
    assert runner.output("last") == f"--seconds {100 - gate_jobs.GRACE}\n"  # with nothing behind it, all that is left

    now = 45.0
    late = Runner(tmp_path, dict(os.environ), deadline=100 + gate_jobs.GRACE, clock=lambda: now)
    late.run(jobs)
    assert statuses(late) == {"first": "done", "too long": "not begun", "last": "not begun"}


def test_what_a_job_needs(runner):
    jobs = [
        python("red", "raise SystemExit(3)"),
        python("after red", "", needs=("red",)),
        python("without its file", "", reads=runner.out / "rows.csv"),
        python("file", f"open({str(runner.out / 'rows.csv')!r}, 'w')"),
        python("with its file", "", reads=runner.out / "rows.csv", needs=("file",)),
    ]
    runner.run(jobs)
    assert statuses(runner) == {
        "red": "failed", "after red": "not begun", "without its file": "not begun", "file": "done",
        "with its file": "done",
    }  # fmt: skip


def test_nothing_is_run_behind_a_gate_that_failed(runner):
    bad = lambda output, finished: "a test failed" if "FAILED" in output else ""  # noqa: E731
    assert not runner.run([python("tests", "print('FAILED')", gate=True, check=bad), python("figures", "")])
    assert statuses(runner) == {"tests": "failed"}
    assert runner.outcomes["tests"].detail == "a test failed"


def test_jobs_done_or_failed_before_are_not_run_again(tmp_path):
    earlier = [Outcome("a", "done", 1), Outcome("b", "failed", 1, "why"), Outcome("c", "cut short", 1)]
    runner = Runner(tmp_path, dict(os.environ), gate_jobs.time.monotonic() + 60, earlier=earlier)
    runner.run([python(name, "print('again')") for name in "abc"])
    assert statuses(runner) == {"a": "done", "b": "failed", "c": "done"}
    assert runner.output("c") == "again\n" and not runner.output("a")


# What is run.

SUMMARY = "=========== short test summary info ===========\nFAILED tests/a.py::test_b[join 0: 3->4] - assert 1 == 2\n"


@pytest.mark.parametrize(
    ("output", "red"),
    [
        ("tests/a.py::test_b PASSED [ 50%]\ntests/a.py::test_c PASSED [100%]\n== 2 passed in 1s ==\n", []),
        ("[gw0] [ 50%] PASSED tests/a.py::test_FAILED \ncaught: an ERROR as expected\n== 2 passed ==\n", []),
        ("tests/a.py::test_b FAILED [ 50%]\n", ["tests/a.py::test_b FAILED [ 50%]"]),
        ("[gw1] [ 50%] FAILED tests/a.py::test_b[x y] \n", ["[gw1] [ 50%] FAILED tests/a.py::test_b[x y]"]),
        ("[gw1] [ 9%] ERROR tests/a.py::test_b \n", ["[gw1] [ 9%] ERROR tests/a.py::test_b"]),
        (f"tests/a.py::test_b FAILED [1%]\n{SUMMARY}", ["FAILED tests/a.py::test_b[join 0: 3->4] - assert 1 == 2"]),
    ],
)
def test_red_is_told_from_green(output, red):
    assert red_lines(output) == red
    assert bool(failures(output, finished=False)) == bool(red)


def test_tests_that_were_cut_short_are_not_green_but_not_red():
    assert failures("tests/a.py::test_b PASSED [ 50%]\n", finished=False) == ""
    assert failures("no tests ran", finished=True) == "No test passed."


def test_the_jobs_on_a_gpu(tmp_path):
    jobs = gate_plan.gpu_jobs(tmp_path, tmp_path)
    names = [job.name for job in jobs]
    assert len(set(names)) == len(names)
    assert names[:3] == ["environment", "tests", "kernel tests"]
    assert all(job.gate for job in jobs[:3]) and not any(job.gate for job in jobs[3:])
    for i, job in enumerate(jobs[3:], start=3):
        assert set(job.needs) <= set(names[:i]) and (job.needs or job.reads)
        assert 0 < job.least <= job.most
    assert set(gate_cells.CELLS) < set(names)
    tests, kernels = (next(job for job in jobs if job.name == name).command for name in gate_plan.TESTS)
    assert "tests/graphs/test_gpu.py" in tests and not any("kernels" in part for part in tests)
    assert {"tests/kernels/test_cat_group_norm_silu.py", "tests/kernels/test_dual_conv1x1.py"} < set(kernels)
    for path in itertools.chain(tests, kernels):
        assert not path.endswith(".py") or (ROOT / path).exists()
    caches = [job.environment.get("TORCHINDUCTOR_CACHE_DIR") for job in jobs if job.name in gate_cells.CELLS]
    assert len(set(caches)) == len(gate_cells.CELLS) and None not in caches


@pytest.mark.parametrize("name", gate_cells.CELLS)
def test_every_cell_is_a_grid(name):
    cell = gate_cells.CELLS[name]
    spec = cell.spec()
    assert name.startswith(f"{cell.model}-{cell.size}-b{cell.batch}")
    assert spec.variants[0] == "eager" and set(cell.variants) <= set(spec.variants)
    assert (spec.steps, spec.guidance, spec.sizes) == (50, 7.5, ((cell.size, cell.size),))


def test_no_row_is_measured_by_two_cells():
    rows = [
        (cell.model, cell.size, cell.batch, variant, cell.more.get("reuse"), mode)
        for cell in gate_cells.CELLS.values()
        for variant in cell.variants
        for mode in cell.more.get("modes", ("",))
    ]
    assert len(set(rows)) == len(rows)


def test_a_cell_keeps_its_own_rows_and_says_what_is_missing(tmp_path, monkeypatch):
    what = gate_cells.Cell(
        1, 1, "demo", 64, 1, ("stepcache-eager", "stepcache-graphs"), {"steps": 2, "repeats": 1, "device": "cpu"}
    )
    monkeypatch.setitem(gate_cells.CELLS, "mine", what)
    with pytest.raises(SystemExit, match="CUDA graphs: not here: needs CUDA"):
        gate_cells.run_cell("mine", tmp_path, seconds=100)
    eager, graphs = read(tmp_path / gate_cells.FILE, BenchRow)
    assert (eager.variant, eager.status) == ("stepcache eager", "ok")
    assert eager.speedup > 0 and eager.speedup_over_deepcache > 0  # measured beside it, without rows of their own
    assert graphs.pipeline_s is None
    with pytest.raises(SystemExit, match="out of time"):
        gate_cells.run_cell("mine", tmp_path, seconds=0)
    assert len(read(tmp_path / gate_cells.FILE, BenchRow)) == 3  # what lacks time is no row, what lacks a GPU is


def test_the_summary_of_the_kernels(tmp_path):
    def row(join, variant, us, dtype="float16"):
        return KernelRow(
            "dual_conv1x1", "sd15", join, 2, 320, 320, 320, 64, 64, dtype, "channels_last", variant, us, us, us,
            1.0, 1.0, 1.0, 0.0, 0.0, "13.0", "",
        )  # fmt: skip

    rows = [row(0, "triton", 6.0), row(0, "inductor", 12.0), row(0, "inductor split", 10.0), row(0, "eager", 3.0)]
    rows += [row(1, "triton", 11.0), row(1, "inductor", 10.0), row(2, "triton", 1.0)]
    write(tmp_path / "bench_dual_conv1x1.csv", rows)
    text = summary(tmp_path, [Outcome("dual_conv1x1", "cut short", 40.0, "It was ended after 40 s.")])
    assert "dual_conv1x1, float16: 0.85 of Inductor's time (median), faster at 1 of 2 joins" in text
    assert "cut short" in text


# A bare checkout.


def bare(code, environment):
    """Run code where neither .pth files nor the editable install's finder are: with -S, as on a machine without it."""
    environment["PYTHONPATH"] += os.pathsep + sysconfig.get_path("purelib")
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_checkout_is_importable_without_being_installed(tmp_path):
    code = "import stepcache.kernels.dual_conv1x1, stepcache.bench.rows as r; print(stepcache.__file__, r.ROOT)"
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
    with pytest.raises(ValueError, match=r"broken-1-py3-none-any\.whl is no wheel"):
        gate_checkout.environment(tmp_path / "c", wheels)


def test_what_cannot_be_imported_is_named(monkeypatch):
    monkeypatch.setattr(gpu_gate, "NEEDED", ("torch", "no_such_package"))
    with pytest.raises(SystemExit, match=r"No module named 'no_such_package'\. Carry what is missing as wheels"):
        gpu_gate.report_environment(dry=True)


def test_without_a_gpu_only_a_dry_run_goes_on(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    gpu_gate.report_environment(dry=True)
    assert f"stepcache from {Path(ROOT, 'src', 'stepcache')}" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="sees no CUDA GPU"):
        gpu_gate.report_environment(dry=False)


def test_kernels_are_chosen_beside_the_figures(tmp_path):
    chosen = (ROOT / "csrc_triton" / "defaults.csv").read_text()
    (tmp_path / "bench_cat_group_norm_silu.csv").write_text(
        "gpu,dtype,hidden,skip,height,width,batch,variant,us\n"
        "H100,float16,320,320,64,64,2,triton + shortcut,5\nH100,float16,320,320,64,64,2,inductor,7\n"
    )
    gpu_gate.choose(tmp_path)
    assert "H100,float16,320,320,5.00,7.00" in (tmp_path / "defaults.csv").read_text()
    assert (ROOT / "csrc_triton" / "defaults.csv").read_text() == chosen
