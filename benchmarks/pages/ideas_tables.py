"""The tables of ideas.csv and stability.csv."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from benchmarks.frontier import stability
from benchmarks.frontier.ideas import BASELINE, Row
from benchmarks.pages.markdown_table import caption, table
from stepcache.bench.rows import Rig, read
from stepcache.images.fidelity import signed

WORTH = 0.5
"""Gains of at least so many dB, and of at least two standard errors, are set in bold."""


def ideas_table(path: Path) -> str:
    """A line for each idea: its gain over the best fixed pair in each setting, and what it costs beside it."""
    rows = read(path, Row)
    settings = list(dict.fromkeys(map(_setting, rows)))
    best = {_setting(row): row for row in rows if row.idea == BASELINE and row.setting == row.baseline}
    lines = [["the best fixed pair, dB", *(f"{best[each].psnr:.1f} ({best[each].setting})" for each in settings), ""]]
    for idea in dict.fromkeys(row.idea for row in rows if row.idea != BASELINE):
        found = {_setting(row): row for row in rows if row.idea == idea}
        costs = [row.cost / best[each].cost - 1 for each, row in found.items()]
        lines.append([idea, *(_gain(found[each]) if each in found else "" for each in settings), _spread(costs)])
    header = ["", *(f"{scheduler}, {steps} steps, g {guidance:g}, interval {interval}"
                    for scheduler, steps, guidance, interval in settings), "cost"]  # fmt: skip
    return table(header, lines) + "\n" + caption(read(path, Rig))


def _setting(row: Row) -> tuple[str, int, float, int]:
    return row.scheduler, row.steps, row.guidance_scale, row.interval


def _gain(row: Row) -> str:
    text = f"{signed(row.gain)} ± {row.gain_error:.1f}"
    return f"**{text}**" if row.gain >= max(WORTH, 2 * row.gain_error) else text


def _spread(costs: Iterable[float]) -> str:
    """Relative costs as a range: "+6 %", "-8 to -4 %"."""
    low, high = (signed(100 * end, 0) for end in (min(costs), max(costs)))
    if low == high:
        return "same" if low == "+0" else f"{low} %"
    return f"{low} to {high} %"


def stability_table(path: Path) -> str:
    """The model's limit and the measured growth for each way to skip, at first and at second order."""
    rows = read(path, stability.Row)
    ways: dict[tuple[int, float, float], dict[tuple[int, float], stability.Row]] = {}
    for row in rows:
        ways.setdefault((row.interval, row.mean, row.difference), {})[row.order, row.guidance_scale] = row
    scales = sorted({row.guidance_scale for row in rows})
    lines = []
    for (interval, mean, difference), found in ways.items():
        pairs = [[f"{found[order, scales[0]].limit:.2f}" for order in stability.ORDERS]]
        pairs += [[f"{found[order, scale].growth:.2f}" for order in stability.ORDERS] for scale in scales]
        skipped = "full steps only" if interval == 1 else f"interval {interval}, {mean:g}, {difference:g}"
        lines.append([skipped, *(" → ".join(pair) for pair in pairs)])
    header = ["mean, difference", "limit of the model", *(f"growth at guidance {scale:g}" for scale in scales)]
    return table(header, lines) + "\n" + caption(read(path, Rig))
