"""Makes packages, several side by side, and adds each to the folder as soon as it is done."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ..errors import GraphCompileError
from .folder import Writer
from .job import Job
from .manifest import Entry

BYTES_PER_COMPILER = 4 << 30
"""Memory that a compiler is given when they are counted: 2 GB were seen for SD 1.5's U-Net on a CPU."""

COMMAND = (sys.executable, "-m", "stepcache.packages")

Told = Callable[[str, int, int], None]
"""Called with (what is begun or done, packages done, packages in all)."""


def build(jobs: Sequence[Job], writer: Writer, tell: Told, side_by_side: int | None = None) -> list[Entry]:
    """Make the packages that the folder lacks; returns the entries of all, in order.

    side_by_side: how many compile at once (default: as many as cores and free memory allow). If one fails, those that
    run are finished and added, and then GraphCompileError is raised with the compiler's message. Raises InvalidSetting
    if the folder cannot be written. Interrupted, it kills the compilers; what is done stays in the folder.
    """
    found = {i: entry for i, job in enumerate(jobs) if (entry := writer.sound(job.entry.key)) is not None}
    missing = [i for i in range(len(jobs)) if i not in found]
    count = max(1, min(len(missing), side_by_side or _side_by_side()))
    tell("compiling" if missing else "all there", len(found), len(jobs))
    compilers = _Compilers(count)
    failure: Exception | None = None
    futures: dict[Future[Entry], int] = {}
    with ThreadPoolExecutor(count) as pool:
        try:
            futures |= {pool.submit(_make, jobs[i], writer, compilers): i for i in missing}
            for future in as_completed(futures):
                try:
                    entry = found[futures[future]] = future.result()
                    tell(f"{entry.what} ({entry.seconds:.0f} s)", len(found), len(jobs))
                except CancelledError:
                    continue
                except Exception as error:
                    failure = failure or error
                    for other in futures:
                        other.cancel()
        except BaseException:  # interrupted: do not wait for minutes
            for future in futures:
                future.cancel()
            compilers.stop()
            raise
    if failure is not None:
        raise failure
    return [found[i] for i in range(len(jobs))]


def _make(job: Job, writer: Writer, compilers: _Compilers) -> Entry:
    """One package, made and added."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="stepcache-") as folder, writer.place() as path:
        pickled, log = Path(folder, "job"), Path(folder, "log")
        pickled.write_bytes(pickle.dumps(job))
        status = compilers.run([*COMMAND, str(pickled), str(path), str(os.getpid())], log)
        if status != 0 or not path.exists():
            text = log.read_text(encoding="utf-8", errors="replace").strip()
            raise GraphCompileError(
                f"The package of the {job.entry.what} could not be made: the compiler's process ended with status "
                f"{status}.\n{text[-4000:]}"
            )
        seconds = round(time.perf_counter() - start, 1)

        def described(sha256: str, nbytes: int) -> Entry:
            name = f"{job.entry.what.replace(' graph ', '-').replace(' ', '-')}-{sha256[:12]}.pt2"
            return replace(job.entry, file=name, sha256=sha256, nbytes=nbytes, seconds=seconds)

        return writer.add(path, described, job.state.about)


class _Compilers:
    """Processes that compile, `count` of them side by side."""

    def __init__(self, count: int) -> None:
        self._environment = _environment(os.environ, count)
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False
        self._lock = threading.Lock()

    def run(self, command: Sequence[str], log: Path) -> int:
        """Run one to its end, with its output in the file `log`; returns its exit status."""
        with log.open("wb") as out:
            with self._lock:
                if self._stopped:
                    raise CancelledError
                # A session of its own, so that it and the C++ compilers it starts can be killed together.
                process = subprocess.Popen(
                    command, env=self._environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                    start_new_session=True,
                )  # fmt: skip
                self._running.add(process)
            try:
                return process.wait()
            finally:
                with self._lock:
                    self._running.discard(process)

    def stop(self) -> None:
        """Kill those that run, and start no more."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                with suppress(OSError):
                    os.killpg(process.pid, signal.SIGKILL)


def _environment(ours: Mapping[str, str], count: int) -> dict[str, str]:
    """A compiler's environment: its share of the cores, unless the user has said how many."""
    share = {"TORCHINDUCTOR_COMPILE_THREADS": str(max(1, _cores() // count))}
    if count > 1:
        share["OMP_NUM_THREADS"] = "1"
    return {**share, **ours}


def _side_by_side() -> int:
    return max(1, min(_cores(), _free_bytes() // BYTES_PER_COMPILER))


def _cores() -> int:
    with suppress(AttributeError):  # macOS and Windows do not tell which are ours
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _free_bytes() -> int:
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return 0  # unknown
