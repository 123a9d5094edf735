"""Plots of `stepcache bench` as SVGs for the pages: a bar for each rung, and speed against fidelity."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from benchmarks.pages.canvas import (
    BELOW,
    LETTER,
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
    STEPCACHE,
    Ladder,
    LadderKey,
    engine,
    fastest,
    kind,
    label,
    ladders,
    literal,
    ran,
    reason,
    seconds,
)
from stepcache.bench.schema import BenchRow

MARKS = "osD^v"


@dataclass(frozen=True)
class Point:
    """One measured setting. A line joins the points of a method in the order of x."""

    method: str
    x: float
    y: float
    label: str  # one or two characters, on the point
    ours: bool  # in the accent's colour


def ladder_figures(path: Path) -> list[Figure]:
    """A figure for each ladder of a CSV of `stepcache bench`."""
    return [
        Figure(
            f"{path.stem}_ladder_{n}",
            f"Seconds of a call for each variant: {key.title}",
            partial(draw_ladder, key, ladder),
        )
        for n, (key, ladder) in enumerate(ladders(path).items(), 1)
    ]


def fidelity_figures(path: Path) -> list[Figure]:
    """Speed-up against PSNR for each ladder of such a CSV with trained weights and lossy variants that ran."""
    figures = []
    for n, (key, ladder) in enumerate(ladders(path).items(), 1):
        points = [] if key.random else fidelity_points(ladder)
        if points:
            draw = partial(
                draw_points, points, title=key.title, x="speed-up of the whole call over the eager original",
                y=f"PSNR against the eager original's image, dB; branch {ladder.first[1]}{_predicted(ladder)}\n"
                "the figures on the points are intervals, and numbers of steps where these are fewer",
            )  # fmt: skip
            figures.append(Figure(f"{path.stem}_fidelity_{n}", f"Speed-up against fidelity: {key.title}", draw))
    return figures


def fidelity_points(ladder: Ladder) -> list[Point]:
    """Each way to do less work, eager and compiled, at each interval of the first branch, unless images are identical.

    Of several modes the fastest. Deeper branches would cover these points: the tables have them.
    """
    points = []
    for pair in ladder.reuses:
        if pair[1] != ladder.first[1]:
            continue
        ways: dict[tuple[str, str], list[BenchRow]] = {}
        for row in ladder.of(pair):
            ways.setdefault((kind(row), engine(row)), []).append(row)
        for (method, how), rows in ways.items():
            row = fastest(rows)
            if row and ran(row) and row.speedup is not None and row.psnr is not None and math.isfinite(row.psnr):
                name = f"{'fewer steps' if row.fewer else method}, {how}"
                points.append(Point(name, row.speedup, row.psnr, f"{row.fewer or row.interval}", method == STEPCACHE))
    return points


def _predicted(ladder: Ladder) -> str:
    """What stepcache's rows predict, for a figure's text; nothing if they hold."""
    found = dict.fromkeys(row.predict for row in ladder.rows if kind(row) == STEPCACHE and row.predict != "hold")
    return "".join(f"; stepcache with predict={literal(predict)}" for predict in found)


def draw_points(points: Sequence[Point], theme: Theme, *, title: str, x: str, y: str) -> str:
    """An SVG of two measures, with a named line for each method. `x` and `y` name the axes."""
    methods: dict[str, list[Point]] = {}
    for point in sorted(points, key=lambda p: p.x):
        methods.setdefault(point.method, []).append(point)
    height, (left, right, top, bottom) = 420, (46, 20, 44 + BELOW * len(y.splitlines()), 54)
    with matplotlib.rc_context(SETTINGS):
        canvas = Canvas(figsize=(inches(WIDTH), inches(height)))
        axes = canvas.add_axes(fractions(left, bottom, WIDTH - left - right, height - top - bottom, height))
        plain(axes, theme)
        axes.spines["left"].set_visible(False)
        axes.grid(color=theme.faint, linewidth=1 * POINT)
        axes.set_xlabel(x, color=theme.muted, labelpad=6)
        add_title(canvas, theme, height, title, y)
        seen = Counter[bool]()  # marks distinguish lines of one colour
        for line in methods.values():
            ours = line[0].ours
            style = {"color": theme.accent if ours else theme.other, "marker": MARKS[seen[ours] % len(MARKS)]}
            axes.plot([p.x for p in line], [p.y for p in line], markersize=16 * POINT, zorder=3 + ours, **style)
            seen[ours] += 1
            for point in line:
                at, style = (point.x, point.y), {"color": theme.ground, "weight": "bold", "size": SMALL}
                add_note(axes, theme, point.label, at, xytext=(0, -4), ha="center", zorder=3 + ours, **style)
        _name(axes, theme, [line[0] for line in methods.values()])
        return svg_of(canvas)


def _name(axes: Axes, theme: Theme, starts: Sequence[Point]) -> None:
    """The methods' names in a column left of all points, each with a line to its method's first point."""
    apart, gap = 19, 34  # pixels between names, and between names and points
    wide, tall = axes.bbox.size / POINT
    room = gap + LETTER * max(len(start.method) for start in starts)
    axes.margins(0.05, 0.1)
    (west, east), (south, north) = axes.get_xlim(), axes.get_ylim()
    west -= (east - west) * room / (wide - room)
    north += (north - south) * apart * (len(starts) - 1) / tall
    axes.set(xlim=(west, east), ylim=(south, north))
    column, place = min(start.x for start in starts) - gap * (east - west) / wide, -math.inf
    line = apart * (north - south) / tall
    # Of points at one height, the farther one has the upper name, so that its line passes above the nearer point.
    for start in sorted(starts, key=lambda p: (round(p.y / line), p.x)):
        place = max(start.y, place + line)
        colour, weight = (theme.accent, "bold") if start.ours else (theme.muted, "normal")
        style = {"ha": "right", "color": colour, "weight": weight}
        add_note(axes, theme, start.method, (column, place), xytext=(-4, -4.5), **style)
        axes.plot([column, start.x], [place, start.y], color=theme.other, linewidth=1 * POINT, zorder=2)


def draw_ladder(key: LadderKey, ladder: Ladder, theme: Theme) -> str:
    """An SVG of a ladder's whole calls in its order, with a heading for each (interval, branch).

    Bars are medians, whiskers reach from the 20th to the 80th percentile. A variant that did not run says why.
    """
    rows = ladder.rows
    left = 24 + LETTER * max(len(label(row)) for row in rows)
    right, top, bottom, bar = 120, 62, 12, 24
    lines: list[BenchRow | str] = []
    for pair in (ALONE, *ladder.reuses):
        of_pair = ladder.of(pair)
        heading = "nothing reused" if pair == ALONE else f"interval {pair[0]}, branch {pair[1]}"
        lines += [heading, *of_pair] if of_pair else []
    height = top + bottom + bar * len(lines)
    with matplotlib.rc_context(SETTINGS):
        canvas = Canvas(figsize=(inches(WIDTH), inches(height)))
        axes = canvas.add_axes(fractions(left, bottom, WIDTH - left - right, bar * len(lines), height))
        plain(axes, theme)
        axes.set(ylim=(len(lines) - 0.5, -0.5), xticks=[], yticks=[])
        axes.set_xlim(0, max([row.pipeline_s_p80 or row.pipeline_s for row in rows if ran(row)], default=1.0))
        add_title(
            canvas, theme, height, key.title, "seconds of a call, median with p20 to p80, and speed-up over eager"
        )
        for place, line in enumerate(lines):
            if isinstance(line, str):
                add_note(
                    axes, theme, line, (0, place), xytext=(-left + 8, -8), color=theme.ink, weight="bold", size=SMALL
                )
            else:
                _rung(axes, theme, place, line)
        return svg_of(canvas)


def _rung(axes: Axes, theme: Theme, place: int, row: BenchRow) -> None:
    """A bar with its name and figures, or why there is none."""
    ours = kind(row) == STEPCACHE
    add_note(axes, theme, label(row), (0, place), xytext=(-8, -4.5), ha="right", color=theme.ink)
    if not ran(row):
        add_note(axes, theme, reason(row), (0, place), xytext=(6, -4), style="italic", size=SMALL)
        return
    value, low, high = row.pipeline_s, row.pipeline_s_p20, row.pipeline_s_p80
    axes.barh(place, value, height=0.62, color=theme.accent if ours else theme.other, zorder=2)
    if low is not None and high is not None:
        axes.plot([low, high], [place, place], color=theme.ink, linewidth=1.25 * POINT, zorder=3)
        for end in (low, high):
            axes.plot([end, end], [place - 0.14, place + 0.14], color=theme.ink, linewidth=1.25 * POINT, zorder=3)
    text = f"{seconds(value)} s" + (f", {row.speedup:.2f}x" if row.speedup is not None else "")
    at, style = (max(value, high or value), place), {"color": theme.muted}
    if ours:
        style = {"color": theme.accent, "weight": "bold"}
    add_note(axes, theme, text, at, xytext=(8, -4.5), **style)
