"""Jobs of the gate that are small programs."""

import os
import sys

from benchmarks.gate import jobs as gate_jobs
from benchmarks.gate.jobs import Job, Runner


def python(name, code, *, least=0.0, most=30.0, **more):
    return Job(name, [sys.executable, "-S", "-c", code], least=least, most=most, **more)


def runner_in(folder, seconds=120):
    return Runner(folder, dict(os.environ), gate_jobs.time.monotonic() + seconds)


def statuses(runner):
    return {name: outcome.status for name, outcome in runner.outcomes.items()}
