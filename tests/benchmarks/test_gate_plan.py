"""The gate's jobs, their order, and that the others run however one of them ends."""

import itertools
import sys
from dataclasses import replace

import pytest
from support.gate_simulated import python, runner_in, statuses

from benchmarks import ROOT, gpu_gate
from benchmarks.gate import cells as gate_cells
from benchmarks.gate import jobs as gate_jobs
from benchmarks.gate import plan as gate_plan
from benchmarks.gate.plan import failures, red_lines


@pytest.fixture
def runner(tmp_path):
    return runner_in(tmp_path)


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
    assert names[:10] == [
        "environment", "core tests", "sd21-512-b1", "profile", "profile, compiled",
        "cat_group_norm_silu", "dual_conv1x1", "joins of sd21", "joins of sdxl", "kernel tests",
    ]  # fmt: skip
    for job in jobs[1:]:
        assert job.needs == ("environment",)  # and nothing else
        assert 0 < job.least <= job.most
    assert set(gate_cells.CELLS) < set(names)
    by_name = {job.name: job for job in jobs}
    core, kernels, further = (by_name[name].command for name in gate_plan.TESTS)
    files = [[part for part in command if part.endswith(".py")] for command in (core, kernels, further)]
    assert files[0] == list(gate_plan.CORE)
    assert {"tests/kernels/test_cat_group_norm_silu.py", "tests/kernels/test_dual_conv1x1.py"} == set(files[1])
    assert len(files[2]) > 3 and not any("kernels" in path for path in files[2])
    marked = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("test_*.py")
        if f"mark.{'gpu'}" in path.read_text()  # in two parts, so that this file is not one of them
    }
    assert sorted(itertools.chain(*files)) == sorted(marked)  # each one once
    caches = [by_name[name].environment.get("TORCHINDUCTOR_CACHE_DIR") for name in gate_cells.CELLS]
    assert len(set(caches)) == len(gate_cells.CELLS) and None not in caches


def test_the_first_figures_are_begun_in_the_first_minutes(tmp_path):
    """Even if all jobs before them are killed; and the first cell ends within nine minutes."""
    jobs = gate_plan.gpu_jobs(tmp_path, tmp_path)
    first = [job.name for job in jobs].index("sd21-512-b1")
    worst = [job.most + gate_jobs.GRACE + 5 for job in jobs]
    assert sum(worst[:first]) <= 3.5 * 60
    assert sum(worst[: first + 1]) <= 9 * 60 - gate_jobs.GRACE
    # The jobs after them need more than the rest of the time, so no job gets more than its `most`.
    assert sum(job.most for job in jobs[first:]) > 9 * 60


# The plan, with simulated jobs.


def shell(name):
    """A job that passes, in a tenth of the time that Python takes to start."""
    return replace(python(name, ""), command=["sh", "-c", "echo 1 passed"])


HANG = "import time; print('1 passed', flush=True); time.sleep(99)"
# What jobs of one run do instead; they end as the run's name says.
SIMULATED = {
    "failed, tests too": {
        "core tests": "print('tests/a.py::test_b FAILED'); raise SystemExit(1)",
        "further tests": "import os; os.kill(os.getpid(), 11)",
        "sdxl-1024-b1": "raise SystemExit('eager: out of memory')",
    },
    "failed": {
        "sd21-512-b1": "import os; os.abort()",
        "cat_group_norm_silu": "print('RED join 3: wrong'); raise SystemExit('1 wrong')",
        "sdxl-1024-b1": "import os; os.kill(os.getpid(), 9)",  # for memory
    },
    "cut short": {
        "core tests": HANG,
        "sd21-512-b1": HANG,
        "dual_conv1x1": HANG,
        "sd21-768-b1": "print('late'); raise SystemExit(75)",
    },
}


@pytest.mark.parametrize("how", SIMULATED)
def test_however_some_jobs_end_the_others_run(how, runner, monkeypatch, capsys):
    monkeypatch.setattr(gate_jobs, "GRACE", 1)
    simulated, status = SIMULATED[how], how.partition(",")[0]
    jobs = [
        replace(
            python(job.name, simulated[job.name]) if job.name in simulated else shell(job.name),
            most=1 if simulated.get(job.name) == HANG else 25,  # the others have enough time on a busy machine
            needs=job.needs,
            check=job.check,
        )
        for job in gate_plan.gpu_jobs(runner.out, runner.out)
        if not job.name.endswith(("deeper", "b4"))  # these would only repeat others
    ]
    monkeypatch.setattr(runner, "clock", lambda: runner.deadline - 30)
    runner.run([*jobs, replace(shell("the rest"), most=99)])
    ends = dict.fromkeys(simulated, status)
    assert statuses(runner) == {job.name: "done" for job in [*jobs, shell("the rest")]} | ends
    code = gpu_gate.report(runner.out, runner, [job.name for job in jobs], dry=False)
    printed = capsys.readouterr().out
    if status == "failed":
        assert code == 1 and all(f"RED {name}: " in printed for name in simulated)
        assert ("RED TESTS" in printed) == (not simulated.keys().isdisjoint(gate_plan.TESTS))
    else:
        missing = [job.name for job in jobs if job.name in simulated]
        assert code == 2 and f"Missing: {', '.join(missing)}." in printed and "RED" not in printed


def test_without_an_environment_nothing_is_begun(runner):
    jobs = [replace(job, command=[sys.executable, "-S", "-c", "raise SystemExit('no GPU')"])
            for job in gate_plan.gpu_jobs(runner.out, runner.out)]  # fmt: skip
    runner.run(jobs)
    assert {name: status for name, status in statuses(runner).items() if status != "not begun"} == {
        "environment": "failed"
    }
