"""The summary that a run of the gate prints at its end."""

from __future__ import annotations

import csv
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.console import columns
from benchmarks.gate.cells import FILE
from benchmarks.gate.jobs import RED, Outcome

Line = dict[str, str]

PROFILES = "profile_steps.csv", "profile_compiled.csv"
OURS = {"cat_group_norm_silu": "triton + shortcut", "dual_conv1x1": "triton"}
"""The variant of each kernel's benchmark to compare with Inductor's."""


def summary(out: Path, outcomes: Sequence[Outcome]) -> str:
    """Tables of the jobs and of the figures in `out`, as far as there are any."""
    parts = [
        _text(("job", "status", "s", ""), [(o.job, o.status, f"{o.seconds:.0f}", o.detail[:120]) for o in outcomes])
    ]
    if lines := _read(out / FILE):
        parts.append(_text(("cell", "variant", "call s", "U-Net", "over DC", "compile s", ""), map(_cell, lines)))
    if lines := [line for name in PROFILES for line in _read(out / name)]:
        parts.append(_text(("step", "wall ms", "busy ms", "count", "launches"), map(_step, lines)))
    for op, ours in OURS.items():
        if lines := _read(out / f"bench_{op}.csv"):
            parts.append(_kernel(op, ours, lines))
    return "\n\n".join(parts)


def _read(path: Path) -> list[Line]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _text(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return columns(header, lines, left=len(header))


def _cell(line: Line) -> Sequence[str]:
    reuse = f" ({line['interval']}, {line['branch']})" if line["interval"] else ""
    variant = f"{line['variant']}{reuse}" + f", {line['mode']}" * bool(line["mode"])
    return (
        f"{line['model']} {line['height']} b{line['batch']}",
        variant,
        _number(line["pipeline_s"], 3),
        _number(line["unet_speedup"], 2, "x"),
        _number(line["speedup_over_deepcache"], 2, "x"),
        _number(line["compile_s"], 0),
        "" if line["status"] == "ok" else line["status"][:80],
    )


def _step(line: Line) -> Sequence[str]:
    return (
        f"{line['model']} {line['variant']}, {line['kind']}",
        _number(line["wall_ms"], 2),
        _number(line["busy_ms"], 2),
        f"{float(line['count']):g} {line['unit']}",
        f"{float(line['launches']):g}" if line["launches"] else "-",
    )


def _number(text: str, digits: int, unit: str = "") -> str:
    return f"{float(text):.{digits}f}{unit}" if text else "-"


def _kernel(op: str, ours: str, lines: Sequence[Line]) -> str:
    """stepcache's time as a share of Inductor's better one, by dtype, and which variants were wrong or failed."""
    joins: dict[tuple[str, ...], dict[str, float]] = defaultdict(dict)
    for line in lines:
        if line["us"]:
            joins[line["dtype"], line["model"], line["join"]][line["variant"]] = float(line["us"])
    shares: dict[str, list[float]] = defaultdict(list)
    for (dtype, *_), times in joins.items():
        rivals = [us for variant, us in times.items() if variant.startswith("inductor")]
        if ours in times and rivals:
            shares[dtype].append(times[ours] / min(rivals))
    texts = [
        f"{op}, {dtype}: {statistics.median(values):.2f} of Inductor's time (median), faster at "
        f"{sum(value < 1 for value in values)} of {len(values)} joins"
        for dtype, values in shares.items()
    ]
    if red := [f"{line['variant']} at {line['model']} join {line['join']}" for line in lines if not line["us"]]:
        texts.append(f"{op}: {RED}, wrong or failed: {', '.join(red)}")
    return "\n".join(texts)
