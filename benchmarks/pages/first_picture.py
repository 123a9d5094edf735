"""The README's first picture: whole calls of real pipelines, each way to run beside the original.

A panel is one run: its bars are seconds of a call, as a share of the eager original's. A mark shows how far skipping
work alone could bring it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure as Canvas

from benchmarks.pages.canvas import (
    POINT,
    SETTINGS,
    SMALL,
    add_note,
    add_title,
    fractions,
    inches,
    plain,
    svg_of,
)
from benchmarks.pages.figures import WIDTH, Figure, Theme
from benchmarks.pages.ladder import (
    ALONE,
    DEEPCACHE,
    MODELS,
    RATIOS,
    STEPCACHE,
    STOCK,
    Ladder,
    LadderKey,
    engine,
    fastest,
    kind,
    ladders,
    ran,
    seconds,
)
from stepcache.bench.schema import BenchRow
from stepcache.images.fidelity import in_words

# In reading order, two in a line.
SOURCES = ("bench_gpu.csv", "bench_sd21_cpu.csv", "bench_sdxl_cpu.csv", "bench_demo.csv")
LEFT, RIGHT, TOP, HEAD, BAR, GAP = 140, 150, 84, 44, 22, 14  # pixels


@dataclass(frozen=True)
class Bar:
    """A way to run: the fastest row of its kind. best: seconds if the U-Net's time followed the skipped work."""

    name: str
    row: BenchRow
    best: float | None = None

    @property
    def figures(self) -> str:
        """Seconds, speed-up, and with trained weights PSNR; for the original only seconds."""
        row = self.row
        speedup = f", {row.speedup:.2f}x" if row.speedup is not None and self.name != "original" else ""
        lossy = row.weights != "random" and row.interval is not None and row.psnr is not None
        return f"{seconds(row.pipeline_s)} s{speedup}" + (f", {in_words(row.psnr)}" if lossy else "")


@dataclass(frozen=True)
class Panel:
    """The bars of one ladder at one (interval, branch)."""

    title: str
    below: str
    bars: tuple[Bar, ...]


def first_picture(results: Path) -> list[Figure] | None:
    """The figure from the CSVs that are there; None if none is."""
    paths = [results / name for name in SOURCES if (results / name).exists()]
    found: dict[str, Panel] = {}
    for path in paths:
        for key, ladder in ladders(path).items():
            one = panel(key, ladder)
            if one.bars and one.bars[0].name == "original":
                found.setdefault(one.title, one)  # a GPU's run has a ladder for each question; the first has all rungs
    panels = list(found.values())
    if not panels:
        return None
    lines = [f"{one.title}: {'; '.join(f'{bar.name} {bar.figures}' for bar in one.bars)}." for one in panels]
    alt = " ".join(["Seconds of whole pipeline calls, and speed-up over the eager original.", *lines, RATIOS])
    return [Figure("first_picture", alt, partial(draw, panels))]


def panel(key: LadderKey, ladder: Ladder) -> Panel:
    """The original, eager and compiled, and the fastest of each way to do less work at the first (interval, branch)."""
    pair = ladder.first
    rows = ladder.of(pair) if pair != ALONE else []
    eager = fastest([row for row in ladder.of(ALONE) if not row.mode])
    number = next((row.fewer for row in rows if row.fewer), None)
    ways = {
        "original": [eager] if eager else [],
        "torch.compile": [row for row in ladder.of(ALONE) if row.mode],
        f"{number} steps": [row for row in rows if kind(row) == STOCK],
        "DeepCache": [row for row in rows if kind(row) == DEEPCACHE],
        "stepcache": [row for row in rows if kind(row) == STEPCACHE],
    }
    bars = []
    for name, of_way in ways.items():
        row = fastest(of_way)
        if row and ran(row):
            # The original's two bars are named after what they are already.
            named = name if name in ("original", "torch.compile") else f"{name}, {engine(row)}"
            bars.append(Bar(named, row, _best(row, eager) if kind(row) == STEPCACHE else None))
    guided = f"{key.steps} steps" + (f", interval {pair[0]}" if pair != ALONE else "")
    # A machine with a GPU has it in its rig, also for what ran on its CPU.
    where = key.gpu.removeprefix("NVIDIA ").partition(" ")[0] if key.device == "cuda" else "CPU"
    threads = "" if where != "CPU" else f", {key.threads} thread" + "s" * (key.threads > 1)
    random = ", random weights" if key.random else ""
    title = f"{MODELS.get(key.model, key.model)}, {key.height} x {key.width}, {where}"
    return Panel(title, f"{guided}, {key.dtype}{threads}{random}", tuple(bars))


def _best(row: BenchRow, eager: BenchRow | None) -> float | None:
    if eager is None or not ran(eager) or not row.flop_bound or eager.unet_s is None:
        return None
    return eager.pipeline_s - eager.unet_s + eager.unet_s / row.flop_bound


def draw(panels: Sequence[Panel], theme: Theme) -> str:
    """An SVG of all panels, two in a line."""
    lines = [panels[i : i + 2] for i in range(0, len(panels), 2)]
    tall = [HEAD + BAR * max(len(one.bars) for one in line) + GAP for line in lines]
    height = TOP + sum(tall)
    with matplotlib.rc_context(SETTINGS):
        canvas = Canvas(figsize=(inches(WIDTH), inches(height)))
        add_title(
            canvas, theme, height, "Seconds of a whole call, and speed-up over the eager original",
            "The mark at stepcache: the best that skipping work alone can do. dB: PSNR against the original's images.\n"
            + RATIOS,
        )  # fmt: skip
        for number, line in enumerate(lines):
            top = TOP + sum(tall[:number])
            for column, one in enumerate(line):
                _panel(canvas, theme, one, column * WIDTH / 2, top, height)
        return svg_of(canvas)


def _panel(canvas: Canvas, theme: Theme, one: Panel, left: float, top: float, height: float) -> None:
    tall = BAR * len(one.bars)
    bottom = height - top - HEAD - tall
    axes = canvas.add_axes(fractions(left + LEFT, bottom, WIDTH / 2 - LEFT - RIGHT, tall, height))
    plain(axes, theme)
    longest = max(bar.row.pipeline_s for bar in one.bars)
    axes.set(ylim=(len(one.bars) - 0.5, -0.5), xlim=(0, longest), xticks=[], yticks=[])
    for down, text, colour in ((16, one.title, theme.ink), (33, one.below, theme.muted)):
        weight = "bold" if colour == theme.ink else "normal"
        canvas.text(
            (left + 8) / WIDTH, 1 - (top + down) / height, text, color=colour, size=SMALL, weight=weight, va="baseline"
        )
    for place, bar in enumerate(one.bars):
        ours = kind(bar.row) == STEPCACHE
        colour, weight = (theme.accent, "bold") if ours else (theme.muted, "normal")
        axes.barh(place, bar.row.pipeline_s, height=0.66, color=theme.accent if ours else theme.other, zorder=2)
        if bar.best is not None:
            ends = [place - 0.45, place + 0.45]
            axes.plot([bar.best, bar.best], ends, color=theme.ink, linewidth=2 * POINT, zorder=4, clip_on=False)
        style = {"color": theme.accent if ours else theme.ink, "weight": weight, "size": SMALL}
        add_note(axes, theme, bar.name, (0, place), xytext=(-8, -4), ha="right", **style)
        at = (max(bar.row.pipeline_s, bar.best or 0), place)
        add_note(axes, theme, bar.figures, at, xytext=(7, -4), color=colour, weight=weight, size=SMALL)
