"""Small tables for docs/models: what a GPU measured of one model, and for what fitted numbers hold."""

from __future__ import annotations

from pathlib import Path

from benchmarks.frontier.dampings import Row as DampingRow
from benchmarks.kernels.add_verdicts import DEFAULTS
from benchmarks.pages.ladder import RATIOS, label, ladders, ran, reason, seconds
from benchmarks.pages.markdown_table import caption, table
from benchmarks.pages.rivals_pages import SCHEDULERS
from benchmarks.pages.trusted import trusted
from stepcache.bench.rows import read
from stepcache.graphs.verdict_file import from_csv

GPU_MODELS = ("sd21", "sdxl")  # those that the gate measures


def gpu_table(path: Path, model: str) -> str:
    """Every variant of the model in a CSV of `stepcache bench`: a whole call, in seconds and over eager. "" if none."""
    parts = []
    for key, ladder in ladders(path).items():
        if key.model != model:
            continue
        lines = [
            (
                "" if row.interval is None else f"{row.interval}, {row.branch}",
                label(row),
                seconds(row.pipeline_s) if ran(row) else reason(row),
                "" if row.speedup is None else f"{row.speedup:.2f}x",
            )
            for row in ladder.rows
        ]
        header = ("interval, branch", "variant", "call, s", "over eager")
        parts.append(f"{key.title}:\n\n{table(header, lines)}\n\n{RATIOS}\n{caption(ladder.rigs)}")
    return "\n\n".join([*parts, *filter(None, [trusted(path).left_out])])


def auto_range_table(path: Path) -> str:
    """The settings on which the rule of predict="auto" was fitted: a line for each scheduler and number of steps."""
    found: dict[tuple[str, int], tuple[set[float], set[int]]] = {}
    for row in read(path, DampingRow):
        scales, intervals = found.setdefault((row.scheduler, row.steps), (set(), set()))
        scales.add(row.guidance_scale)
        intervals.add(row.interval)
    lines = [
        (SCHEDULERS[scheduler], f"{steps}", _listed(scales), _listed(intervals))
        for scheduler in SCHEDULERS
        for (name, steps), (scales, intervals) in sorted(found.items())
        if name == scheduler
    ]
    return table(("solver", "steps", "guidance", "intervals"), lines)


def _listed(values: set[float] | set[int]) -> str:
    return ", ".join(f"{value:g}" for value in sorted(values))


def verdicts_table(results: Path) -> str:
    """The verdicts on joins that come with the package, by what they were measured on. `results` is not used."""
    found: dict[tuple[str, ...], list[bool]] = {}
    for verdict in from_csv(DEFAULTS.read_text()):
        setup, shape = verdict.setup, verdict.shape
        key = (setup.gpu, setup.torch, setup.triton, shape.dtype, str(shape.batch))
        found.setdefault(key, []).append(verdict.for_triton)
    lines = [(*key, f"{len(faster)}", f"{sum(faster)}") for key, faster in found.items()]
    return table(("GPU", "torch", "Triton", "dtype", "batch", "joins", "faster with the kernels"), lines)
