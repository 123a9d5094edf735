"""Jobs of the gate: processes with a share of the time that there is, one after the other.

A job that crashes or hangs is named, and the next one has its turn.
"""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

MARK = "\n##### gate: "
"""Begins what the gate itself writes to the log."""
GRACE = 10
"""Seconds that an interrupted process has to say what it has done so far, before it is killed."""


@dataclass(frozen=True)
class Job:
    """One process.

    It is not begun with less than `least` seconds left, where a job that it `needs` was not done, or without the file
    that it `reads`. It may take `most` seconds, and beyond them what the jobs behind it leave. `check` looks for a
    failure in the output, given whether the process came to its end: it returns what is wrong, "" where nothing is.
    """

    name: str
    command: Sequence[str]
    least: float
    most: float
    needs: tuple[str, ...] = ()
    reads: Path | None = None
    told: bool = False  # the command takes --seconds, that it has until it should be done
    gate: bool = False  # where it fails, nothing more is run
    check: Callable[[str, bool], str] = lambda output, finished: ""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of a job. `status` is "done", "failed", "cut short" or "not begun"; `detail` says why."""

    job: str
    status: str
    seconds: float
    detail: str = ""


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
    ) -> None:
        self.out, self.environment, self.deadline, self.clock = out, environment, deadline, clock
        self.log = out / "gate.log"
        self.outcomes = {outcome.job: outcome for outcome in earlier if outcome.status in ("done", "failed")}

    def run(self, jobs: Sequence[Job]) -> bool:
        """Run them in this order; False as soon as one that is a gate has failed."""
        jobs = [job for job in jobs if job.name not in self.outcomes]
        for i, job in enumerate(jobs):
            outcome = self._outcome(job, later=sum(other.most for other in jobs[i + 1 :]))
            self.outcomes[job.name] = outcome
            write_outcomes(self.out / "gate.csv", list(self.outcomes.values()))
            self.say(f"{job.name}: {outcome.status}, {outcome.seconds:.0f} s. {outcome.detail}".rstrip())
            if job.gate and outcome.status == "failed":
                return False
        return True

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
        done = {name for name, outcome in self.outcomes.items() if outcome.status == "done"}
        if missing := [name for name in job.needs if name not in done]:
            return Outcome(job.name, "not begun", 0.0, f"It needs: {', '.join(missing)}.")
        if job.reads is not None and not job.reads.exists():
            return Outcome(job.name, "not begun", 0.0, f"There is no {job.reads.name}.")
        left = self.deadline - GRACE - self.clock()
        if left < job.least:
            return Outcome(job.name, "not begun", 0.0, f"It needs {job.least:.0f} s; {max(0, left):.0f} s were left.")
        limit = min(left, max(job.most, left - later))
        start = self.clock()
        status, detail = self._process(job, limit)
        if status != "failed" and (wrong := job.check(self.output(job.name), status == "done")):
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
                return "cut short", f"It was ended after {limit:.0f} s."
            finally:
                _end(process)
        if process.returncode == 0:
            return "done", ""
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
    """All outcomes so far, as a CSV."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([column.name for column in fields(Outcome)])
        writer.writerows(astuple(outcome) for outcome in outcomes)


def read_outcomes(path: Path) -> list[Outcome]:
    """What `write_outcomes` wrote; nothing where there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [
            Outcome(line["job"], line["status"], float(line["seconds"]), line["detail"])
            for line in csv.DictReader(file)
        ]
