"""Jobs of the gate: processes with a share of the time that there is, one after the other.

A job that fails, crashes or hangs is named, and the next one has its turn. Only what failed holds up what needs it;
what was cut short, or had no time to begin, holds up nothing.
"""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, field, fields, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

MARK = "\n##### gate: "
"""Begins what the gate itself writes to the log."""
RED = "RED"
"""Begins the line of a job that failed."""
NOTE = "Note: "
"""Begins a line of a job's output that is kept with its outcome although nothing failed."""
GRACE = 10
"""Seconds that an interrupted process has to say what it has done so far, before it is killed."""
OUT_OF_TIME = 75
"""Exit status (EX_TEMPFAIL) of a job that ended by itself with its seconds over: cut short, and nothing wrong."""


@dataclass(frozen=True)
class Job:
    """One process.

    It is not begun with less than `least` seconds left, or where a job that it `needs` failed. It may take `most`
    seconds, and beyond them what the jobs behind it leave. `check` looks for a failure in the output, given whether the
    process came to its end: it returns what is wrong, "" where nothing is.
    """

    name: str
    command: Sequence[str]
    least: float
    most: float
    needs: tuple[str, ...] = ()
    told: bool = False  # the command takes --seconds, that it has until it should be done
    check: Callable[[str, bool], str] = lambda output, finished: ""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of a job. `status` is "done", "failed", "cut short" or "not begun"; `detail` says why."""

    job: str
    status: str
    seconds: float
    detail: str = ""
    commit: str = ""  # of the checkout that it ran in


class Runner:
    """Runs jobs until `deadline`, a time of `clock` in seconds, and keeps log and outcomes in `out` as it goes.

    Jobs that are in `earlier`, done or failed, are not run again.
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
        """Run them in this order."""
        jobs = [job for job in jobs if job.name not in self.outcomes]
        for i, job in enumerate(jobs):
            outcome = self._outcome(job, later=sum(other.most for other in jobs[i + 1 :]))
            self.outcomes[job.name] = replace(outcome, commit=self.commit)
            write_outcomes(self.out / "gate.csv", list(self.outcomes.values()))
            told = f"{job.name}: {outcome.status}, {outcome.seconds:.0f} s. {outcome.detail}".rstrip()
            self.say(f"{RED} {told}" if outcome.status == "failed" else told)

    def output(self, name: str) -> str:
        """What the job of that name printed, in this run of the gate."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        _, begun, rest = text.rpartition(_heading(name))
        return rest.partition(MARK)[0] if begun else ""

    def say(self, text: str) -> None:
        """Print it with the seconds that are left, and keep it in the log."""
        line = f"[{max(0, self.deadline - self.clock()):4.0f} s left] {text}"
        print(line, flush=True)
        with self.log.open("a") as log:
            log.write(f"{MARK}{line}\n")

    def _outcome(self, job: Job, later: float) -> Outcome:
        failed = {name for name, outcome in self.outcomes.items() if outcome.status == "failed"}
        if wrong := [name for name in job.needs if name in failed]:
            return Outcome(job.name, "not begun", 0.0, f"It needs what failed: {', '.join(wrong)}.")
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
                start_new_session=True,  # so that its own children end with it
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
    # A shell starts what runs in its background with SIGINT ignored, and so would be everything below it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _heading(name: str) -> str:
    return f"{MARK}job {name}\n"


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else "it printed nothing"


def _notes(text: str) -> str:
    return " ".join(line[len(NOTE) :].strip() for line in text.splitlines() if line.startswith(NOTE))[:400]


def _end(process: subprocess.Popen[bytes], grace: float = 0) -> None:
    """Kill the process and its children; with `grace`, interrupt them so many seconds before, so that they sum up."""
    if grace:
        os.killpg(process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(grace)
    with suppress(ProcessLookupError):  # it left no children
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):  # what hangs in the driver cannot be killed; the others have their turn
        process.wait(5)


def write_outcomes(path: Path, outcomes: Sequence[Outcome]) -> None:
    """All outcomes so far, as a CSV; those of other commits that are in the file stay."""
    commits = {outcome.commit for outcome in outcomes}
    others = [outcome for outcome in read_outcomes(path) if outcome.commit not in commits]
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([column.name for column in fields(Outcome)])
        writer.writerows(astuple(outcome) for outcome in [*others, *outcomes])


def read_outcomes(path: Path) -> list[Outcome]:
    """What `write_outcomes` wrote; nothing where there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [Outcome(**{**line, "seconds": float(line["seconds"])}) for line in csv.DictReader(file)]
