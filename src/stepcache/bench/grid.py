"""The grid of sizes, batches and (interval, branch) pairs, with every variant of the ladder in each cell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..errors import StepCacheError
from ..forwards import family_of
from ..forwards.macs import BranchMacs, branch_macs, meta_unet
from ..images.make import Request, check_text_to_image
from ..images.models import Model, load
from ..images.schedulers import swap_scheduler
from ..progress import progress
from .cell import RUNS, Cell
from .cell_rows import rows_of
from .fewer import fewer_steps
from .heap import keep_heap
from .rows import check_out, write
from .schema import BenchRow
from .spec import GridSpec
from .variants import Variant, ladder

# Arguments that a pipeline's call must take.
NEEDED = {"prompt", "height", "width", "num_inference_steps", "guidance_scale", "generator", "output_type"}


class _CellSpec(NamedTuple):
    size: tuple[int, int]
    batch: int
    reuse: tuple[int, int]
    variants: list[Variant]


def _cells(spec: GridSpec, sizes: Sequence[tuple[int, int]]) -> Iterator[_CellSpec]:
    """The cells of the grid.

    Variants without reuse are measured in the first cell of each size and batch. Eager also runs in the others, as
    the base of their speed-ups.
    """
    for size in sizes:
        for batch in spec.batches:
            for pair in spec.reuse:
                variants = ladder(spec.variants, spec.modes, pair, spec.predict)
                if pair != spec.reuse[0]:
                    variants = [variant for variant in variants if variant.interval or variant.key == "eager"]
                    if not any(variant.interval for variant in variants):
                        continue
                yield _CellSpec(size, batch, pair, variants)


def run_grid(
    spec: GridSpec, out: Path, deadline: float | None = None, rows: list[BenchRow] | None = None
) -> list[BenchRow]:
    """Measure the grid cell by cell, add each cell's rows to the CSV `out`, and return all of them.

    A variant that fails, runs out of memory or cannot run here is a row with the reason. deadline: of time.monotonic;
    variants that have not started by then are rows that say so, and a running cell ends after its current repeat, but
    not before its first. A KeyboardInterrupt is passed on once the finished repeats are in the file. rows: a list that
    each cell's are added to, for callers that go on from an interrupt.

    For the rest of the process: on a CPU, glibc keeps its heap (heap.py) and denormals, which random weights drift
    into, are flushed to zero; a GPU that the spec names by its number becomes the current one. After each cell,
    everything that torch has compiled in this process is dropped. Raises StepCacheError before measuring for a file
    with other columns, a branch that the U-Net does not have, or a directory without a text-to-image pipeline.
    """
    check_out(out, BenchRow)
    if spec.where == "cpu":
        keep_heap()
        torch.set_flush_denormal(True)
    elif spec.device is not None and ":" in spec.device:
        torch.cuda.set_device(spec.device)  # memory and events are the current device's
    model = load(spec.model, spec.where, spec.precision, spec.variant)
    check_text_to_image(model.pipe, NEEDED, "bench")
    swap_scheduler(model.pipe, spec.scheduler, spec.steps)
    layout = family_of(model.pipe.unet).layout(model.pipe.unet)
    for _, branch in spec.reuse:
        layout.cut(branch)
    cells = list(_cells(spec, spec.sizes or [model.size()]))
    runs = sum(len(cell.variants) for cell in cells) * (RUNS + spec.repeats)
    rows = [] if rows is None else rows
    with progress("warm-up", runs, "runs") as bar:
        _warm_up(model.pipe, _request(spec, model, *cells[0][:2]))
        for i, (size, batch, (interval, branch), variants) in enumerate(cells):
            again = i > 0 and cells[i - 1][:2] == (size, batch)
            counts = _counts(model, size, [branch for _, branch in spec.reuse])
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
                with closing(cell):
                    new = rows_of(cell.entries, counts, _where(spec, model, size, batch))
                    new = [row for row in new if not (again and row.interval is None)]
                    write(out, new, append=True)
                    rows += new
        bar.set_description_str("done")
    return rows


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


def _counts(model: Model, size: tuple[int, int], branches: Sequence[int]) -> Mapping[int, BranchMacs]:
    """MACs by branch; empty if they cannot be counted."""
    factor, unet = model.pixels_per_latent, model.pipe.unet
    try:
        rows = branch_macs(meta_unet(unet.config), size[0] // factor, size[1] // factor, 2, dict.fromkeys(branches))
        return {row.branch: row for row in rows}
    except StepCacheError:
        return {}
