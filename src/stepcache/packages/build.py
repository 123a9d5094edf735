"""Makes packages, several side by side, and adds each to the folder as soon as it is done."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ..errors import GraphCompileError
from .folder import Writer
from .job import Job
from .manifest import Entry

# Memory that a compiler needs: 1.8 GB were seen for SD 1.5's U-Net on a CPU.
BYTES_PER_WORKER = 4 << 30

Told = Callable[[str, int, int], None]
"""Called with (what is done or begun, packages done, packages in all)."""


def build(jobs: Sequence[Job], writer: Writer, tell: Told, workers: int | None = None) -> list[Entry]:
    """Make the packages that the folder lacks; returns the entries of all, in order.

    workers: how many compile side by side (default: as many as cores and free memory allow). Raises GraphCompileError
    with the compiler's message if one fails, after those that run have ended and been added, and InvalidSetting if the
    folder cannot be written.
    """
    found = {i: entry for i, job in enumerate(jobs) if (entry := writer.sound(job.entry.key)) is not None}
    missing = [i for i in range(len(jobs)) if i not in found]
    count = max(1, min(len(missing), workers or _side_by_side()))
    tell("compiling" if missing else "nothing to compile", len(found), len(jobs))
    running: set[subprocess.Popen[bytes]] = set()
    with ThreadPoolExecutor(count) as pool:
        futures = {pool.submit(_make, jobs[i], writer, count, running): i for i in missing}
        try:
            for future in as_completed(futures):
                i = futures[future]
                found[i] = future.result()
                tell(f"{found[i].what} ({found[i].seconds:.0f} s)", len(found), len(jobs))
        except BaseException as error:
            for future in futures:
                future.cancel()
            if not isinstance(error, Exception):  # interrupted: do not wait for minutes
                for process in list(running):
                    process.kill()
            raise
    return [found[i] for i in range(len(jobs))]


def _make(job: Job, writer: Writer, count: int, running: set[subprocess.Popen[bytes]]) -> Entry:
    """One package, by a process of its own. count: how many run side by side."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="stepcache-") as folder, writer.place() as path:
        pickled, log = Path(folder, "job"), Path(folder, "log")
        with pickled.open("wb") as file:
            pickle.dump(job, file)
        environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": str(max(1, _cores() // count))}
        if count > 1:
            environment.setdefault("OMP_NUM_THREADS", "1")
        command = [sys.executable, "-m", "stepcache.packages.job", str(pickled), str(path)]
        with log.open("wb") as out:
            process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        running.add(process)
        try:
            status = process.wait()
        finally:
            running.discard(process)
        if status != 0:
            text = log.read_text(encoding="utf-8", errors="replace").strip()
            raise GraphCompileError(
                f"The package of the {job.entry.what} could not be made: the compiler's process ended with status "
                f"{status}.\n{text[-4000:]}"
            )
        seconds = round(time.perf_counter() - start, 1)

        def describe(ending: str, sha256: str, nbytes: int) -> Entry:
            name = f"{job.entry.what.replace(' graph ', '-').replace(' ', '-')}-{ending}"
            return replace(job.entry, file=name, sha256=sha256, nbytes=nbytes, seconds=seconds)

        return writer.add(path, describe, job.state.about)


def _side_by_side() -> int:
    return max(1, min(_cores(), _free_bytes() // BYTES_PER_WORKER))


def _cores() -> int:
    with suppress(AttributeError):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _free_bytes() -> int:
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return BYTES_PER_WORKER  # unknown: one
