"""The table of plans.csv."""

from __future__ import annotations

from pathlib import Path

from benchmarks.frontier.plans import Row
from benchmarks.pages.markdown_table import caption, table
from stepcache.bench.rows import Rig, read
from stepcache.images.bootstrap import Difference


def plans_table(path: Path) -> str:
    """A line for each setting and budget: the earlier search's plan, that of the table of segments, and the gain."""
    found: dict[tuple[str, int, float, float], dict[str, Row]] = {}
    for row in read(path, Row):
        found.setdefault((row.scheduler, row.steps, row.guidance_scale, row.budget), {})[row.method] = row
    lines = []
    for (scheduler, steps, guidance, budget), rows in found.items():
        before, after = rows["search"], rows["segments"]
        assert after.gain is not None and after.gain_low is not None and after.gain_high is not None
        gain = Difference(after.gain, after.gain_low, after.gain_high)
        lines.append(
            (
                f"{scheduler}, {steps} steps, guidance {guidance:g}", f"{budget:g}x",
                f"{before.psnr:.1f}", f"{after.psnr:.1f}", f"**{gain}**" if gain.better else str(gain),
                f"{before.seconds:.0f}, {after.seconds:.0f}",
            )
        )  # fmt: skip
    header = ("setting", "budget", "earlier search, dB", "with the table, dB", "gain", "seconds for all budgets")
    return table(header, lines) + "\n" + caption(read(path, Rig))
