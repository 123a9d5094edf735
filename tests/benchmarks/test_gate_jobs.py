"""The gate's jobs: how they share the time, crash and hang, and which of them keep others from starting."""

import os
import signal
from dataclasses import replace

import pytest
from support.gate_simulated import python, runner_in, statuses

from benchmarks.gate import jobs as gate_jobs
from benchmarks.gate.jobs import Outcome, Runner, read_outcomes


@pytest.fixture
def runner(tmp_path):
    return runner_in(tmp_path)


@pytest.mark.parametrize("background", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_crash_and_a_hang_are_named_and_the_rest_goes_on(background, runner, monkeypatch, capsys):
    """background: as under a shell's `&`, where SIGINT is ignored."""
    monkeypatch.setattr(gate_jobs, "GRACE", 1)
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
            "hang", "import time; print('waiting', flush=True)\ntry: time.sleep(99)\nfinally: print('saved')", most=2
        ),
        python("deaf", deaf, most=2),
        python("fine", "print('fine')", most=300),
    ]
    runner.run(jobs)
    assert statuses(runner) == {
        "crash": "failed", "killed": "failed", "hang": "cut short", "deaf": "cut short", "fine": "done"
    }  # fmt: skip
    assert runner.outcomes["crash"].detail == "exit status 1: ValueError: that is why"
    assert runner.outcomes["killed"].detail.startswith("SIGSEGV")
    assert "saved" in runner.output("hang")  # it was interrupted, not killed
    assert runner.outcomes["deaf"].detail == "It was ended after 2 s: deaf"
    assert runner.output("fine") == "fine\n"
    assert read_outcomes(runner.out / "gate.csv") == list(runner.outcomes.values())
    assert "RED crash: failed" in capsys.readouterr().out


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
    assert runner.output("first") == f"--seconds {20 - gate_jobs.GRACE}\n"  # the others need the rest
    assert runner.outcomes["too long"].detail == "It needs 101 s; 100 s were left."
    assert runner.output("last") == f"--seconds {100 - gate_jobs.GRACE}\n"  # the last one gets all the rest

    now = 45.0
    late = Runner(tmp_path, dict(os.environ), deadline=100 + gate_jobs.GRACE, clock=lambda: now)
    late.run(jobs)
    assert statuses(late) == {"first": "done", "too long": "not begun", "last": "not begun"}


def test_only_what_failed_holds_up_what_needs_it(runner, monkeypatch):
    monkeypatch.setattr(gate_jobs, "GRACE", 1)
    jobs = [
        python("red", "raise SystemExit(3)"),
        python("after red", "", needs=("red",)),
        python("slow", "import time; time.sleep(99)", most=1, needs=("after red",)),
        python("late", f"print('two were left'); raise SystemExit({gate_jobs.OUT_OF_TIME})", needs=("slow",)),
        python("after late", "print('Note: without a rival.')", needs=("late", "nobody")),
    ]
    runner.deadline += 200
    runner.run([replace(job, most=job.most if job.name == "slow" else 200) for job in jobs])
    assert statuses(runner) == {
        "red": "failed", "after red": "not begun", "slow": "cut short", "late": "cut short", "after late": "done",
    }  # fmt: skip
    assert runner.outcomes["late"].detail == "two were left"
    assert runner.outcomes["after late"].detail == "without a rival."


def test_jobs_done_or_failed_before_are_not_run_again(tmp_path):
    earlier = [Outcome("a", "done", 1), Outcome("b", "failed", 1, "why"), Outcome("c", "cut short", 1)]
    runner = Runner(tmp_path, dict(os.environ), gate_jobs.time.monotonic() + 60, earlier=earlier)
    runner.run([python(name, "print('again')") for name in "abc"])
    assert statuses(runner) == {"a": "done", "b": "failed", "c": "done"}
    assert runner.output("c") == "again\n" and not runner.output("a")
