"""Tables of `stepcache bench`: a headline with one line for each setting, and the whole ladder."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.pages.ladder import (
    ALONE,
    DEEPCACHE,
    RATIOS,
    STEPCACHE,
    STOCK,
    Ladder,
    LadderKey,
    clearly_fastest,
    engine,
    fastest,
    kind,
    label,
    ladders,
    literal,
    ran,
    reason,
    reuse,
    seconds,
)
from benchmarks.pages.markdown_table import caption, table
from benchmarks.pages.trusted import trusted
from stepcache.bench.schema import BenchRow

BOUND = (
    "The FLOP bound counts operations. Compiling can exceed it; a row without compiling that does shows noise in the "
    f"eager original, or deep layers that take longer for each operation. {RATIOS}"
)
PEAK = "Stepcache's peaks include its own copy of the convolutions' weights, which only this benchmark needs."
RANDOM = "Random weights: architecture and times are real; images, and so PSNR and SSIM, mean nothing."


def headline_tables(path: Path) -> str:
    """A table for each ladder, at its first (interval, branch): the original, fewer steps, DeepCache and stepcache."""
    parts = [
        f"{headline_table(key, ladder)}\n{caption(ladder.rigs, commands=False)}"
        for key, ladder in ladders(path).items()
        if ladder.first != ALONE
    ]
    return "\n\n".join([*parts, *filter(None, [trusted(path).left_out])])


def headline_table(key: LadderKey, ladder: Ladder) -> str:
    """Each way to run, eager and compiled: seconds of a whole call and speed-up, all over one eager original."""
    (interval, branch), of_pair = ladder.first, ladder.of(ladder.first)
    ways = {
        "original": [row for row in ladder.of(ALONE) if kind(row) == STOCK],
        _fewer(of_pair, key.steps): [row for row in of_pair if kind(row) == STOCK],
        "DeepCache 0.1.1": [row for row in of_pair if kind(row) == DEEPCACHE],
        f"**stepcache**{_predicted(of_pair)}": [row for row in of_pair if kind(row) == STEPCACHE],
    }
    lines, shown = [], []
    for name, rows in ways.items():
        pair = [fastest([row for row in rows if engine(row) == each]) for each in ("eager", "compiled")]
        lines.append((name, *pair))
        shown += pair
    best = clearly_fastest(shown)
    written = [
        (name, *(_call(row, bold=row is not None and row is best) for row in pair), _bound(pair), _psnr(key, pair))
        for name, *pair in lines
        if pair != [None, None]
    ]
    header = (key.size, "eager", "compiled", "FLOP bound", "PSNR, dB")
    compiled = dict.fromkeys(label(row) for *_, row in lines if row and ran(row) and kind(row) != DEEPCACHE)
    notes = [f"{key.settings}, interval {interval}, branch {branch}. {_explained(shown, best)}"]
    if key.device == "cpu" and any(line[-1] for line in lines):
        notes.append("On a CPU, `accelerate` compiles only with `compile=True`. Empty: not measured.")
    if key.device == "cuda" and compiled:
        notes.append(f"Compiled: {', '.join(compiled)}.")
    if key.random:
        notes.append(RANDOM)
    return f"{_without_empty(header, written)}\n\n{' '.join(notes)}"


def _explained(shown: Sequence[BenchRow | None], best: BenchRow | None) -> str:
    repeats = dict.fromkeys(row.repeats for row in shown if row and ran(row))
    return (
        f"Seconds of a whole call, median of {' or '.join(map(str, repeats))}, and speed-up over the eager original of "
        f"the same run. {RATIOS} FLOP bound: the U-Net's speed-up if time followed the work."
        + (" Bold: faster than all others, with no overlap of the spreads (p20 to p80)." if best else "")
    )


def _fewer(of_pair: Sequence[BenchRow], steps: int) -> str:
    number = next((row.fewer for row in of_pair if row.fewer), None)
    return f"{number} steps instead of {steps}" if number else "fewer steps"


def _predicted(of_pair: Sequence[BenchRow]) -> str:
    predict = next((row.predict for row in of_pair if kind(row) == STEPCACHE), "hold")
    return f", `predict={literal(predict)}`" if predict != "hold" else ""


def _bound(pair: Sequence[BenchRow | None]) -> str:
    return next((f"{row.flop_bound:.2f}x" for row in pair if row and ran(row) and row.flop_bound), "")


def _psnr(key: LadderKey, pair: Sequence[BenchRow | None]) -> str:
    """Of the uncompiled one, if it ran; none for the original."""
    row = next((row for row in pair if row and ran(row)), None)
    return "" if row is None or row.interval is None else _fidelity(key, row)[0]


def ladder_tables(path: Path) -> str:
    """A table for each ladder, with all its rungs, and the rig it was measured on."""
    parts = []
    left_out = trusted(path).left_out
    for key, ladder in ladders(path).items():
        shown = [row for row in ladder.rows if reuse(row) in (ALONE, *ladder.reuses)]
        lines = [
            (
                "" if row.interval is None else f"{row.interval}, {row.branch}", label(row), _seconds_of_call(row),
                _number(row.unet_s, seconds), _number(row.eager_s, seconds), _times(row.speedup),
                _times(row.speedup_over_deepcache), _share(row), *_fidelity(key, row),
                _number(row.first_call_s, seconds), _compile(row), _number(row.peak_memory_mib, "{:.0f}".format),
            )
            for row in shown
        ]  # fmt: skip
        header = (
            "interval, branch", "variant", "call, s (p20 to p80)", "U-Net, s", "eager beside it, s", "over eager",
            "over DeepCache", "U-Net's share of FLOP bound", "PSNR, dB", "SSIM", "first call, s", "of it compiling, s",
            "peak MiB",
        )  # fmt: skip
        title = f"**{key.title}**" + (f"\n\n{RANDOM}" if key.random else "")
        parts.append(f"{title}\n\n{_without_empty(header, lines)}\n{_same_work(ladder)}{caption(ladder.rigs)}")
    peaks = any(row.peak_memory_mib for ladder in ladders(path).values() for row in ladder.rows)
    notes = " ".join(filter(None, [BOUND, PEAK * peaks, left_out])) if parts else left_out
    return "\n\n".join([*parts, notes])


def _same_work(ladder: Ladder) -> str:
    """A sentence on pairs that are not shown, or ""."""
    hidden = [pair for pair in dict.fromkeys(map(reuse, ladder.rows)) if pair not in (ALONE, *ladder.reuses)]
    if not hidden:
        return ""
    names = ", ".join(f"interval {interval}, branch {branch}" for interval, branch in hidden)
    return f"\nNot shown, because in so few steps they do the same work as a pair above: {names}.\n"


def _call(row: BenchRow | None, bold: bool = False) -> str:
    """Seconds and speed-up for the headline, or why there are none."""
    if row is None:
        return ""
    if not ran(row):
        return reason(row)
    text = f"{seconds(row.pipeline_s)} s" + (f", {row.speedup:.2f}x" if row.speedup is not None else "")
    return f"**{text}**" if bold else text


def _seconds_of_call(row: BenchRow) -> str:
    if not ran(row):
        return reason(row, longest=160)
    spread = row.pipeline_s_p20, row.pipeline_s_p80
    return seconds(row.pipeline_s) + (f" ({seconds(spread[0])} to {seconds(spread[1])})" if None not in spread else "")


def _fidelity(key: LadderKey, row: BenchRow | None) -> tuple[str, str]:
    """PSNR and SSIM; empty for random weights, whose images mean nothing."""
    if row is None or key.random:
        return "", ""
    psnr = _number(row.psnr, lambda value: "identical" if math.isinf(value) else f"{value:.1f}")
    return psnr, _number(row.ssim, "{:.3f}".format)


def _times(value: float | None) -> str:
    return _number(value, "{:.2f}x".format)


def _share(row: BenchRow) -> str:
    """The share of the FLOP bound; empty if no work is skipped."""
    return "" if row.share is None or row.interval is None else f"{row.share:.0%}"


def _compile(row: BenchRow) -> str:
    """Seconds of compiling, marked warm if some of it was on disk already. Empty for another variant's pipeline."""
    if row.fewer and not row.graphs:
        return ""
    return _number(row.compile_s, seconds) + (" (warm)" if row.graphs_cached and row.compile_s is not None else "")


def _number(value: float | None, form: Callable[[float], str]) -> str:
    return "" if value is None else form(value)


def _without_empty(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table without its empty columns."""
    shown = [n for n in range(len(header)) if any(line[n] for line in lines)]
    return table([header[n] for n in shown], [[line[n] for n in shown] for line in lines])
