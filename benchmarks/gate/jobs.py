"""The gate's jobs: processes that run one after the other and share the time.

A job that fails, crashes or hangs is reported, and the next one starts. A failed job keeps jobs that need it from
starting; one that was cut short, or had no time to start, does not.
"""

from __future__ import annotations

import csv
import io
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, field, fields, replace
from pathlib import Path

from benchmarks import OUT_OF_TIME, ROOT

MARK = "\n##### gate: "
"""Starts everything that the gate itself writes to the log."""
RED = "RED"
"""Starts the line of a failed job."""
NOTE = "Note: "
"""Starts a line of a job's output that is kept with its outcome even if nothing failed."""
GRACE = 10
"""Seconds between interrupting and killing a process, in which it can write what it has."""


@dataclass(frozen=True)
class Job:
    """One process.

    It does not start with less than `least` seconds left, or if a job that it `needs` failed. It may take `most`
    seconds, and more if the jobs after it do not need them. `check` gets the output and whether the process ended by
    itself, and returns what is wrong, or "".
    """

    name: str
    command: Sequence[str]
    least: float
    most: float
    needs: tuple[str, ...] = ()
    told: bool = False  # the command takes --seconds, its time limit
    check: Callable[[str, bool], str] = lambda output, finished: ""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a job ended. `status` is "done", "failed", "cut short" or "not begun"; `detail` says why."""

    job: str
    status: str
    seconds: float
    detail: str = ""
    commit: str = ""  # of its checkout


class Runner:
    """Runs jobs until `deadline` (a time of `clock`, in seconds), and writes the log and outcomes to `out` as it goes.

    Jobs that are done or failed in `earlier` do not run again.
    """

    def __init__(
        self,
        out: Path,
        environment: Mapping[str, str],
        deadline: float,
        clock: Callable[[], float] = time.monotonic,
        earlier: Sequence[Outcome] = (),
        commit: str = "",
    ) -> None:
        self.out, self.environment, self.deadline, self.clock = out, environment, deadline, clock
        self.log, self.commit = out / "gate.log", commit
        self.outcomes = {outcome.job: outcome for outcome in earlier if outcome.status in ("done", "failed")}

    def run(self, jobs: Sequence[Job]) -> None:
        """Run the jobs in this order."""
        jobs = [job for job in jobs if job.name not in self.outcomes]
        for i, job in enumerate(jobs):
            outcome = self._outcome(job, later=sum(other.most for other in jobs[i + 1 :]))
            self.outcomes[job.name] = replace(outcome, commit=self.commit)
            write_outcomes(self.out / "gate.csv", list(self.outcomes.values()))
            told = f"{job.name}: {outcome.status}, {outcome.seconds:.0f} s. {outcome.detail}".rstrip()
            self.say(f"{RED} {told}" if outcome.status == "failed" else told)

    def output(self, name: str) -> str:
        """What this job printed in this run of the gate."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        _, begun, rest = text.rpartition(_heading(name))
        return rest.partition(MARK)[0] if begun else ""

    def say(self, text: str) -> None:
        """Print and log a line, with the seconds that are left."""
        line = f"[{max(0, self.deadline - self.clock()):4.0f} s left] {text}"
        print(line, flush=True)
        with self.log.open("a") as log:
            log.write(f"{MARK}{line}\n")

    def _outcome(self, job: Job, later: float) -> Outcome:
        failed = {name for name, outcome in self.outcomes.items() if outcome.status == "failed"}
        if wrong := [name for name in job.needs if name in failed]:
            return Outcome(job.name, "not begun", 0.0, f"It needs jobs that failed: {', '.join(wrong)}.")
        left = self.deadline - GRACE - self.clock()
        if left < job.least:
            return Outcome(job.name, "not begun", 0.0, f"It needs {job.least:.0f} s; {max(0, left):.0f} s were left.")
        limit = min(left, max(job.most, left - later))
        start = self.clock()
        status, detail = self._process(job, limit)
        if wrong := job.check(self.output(job.name), status == "done"):
            status, detail = "failed", wrong
        return Outcome(job.name, status, round(self.clock() - start, 1), detail)

    def _process(self, job: Job, limit: float) -> tuple[str, str]:
        with self.log.open("a") as log:
            log.write(_heading(job.name))
            log.flush()
            process = subprocess.Popen(
                [*job.command, *(["--seconds", f"{limit - GRACE:.0f}"] if job.told else [])],
                cwd=ROOT,
                env={**self.environment, **job.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # to end its children with it
                preexec_fn=_interruptible,
            )
            try:
                process.wait(limit)
            except subprocess.TimeoutExpired:
                _end(process, GRACE)
                return "cut short", f"It was ended after {limit:.0f} s: {_last_line(self.output(job.name))}"
            finally:
                _end(process)
        if process.returncode == 0:
            return "done", _notes(self.output(job.name))
        if process.returncode == OUT_OF_TIME:
            return "cut short", _last_line(self.output(job.name))
        how = f"exit status {process.returncode}"
        if process.returncode < 0:
            how = signal.Signals(-process.returncode).name
        return "failed", f"{how}: {_last_line(self.output(job.name))}"


def _interruptible() -> None:
    # A shell starts background processes with SIGINT ignored, and their children inherit that.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _heading(name: str) -> str:
    return f"{MARK}job {name}\n"


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else "it printed nothing"


def _notes(text: str) -> str:
    return " ".join(line[len(NOTE) :].strip() for line in text.splitlines() if line.startswith(NOTE))[:400]


def _end(process: subprocess.Popen[bytes], grace: float = 0) -> None:
    """Kill the process and its children. With `grace`, interrupt them that many seconds before."""
    if grace:
        os.killpg(process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(grace)
    with suppress(ProcessLookupError):  # all have ended
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):  # a process that hangs in the driver cannot be killed
        process.wait(5)


def write_outcomes(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Write the outcomes as a CSV. Those of other commits in the file stay."""
    commits = {outcome.commit for outcome in outcomes}
    others = [outcome for outcome in read_outcomes(path) if outcome.commit not in commits]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([column.name for column in fields(Outcome)])
    writer.writerows(astuple(outcome) for outcome in [*others, *outcomes])
    part = path.with_name(f"{path.name}.part")  # replaced as a whole, without stepcache, which needs torch
    part.write_text(text.getvalue())
    part.replace(path)


def read_outcomes(path: Path) -> list[Outcome]:
    """What `write_outcomes` wrote; [] if there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [Outcome(**{**line, "seconds": float(line["seconds"])}) for line in csv.DictReader(file)]
