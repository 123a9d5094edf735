"""Rows of `stepcache bench` as text: a table for each size and batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import groupby

from ..values import amount
from .schema import BenchRow

# Heading -> text of a row's cell, empty if it was not measured.
COLUMNS: dict[str, Callable[[BenchRow], str]] = {
    "I:B": lambda r: "" if r.interval is None else f"{r.interval}:{r.branch}",
    "seconds (p20-p80)": lambda r: (
        "" if r.pipeline_s is None else f"{r.pipeline_s:.3f} ({r.pipeline_s_p20:.3f}-{r.pipeline_s_p80:.3f})"
    ),
    "speed-up": lambda r: _number(r.speedup, "x"),
    "/DeepCache": lambda r: _number(r.speedup_over_deepcache, "x"),
    "U-Net s": lambda r: _number(r.unet_s),
    "U-Net speed-up": lambda r: _number(r.unet_speedup, "x"),
    "bound": lambda r: _number(r.flop_bound, "x"),
    "share": lambda r: _number(r.share),
    "PSNR": lambda r: "" if r.psnr is None else "same" if math.isinf(r.psnr) else f"{r.psnr:.1f}",
    "SSIM": lambda r: _number(r.ssim),
    "1st call": lambda r: _number(r.first_call_s, digits=1),
    "MiB": lambda r: _number(r.peak_memory_mib, digits=0),
}


LEGEND = """\
I:B: interval and branch. Speed-ups are over eager, of the whole call and of the U-Net alone: medians of the ratios
within a repeat. Bound: the U-Net's largest speed-up from skipping work alone; share: how much of it was reached. PSNR
(dB), SSIM: the images against eager's."""


def table(rows: Sequence[BenchRow]) -> str:
    """The rows as text, with a legend."""
    groups = [(head, list(group)) for head, group in groupby(rows, _head)]
    return "\n\n".join([*(f"{head}\n{_lines(group)}" for head, group in groups), LEGEND])


def _lines(rows: Sequence[BenchRow]) -> str:
    """A heading and a line for each row of one size and batch, with figures or the reason why there are none."""
    names = ["", *(_label(row) for row in rows)]
    cells = [[*COLUMNS], *([text(row) for text in COLUMNS.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    reasons = ["", *("" if row.status == "ok" else row.status for row in rows)]
    measured = [True, *(row.repeats > 0 for row in rows)]
    lines = []
    for name, line, reason, shown in zip(names, cells, reasons, measured, strict=True):
        figures = [f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)]
        parts = [f"{name:{max(map(len, names))}}", *(figures if shown else figures[:1]), reason]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def _head(row: BenchRow) -> str:
    weights = ", random weights: images mean nothing" if row.weights == "random" else ""
    guidance = f"guidance {row.guidance:g}" if row.guidance > 1 else "no guidance"
    return (
        f"{row.model}, {row.height}x{row.width}, batch {row.batch}, {amount(row.steps, 'step')} of {row.scheduler}, "
        f"{guidance}, {row.dtype} on {row.device}{weights}"
    )


def _label(row: BenchRow) -> str:
    steps = f" ({row.fewer})" if row.fewer else ""
    predict = f", predict={row.predict}" if row.predict != "hold" else ""
    return f"{row.variant}{steps}{predict}" + (f", {row.mode}" if row.mode else "")


def _number(value: float | None, unit: str = "", digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}{unit}"
