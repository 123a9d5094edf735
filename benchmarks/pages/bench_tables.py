"""Tables of `stepcache bench`: a headline with one line for each setting, and the whole ladder."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.pages.ladder import (
    DEEPCACHE,
    STEPCACHE,
    STOCK,
    CellKey,
    cells,
    fastest,
    kind,
    label,
    ran,
    reason,
    reuse,
    reuses,
    seconds,
)
from benchmarks.pages.markdown_table import caption, table
from benchmarks.pages.trusted import trusted
from stepcache.bench.schema import BenchRow

SHOWN = (
    "Seconds of a whole call and its speed-up over eager. For torch.compile, DeepCache 0.1.1 (with or without "
    "torch.compile) and stepcache, the fastest variant is shown."
)
BOUND = "Skipping work alone reaches at most 100% of the FLOP bound; compiling can exceed it."
RANDOM = "Random weights: architecture and times are real; images, and so PSNR and SSIM, mean nothing."
HEADLINE = (3, 0), (5, 0), (5, 1)  # (interval, branch), as on diffusers' page about DeepCache


def headline_table(path: Path) -> str:
    """A line for each cell and each (interval, branch) of HEADLINE: eager, and the fastest rung of each kind."""
    lines, found, (_, rigs, left_out) = [], cells(path), trusted(path)
    if not found:
        return left_out
    for cell, rows in found.items():
        eager = fastest([row for row in rows if kind(row) == STOCK and not row.mode])
        compiled = fastest([row for row in rows if kind(row) == STOCK and row.mode])
        for pair in [pair for pair in reuses(rows) if pair in HEADLINE]:
            of_pair = [row for row in rows if reuse(row) == pair]
            theirs, ours = (fastest([row for row in of_pair if kind(row) == name]) for name in (DEEPCACHE, STEPCACHE))
            which = label(ours).removeprefix(f"{STEPCACHE} ") if ours and ran(ours) else ""
            lines.append(
                (
                    cell.size, f"{pair[0]}, {pair[1]}", _call(eager, over=False), _call(compiled), _call(theirs),
                    f"**{_call(ours)}**", which, _share(ours), *_fidelity(cell, ours),
                )
            )  # fmt: skip
    header = (
        "", "interval, branch", "eager", "torch.compile", "DeepCache", "stepcache", "its variant",
        "U-Net's share of FLOP bound", "PSNR, dB", "SSIM",
    )  # fmt: skip
    notes = [f"{'; '.join(dict.fromkeys(cell.settings for cell in found))}. {SHOWN} {BOUND}"]
    if any(cell.random for cell in found):
        notes.append(RANDOM)
    if left_out:
        notes.append(left_out)
    return _without_empty(header, lines) + "\n\n" + " ".join(notes) + "\n" + caption(rigs)


def ladder_tables(path: Path) -> str:
    """A table for each cell, with all its rungs."""
    parts = []
    _, rigs, left_out = trusted(path)
    for cell, rows in cells(path).items():
        lines = [
            (
                "" if row.interval is None else f"{row.interval}, {row.branch}", label(row), _seconds_of_call(row),
                _number(row.unet_s, seconds), _times(row.speedup), _times(row.speedup_over_deepcache),
                _share(row), *_fidelity(cell, row), _number(row.first_call_s, seconds),
                _compile(row), _number(row.peak_memory_mib, "{:.0f}".format),
            )
            for row in rows
        ]  # fmt: skip
        header = (
            "interval, branch", "variant", "call, s (p20 to p80)", "U-Net, s", "over eager", "over DeepCache",
            "U-Net's share of FLOP bound", "PSNR, dB", "SSIM", "first call, s", "of it compiling, s", "peak MiB",
        )  # fmt: skip
        title = f"**{cell.title}**" + (f"\n\n{RANDOM}" if cell.random else "")
        parts.append(f"{title}\n\n{_without_empty(header, lines)}\n")
    notes = f"{BOUND} {left_out}".rstrip() if parts else left_out
    return "\n".join([*parts, notes]) + "\n" + caption(rigs)


def _call(row: BenchRow | None, over: bool = True) -> str:
    """Seconds and speed-up for the headline, or why there are none."""
    if row is None:
        return "not measured"
    if not ran(row):
        return reason(row)
    return f"{seconds(row.pipeline_s)} s" + (f", {row.speedup:.2f}x" if over and row.speedup is not None else "")


def _seconds_of_call(row: BenchRow) -> str:
    if not ran(row):
        return reason(row, longest=160)
    spread = row.pipeline_s_p20, row.pipeline_s_p80
    return seconds(row.pipeline_s) + (f" ({seconds(spread[0])} to {seconds(spread[1])})" if None not in spread else "")


def _fidelity(cell: CellKey, row: BenchRow | None) -> tuple[str, str]:
    """PSNR and SSIM; empty for random weights, whose images mean nothing."""
    if row is None or cell.random:
        return "", ""
    psnr = _number(row.psnr, lambda value: "identical" if math.isinf(value) else f"{value:.1f}")
    return psnr, _number(row.ssim, "{:.3f}".format)


def _times(value: float | None) -> str:
    return _number(value, "{:.2f}x".format)


def _share(row: BenchRow | None) -> str:
    """The share of the FLOP bound; empty if no work is skipped."""
    return "" if row is None or row.share is None or row.interval is None else f"{row.share:.0%}"


def _compile(row: BenchRow) -> str:
    """Seconds of compiling, marked warm if some of it was on disk already."""
    return _number(row.compile_s, seconds) + (" (warm)" if row.graphs_cached and row.compile_s is not None else "")


def _number(value: float | None, form: Callable[[float], str]) -> str:
    return "" if value is None else form(value)


def _without_empty(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table without its empty columns."""
    shown = [n for n in range(len(header)) if any(line[n] for line in lines)]
    return table([header[n] for n in shown], [[line[n] for n in shown] for line in lines])
