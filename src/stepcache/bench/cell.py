"""One cell of the grid: each variant is started once, then all run in turn."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from ..api import last_run
from ..images.make import Request
from ..run.record import RunRecord
from .calls import Timed, UNetClock, timed
from .entries import Entry
from .variants import Variant

OUT_OF_TIME = "not run: out of time"
RUNS = 2  # per variant before the repeats: the first call, and a warm one for caches and peak memory

Result = TypeVar("Result")


class Cell:
    """All variants of `pipe` at one size, batch, interval and branch.

    fewer: steps that cost no more than interval and branch do; None if that is not known. backend: of torch.compile.
    deadline: of `time.monotonic`; after it no variant starts, and no repeat but the first.
    """

    def __init__(
        self,
        pipe: Any,
        request: Request,
        variants: Sequence[Variant],
        *,
        device: str,
        backend: str,
        fewer: int | None,
        deadline: float | None,
        progress: tqdm,
    ) -> None:
        self.entries = [Entry(variant) for variant in variants]
        self._pipe, self._request, self._device, self._backend = pipe, request, device, backend
        for entry in self.entries:
            entry.steps = fewer if entry.variant.shortens else None
        self._deadline, self._progress = deadline, progress
        self._base = self._reserved()

    def measure(self, repeats: int) -> None:
        """Start every variant in order, then run all of them `repeats` times, each time starting with another one."""
        for entry in self.entries:
            if missing := entry.variant.missing(self._device):
                entry.status = f"not available: {missing}"
            elif entry.variant.shortens and entry.steps is None:
                entry.status = "not available: no smaller number of steps is known to cost no more than the reuse"
            elif self._late():
                entry.status = OUT_OF_TIME
            else:
                self._attempt(entry, "first call", self._start)
            self._progress.update(RUNS)
        for repeat in range(repeats):
            if repeat > 0 and self._late():
                self._progress.update((repeats - repeat) * len(self.entries))
                break
            first = repeat % len(self.entries)
            runs = []
            for entry in self.entries[first:] + self.entries[:first]:
                if not entry.status:
                    runs.append((entry, self._attempt(entry, f"repeat {repeat + 1}", self._run)))
                self._progress.update()
            for entry, run in runs:  # only whole repeats count: speed-ups are ratios within one
                if run is not None:
                    entry.repeats.append(run)

    def close(self) -> None:
        """Free the variants and what torch has compiled for them."""
        for entry in self.entries:
            entry.drop()
        torch.compiler.reset()
        self._free()

    def _start(self, entry: Entry) -> None:
        before, graphs = self._reserved(), _graphs()
        start = time.perf_counter()
        original = self._original(entry.variant)
        entry.shares = original is not None
        entry.pipe, entry.clock = (original.pipe, original.clock) if original else self._made(entry.variant)
        self._run(entry)
        entry.first_call_s = time.perf_counter() - start
        entry.graphs, entry.graphs_cached = (now - then for now, then in zip(_graphs(), graphs, strict=True))
        if entry.variant.captures and _record(entry.pipe).captures < len(set(entry.kinds)):
            # It would run uncaptured, as another variant.
            raise RuntimeError("stepcache did not capture its graphs; its warning says why")
        if self._device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self._run(entry)
        if original is not None:
            entry.peak_memory_mib = original.peak_memory_mib
        elif self._device == "cuda":
            # Reserved memory, since captured graphs' memory does not count as allocated; without that of the variants
            # before this one.
            entry.peak_memory_mib = (torch.cuda.max_memory_reserved() - before + self._base) / 2**20

    def _made(self, variant: Variant) -> tuple[Any, UNetClock]:
        pipe = variant.put_on(self._pipe, self._backend)
        return pipe, UNetClock(pipe.unet, self._device)

    def _original(self, variant: Variant) -> Entry | None:
        """For fewer steps, the entry whose pipeline does the same in each of them, if it has started."""
        started = (entry for entry in self.entries if entry.clock is not None and variant.shortens)
        return next((entry for entry in started if entry.variant == variant.original), None)

    def _run(self, entry: Entry) -> Timed:
        assert entry.clock is not None
        run = timed(self._request, entry.pipe, entry.clock, entry.steps)
        if entry.variant.key.startswith("stepcache"):
            entry.kinds = _record(entry.pipe).kinds
        return run

    def _attempt(self, entry: Entry, what: str, run: Callable[[Entry], Result]) -> Result | None:
        """What `run` returns; if it fails, the entry gets the reason and releases its memory."""
        reuse = "" if entry.variant.interval is None else f" {entry.variant.interval}:{entry.variant.branch}"
        call, batch = self._request.call, len(self._request.prompt)
        where = f"{call['height']}x{call['width']}, batch {batch}"
        self._progress.set_description_str(f"{entry.variant.label}{reuse}: {what}; {where}")
        try:
            return run(entry)
        except Exception as error:  # a variant that fails is a row, and the others go on
            entry.status = self._reason(entry, error)
        # Only now: the exception's traceback held the tensors of all its frames.
        entry.drop()
        self._free()
        return None

    def _reason(self, entry: Entry, error: Exception) -> str:
        text = " ".join(str(error).split())
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in text:
            others = len({id(other.pipe) for other in self.entries if other is not entry} - {id(None), id(entry.pipe)})
            return f"out of memory, with {others} other variants held: {text[:200]}"
        return f"failed: {type(error).__name__}: {text[:300]}"

    def _late(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline

    def _free(self) -> None:
        gc.collect()
        if self._device == "cuda":
            torch.cuda.empty_cache()

    def _reserved(self) -> int:
        """Bytes that torch holds on the GPU for live tensors and captured graphs' pools; 0 on a CPU."""
        if self._device != "cuda":
            return 0
        self._free()
        return torch.cuda.memory_reserved()


def _record(pipe: object) -> RunRecord:
    record = last_run(pipe)
    assert record is not None
    return record


def _graphs() -> tuple[int, int]:
    """The number of graphs that Dynamo has made in this process, and of those that torch had on disk."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"], counters["aot_autograd"]["autograd_cache_hit"]
