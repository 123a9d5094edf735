"""The grid of sizes, batches and (interval, branch) pairs, with every variant of the ladder in each cell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from stepcache.errors import InvalidSetting, StepCacheError
from stepcache.forwards import family_of
from stepcache.forwards.macs import BranchMacs, branch_macs, meta_unet
from stepcache.images.make import Request
from stepcache.images.pipelines import DTYPES, default_device
from stepcache.images.schedulers import SCHEDULERS, swap_scheduler
from stepcache.progress import progress
from stepcache.reuse.schedule import Schedule
from stepcache.settings import Settings
from stepcache.values import positive_int

from .cell import RUNS, Cell
from .cell_rows import rows_of
from .fewer import fewer_steps
from .heap import keep_heap
from .models import Model, load
from .rows import check_out, write
from .schema import BenchRow
from .variants import LADDER, MODES, Predict, Variant, ladder

_PIXELS = 8  # the pipelines take multiples of it only


@dataclass(frozen=True)
class GridSpec:
    """What is measured.

    model: "demo", "sd15", "sd21", "sdxl", or a local pipeline's directory. sizes: (height, width) in pixels; empty: the
    model's own. reuse: (interval, branch) pairs. variants: keys of `LADDER`, the most important first, in case the run
    is cut short. modes: of torch.compile, for variants that have them. guidance: 1 is none. predict: as in
    `accelerate`, of stepcache's variants. dtype: "auto" is float16 on CUDA, float32 on a CPU. seed: of a call's first
    image. backend: of torch.compile.
    """

    model: str = "demo"
    sizes: Sequence[tuple[int, int]] = ()
    batches: Sequence[int] = (1,)
    reuse: Sequence[tuple[int, int]] = ((3, 0), (5, 0), (5, 1))
    variants: Sequence[str] = tuple(LADDER)
    modes: Sequence[str] = MODES
    steps: int = 50
    guidance: float = 7.5
    repeats: int = 5
    scheduler: str = "ddim"
    predict: Predict = "hold"
    dtype: str = "auto"
    device: str = "auto"
    seed: int = 0
    backend: str = "inductor"

    def __post_init__(self) -> None:
        for name in ("sizes", "batches", "reuse", "variants", "modes"):
            object.__setattr__(self, name, tuple(dict.fromkeys(getattr(self, name))))
        for name, values in (("batch", self.batches), ("reuse", self.reuse)):
            if not values:
                raise InvalidSetting(f"The grid has no {name}: name at least one.")
        for height, width in self.sizes:
            for pixels in (height, width):
                if positive_int("size", pixels, at_least=2 * _PIXELS) % _PIXELS:
                    raise InvalidSetting(f"size must be a multiple of {_PIXELS} pixels, got {height}x{width}.")
        for batch in self.batches:
            positive_int("batch", batch)
        for interval, _ in self.reuse:
            Schedule.uniform(interval)
        Settings.check(3, 0, predict=self.predict)
        positive_int("steps", self.steps)
        positive_int("repeats", self.repeats)
        _known("variants", self.variants, LADDER)
        _known("modes", self.modes, MODES)
        _known("scheduler", [self.scheduler], SCHEDULERS)
        _known("dtype", [self.dtype], ("auto", *DTYPES))
        _known("device", [self.device], ("auto", "cuda", "cpu"))
        if self.device == "cuda" and not torch.cuda.is_available():
            raise InvalidSetting("device is cuda, but torch sees no CUDA device here. Use auto or cpu.")

    @property
    def where(self) -> str:
        """The device, "cuda" or "cpu"."""
        return default_device() if self.device == "auto" else self.device

    @property
    def precision(self) -> torch.dtype:
        """The dtype of the whole pipeline."""
        auto = "float16" if self.where == "cuda" else "float32"
        return DTYPES[auto if self.dtype == "auto" else self.dtype]

    def cells(self, sizes: Sequence[tuple[int, int]]) -> Iterator[_CellSpec]:
        """The cells of the grid.

        Variants without reuse are measured in the first cell of each size and batch. Eager also runs in the others, as
        the base of their speed-ups.
        """
        for size in sizes:
            for batch in self.batches:
                for pair in self.reuse:
                    variants = ladder(self.variants, self.modes, pair, self.predict)
                    if pair != self.reuse[0]:
                        variants = [variant for variant in variants if variant.interval or variant.key == "eager"]
                        if not any(variant.interval for variant in variants):
                            continue
                    yield _CellSpec(size, batch, pair, variants)


class _CellSpec(NamedTuple):
    size: tuple[int, int]
    batch: int
    reuse: tuple[int, int]
    variants: list[Variant]


def run_grid(spec: GridSpec, out: Path, deadline: float | None = None) -> list[BenchRow]:
    """Measure the grid cell by cell, add each cell's rows to the CSV `out`, and return all of them.

    A variant that fails, runs out of memory or cannot run here is a row with the reason. deadline: of time.monotonic;
    variants that have not started by then are rows that say so, and a running cell ends after its current repeat, but
    not before its first. A KeyboardInterrupt is passed on once the finished repeats are in the file.

    On a CPU, for the rest of the process, glibc keeps its heap (heap.py) and denormals, which random weights drift
    into, are flushed to zero. After each cell, everything that torch has compiled in this process is dropped. Raises
    StepCacheError before measuring for a file with other columns, a branch that the U-Net does not have, or a
    directory without a pipeline.
    """
    check_out(out, BenchRow)
    if spec.where == "cpu":
        keep_heap()
        torch.set_flush_denormal(True)
    model = load(spec.model, spec.where, spec.precision)
    swap_scheduler(model.pipe, spec.scheduler, spec.steps)
    layout = family_of(model.pipe.unet).layout(model.pipe.unet)
    for _, branch in spec.reuse:
        layout.cut(branch)
    cells = list(spec.cells(spec.sizes or [model.size()]))
    runs = sum(len(cell.variants) for cell in cells) * (RUNS + spec.repeats)
    rows: list[BenchRow] = []
    with progress("warm-up", runs, "runs") as bar:
        _warm_up(model.pipe, _request(spec, model, *cells[0][:2]))
        for i, (size, batch, (interval, branch), variants) in enumerate(cells):
            again = i > 0 and cells[i - 1][:2] == (size, batch)
            counts = _counts(model.pipe, size, [branch for _, branch in spec.reuse])
            cell = Cell(
                model.pipe,
                _request(spec, model, size, batch),
                variants,
                device=spec.where,
                backend=spec.backend,
                fewer=fewer_steps(model.pipe.scheduler, spec.steps, interval, counts.get(branch)),
                deadline=deadline,
                progress=bar,
            )
            try:
                cell.measure(spec.repeats)
            finally:
                new = rows_of(cell.entries, counts, _where(spec, model, size, batch))
                new = [row for row in new if not (again and row.interval is None)]
                write(out, new, append=True)
                rows += new
                cell.close()
        bar.set_description_str("done")
    return rows


def _known(name: str, values: Sequence[str], known: Any) -> None:
    if not values or set(values) - set(known):
        raise InvalidSetting(f"{name} must be among {', '.join(known)}; got {', '.join(values) or 'none'}.")


def _request(spec: GridSpec, model: Model, size: tuple[int, int], batch: int) -> Request:
    prompts = list(islice(cycle(model.prompts), batch))
    call = {"height": size[0], "width": size[1], "guidance_scale": spec.guidance}
    return Request(prompts, range(spec.seed, spec.seed + batch), spec.steps, call)


def _where(spec: GridSpec, model: Model, size: tuple[int, int], batch: int) -> dict[str, Any]:
    """The columns that all rows of a cell share."""
    return {
        "model": model.name,
        "weights": model.weights,
        "device": spec.where,
        "dtype": str(spec.precision).removeprefix("torch."),
        "scheduler": type(model.pipe.scheduler).__name__,
        "steps": spec.steps,
        "guidance": spec.guidance,
        "height": size[0],
        "width": size[1],
        "batch": batch,
    }


def _warm_up(pipe: Any, request: Request) -> None:
    """Two steps of the plain pipeline, so that the first variant does not pay what a process pays once."""
    with suppress(Exception):  # it comes again in the cell's runs, whose rows give the reason
        request.make(pipe, steps=min(2, request.steps), allow_nan=True)


def _counts(pipe: Any, size: tuple[int, int], branches: Sequence[int]) -> Mapping[int, BranchMacs]:
    """MACs by branch; empty if they cannot be counted."""
    factor, unet = pipe.vae_scale_factor, pipe.unet
    try:
        rows = branch_macs(meta_unet(unet.config), size[0] // factor, size[1] // factor, 2, dict.fromkeys(branches))
        return {row.branch: row for row in rows}
    except StepCacheError:
        return {}
