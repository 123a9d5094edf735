"""The tables and figures of frontier.csv."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from benchmarks.frontier.rows import (
    AIMS,
    CALIBRATED,
    HIGH,
    LOW,
    Row,
    by_setting,
    deepcache,
    front,
    gains,
    settings_of_accelerate,
)
from benchmarks.pages.figures import Figure
from benchmarks.pages.markdown_table import caption, table
from benchmarks.pages.plots import Point, draw_points
from stepcache.bench.rows import Rig, read

SHOWN = (("dpm++", 50, 7.5), ("dpm++", 20, 7.5))  # as figures; the table has all settings


def frontier_table(path: Path) -> str:
    """A line for each setting: DeepCache's and stepcache's best at the costs of DeepCache's front."""
    lines = []
    for setting, rows in by_setting(read(path, Row)).items():
        found = gains(rows)
        cells = [
            f"{gain.theirs.speedup_macs:.2f}x: {gain.theirs.psnr:.1f} → {gain.ours.psnr:.1f} ({gain.decibel:+.1f})"
            for gain in found
        ]
        least = min((gain.decibel for gain in found), default=float("nan"))
        aim = AIMS.get(setting.steps)
        verdict = "" if aim is None else (f"≥ {aim:g}: yes" if least >= aim else f"≥ {aim:g}: **no**")
        lines.append((str(setting), "<br>".join(cells), f"{least:+.1f}", verdict))
    header = ("setting", "at a speed-up in MACs of: DeepCache's algorithm → stepcache, dB", "least gain", "aim")
    return table(header, lines) + "\n" + caption(read(path, Rig))


def _calibrated(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.method == CALIBRATED]


def frontier_figures(path: Path) -> list[Figure]:
    """Fidelity against cost for the settings in SHOWN."""
    figures = []
    for setting, rows in by_setting(read(path, Row)).items():
        if setting[1:] in SHOWN:
            title = f"{setting.model}: {setting}"
            draw = partial(
                draw_points, _points(rows), title=title, x="speed-up of the U-Net in MACs",
                y="PSNR against the original's images, dB; held-out prompts, three seeds",
            )  # fmt: skip
            figures.append(Figure(f"frontier_{setting.steps}", f"Fidelity against cost, {title}", draw))
    return figures


def _points(rows: list[Row]) -> list[Point]:
    groups = {
        "DeepCache's algorithm": (deepcache(rows), False),
        "predict and guidance": (settings_of_accelerate(rows), True),
        "calibrated plans": (_calibrated(rows), True),
    }
    return [
        Point(name, row.speedup_macs, row.psnr, "", ours)
        for name, (group, ours) in groups.items()
        for row in front(group)
        if 0.9 * LOW <= row.speedup_macs <= 1.1 * HIGH
    ]
