"""The tables and figures of rivals.csv, for docs/fidelity.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.frontier.rivals_rows import (
    AUTO,
    FEWER,
    FIXED,
    HOLD,
    LINE,
    NONUNIFORM,
    SPECTRUM,
    SPECTRUM_OWN,
    Row,
    Setting,
    by_setting,
    difference,
    fewer_for,
    front,
)
from benchmarks.pages.figures import Figure
from benchmarks.pages.markdown_table import caption, table
from benchmarks.pages.plots import Point, draw_points
from stepcache.bench.rows import Rig, read
from stepcache.images.bootstrap import Difference
from stepcache.images.fidelity import signed

SCHEDULERS = {"ddim": "DDIM", "euler": "Euler", "dpm++": "DPM++ 2M", "dpm++-karras": "DPM++ 2M Karras"}
# Over hold, in dB, by number of steps, guidance scale and interval.
AIMS = {(20, 7.5, 2): 0.8, (20, 7.5, 3): 0.8, (50, 7.5, 3): 2.0, (50, 3.0, 3): 5.0}
LEAST = -0.8  # dB: how far auto may be behind the best of hold, line and fixed pairs, at 20 steps
SHOWN = 7.5  # guidance scale of the second table and of the figures


class Compared(NamedTuple):
    """The rows of one setting at one interval, all of the same cost or nearly."""

    setting: Setting
    interval: int
    rows: list[Row]

    def best(self, *methods: str, most: bool = False) -> Row | None:
        """The row of methods whose names begin so that is nearest to the original: of as many steps, or of most."""
        found = [row for row in self.rows if row.method.startswith(methods)]
        return max(found, key=lambda row: row.psnr_most if most else row.psnr or 0.0, default=None)

    @property
    def dearest(self) -> Row:
        """A row that costs as much as the interval allows."""
        return max(self.rows, key=lambda row: row.cost)

    def __str__(self) -> str:
        return f"{_named(self.setting)}, {self.setting.steps} steps, interval {self.interval}"


def _named(setting: Setting) -> str:
    return f"{SCHEDULERS.get(setting.scheduler, setting.scheduler)}, guidance {setting.guidance_scale:g}"


def compared(rows: Iterable[Row]) -> list[Compared]:
    """All settings and intervals, by scheduler, guidance scale, number of steps and interval."""
    found = [
        Compared(setting, interval, [row for row in group if row.interval == interval])
        for setting, group in by_setting(rows).items()
        for interval in sorted({row.interval for row in group if row.interval is not None})
    ]
    order = list(SCHEDULERS)

    def place(here: Compared) -> tuple[int, float, int, int]:
        _, scheduler, steps, guidance = here.setting
        return order.index(scheduler) if scheduler in order else len(order), guidance, steps, here.interval

    return sorted(found, key=place)


def aims_table(path: Path) -> str:
    """`predict="auto"` against hold, against the best of hold, line and fixed pairs, and against Spectrum."""
    rows = read(path, Row)
    everywhere = compared(rows)
    lines = []
    for (steps, guidance, interval), aim in AIMS.items():
        for here in everywhere:
            ours, hold = here.best(AUTO), here.best(HOLD)
            if (*here.setting[2:], here.interval) != (steps, guidance, interval) or ours is None or hold is None:
                continue
            lines.append(
                (
                    str(here), f"{ours.steps / ours.cost:.2f}x", f"{ours.psnr:.1f}", _over(ours, hold, aim),
                    _over(ours, here.best(HOLD, LINE, FIXED), LEAST if steps == 20 else None, named=True),
                    _better(ours, here.best(SPECTRUM_OWN)), _better(ours, here.best(SPECTRUM), named=True),
                )
            )  # fmt: skip
    header = (
        "setting", "speed-up", "auto, dB", "over hold", "over the best of hold, line, fixed",
        "over Spectrum, own schedule", "over the best of Spectrum's variants",
    )  # fmt: skip
    return table(header, lines) + "\n" + caption(read(path, Rig))


def _over(ours: Row, theirs: Row | None, aim: float | None, *, named: bool = False) -> str:
    """The difference, of a rival with or without its name, and whether its mean is at least `aim`."""
    if theirs is None:
        return ""
    found = difference(ours, theirs)
    verdict = "" if aim is None else f"; ≥ {aim:g}: " + ("yes" if found.mean >= aim else "**no**")
    return f"{found}{f', {theirs.method}' if named else ''}{verdict}"


def _better(ours: Row, theirs: Row | None, *, named: bool = False) -> str:
    """The difference, and whether all of its interval is above 0, or none of it, or neither."""
    if theirs is None:
        return ""
    found = difference(ours, theirs)
    verdict = "yes" if found.better else "**not certain**" if found.high > 0 else "**no**"
    return f"{_over(ours, theirs, None, named=named)}; > 0: {verdict}"


def everywhere_table(path: Path) -> str:
    """`predict="auto"` over each rival in all settings, against the originals of as many steps: a grid a rival."""
    everywhere = compared(read(path, Row))
    rivals = {
        "hold": (HOLD,),
        "Spectrum, own schedule": (SPECTRUM_OWN,),
        "the best of Spectrum's variants": (SPECTRUM,),
    }
    grids = []
    for name, methods in rivals.items():
        pairs = [(here, here.best(AUTO), here.best(*methods)) for here in everywhere]
        found = [(here, difference(a, b)) for here, a, b in pairs if a is not None and b is not None]
        grids.append(_grid(f"`auto` over {name}", found))
    return "\n\n".join(grids)


def _grid(what: str, found: Sequence[tuple[Compared, Difference]]) -> str:
    """The counts, and a table: schedulers and guidance scales down, steps and intervals across."""
    cells: dict[str, dict[tuple[int, int], str]] = {}
    for here, each in found:
        cells.setdefault(_named(here.setting), {})[here.setting.steps, here.interval] = _marked(
            signed(each.mean), each.better
        )
    columns = sorted({(here.setting.steps, here.interval) for here, _ in found})
    header = ["dB", *(f"{steps} steps, interval {interval}" for steps, interval in columns)]
    lines = [[name, *(row.get(column, "") for column in columns)] for name, row in cells.items()]
    return f"{what}: certainly better in {_certain(found)}.\n\n{table(header, lines)}"


def _certain(found: Sequence[tuple[Compared, Difference]]) -> str:
    """How many differences are above 0 for certain, of all and of each scheduler's."""
    by_scheduler: dict[str, list[bool]] = {}
    for here, each in found:
        by_scheduler.setdefault(SCHEDULERS.get(here.setting.scheduler, here.setting.scheduler), []).append(each.better)
    counts = [f"{name} {sum(better)} of {len(better)}" for name, better in by_scheduler.items()]
    return f"{sum(each.better for _, each in found)} of {len(found)} ({', '.join(counts)})"


def fewer_table(path: Path) -> str:
    """Reuse against fewer full steps of the same scheduler, both against the originals of most steps."""
    rows = read(path, Row)
    lines = []
    for here in compared(rows):
        fewer = fewer_for(here.dearest, rows)
        if here.setting.guidance_scale == SHOWN and fewer is not None:
            cells = [_cell(found) for found in _over_fewer(here, fewer)]
            price = f"{here.dearest.cost:.1f} ({here.dearest.speedup:.2f}x)"
            lines.append([str(here), price, f"{fewer.steps}: {fewer.psnr_most:.1f}", *cells])
    header = ("setting", "cost in full steps", "fewer steps: dB", *REUSED)
    return table(header, lines)


REUSED = {
    "hold": (HOLD,),
    "DeepCache 1:N": (NONUNIFORM,),
    "line": (LINE,),
    "auto": (AUTO,),
    "best Spectrum": (SPECTRUM,),
}


def _over_fewer(here: Compared, fewer: Row) -> list[Difference | None]:
    """Of each of REUSED over fewer steps."""
    best = (here.best(*methods, most=True) for methods in REUSED.values())
    return [None if row is None else difference(row, fewer, most=True) for row in best]


def _cell(found: Difference | None) -> str:
    return "" if found is None else _marked(str(found), found.better)


def _marked(text: str, better: bool) -> str:
    """In italics what is not certainly better. Bold would be too much: most is."""
    return text if better else f"*{text}*"


def fewer_everywhere_table(path: Path) -> str:
    """Each of REUSED over fewer steps in all settings: a grid for ours and for DeepCache's, and counts of all."""
    rows = read(path, Row)
    pairs = [(here, fewer_for(here.dearest, rows)) for here in compared(rows)]
    known = [(here, _over_fewer(here, fewer)) for here, fewer in pairs if fewer is not None]
    grids, counts = [], []
    for i, name in enumerate(REUSED):
        found = [(here, each) for here, differences in known if (each := differences[i]) is not None]
        if found and name in ("hold", "auto"):
            grids.append(_grid(f"`{name}` over fewer steps", found))
        elif found:
            counts.append(f"{name} in {sum(each.better for _, each in found)} of {len(found)}")
    others = [f"Certainly better than fewer steps, of the others: {', '.join(counts)}."] if counts else []
    return "\n\n".join([*grids, *others])


def rivals_figures(path: Path) -> list[Figure]:
    """Fidelity to the images of most steps against cost, for each scheduler."""
    rows = [row for row in read(path, Row) if row.guidance_scale == SHOWN]
    figures = []
    for scheduler in dict.fromkeys(row.scheduler for row in rows):
        here = [row for row in rows if row.scheduler == scheduler]
        title = f"{here[0].model}: {SCHEDULERS.get(scheduler, scheduler)}, guidance {SHOWN:g}"
        draw = partial(
            draw_points, _points(here), title=title, x=f"speed-up in MACs over {here[0].most} full steps",
            y=f"PSNR against the images of {here[0].most} full steps, dB; the figures on the points are steps",
        )  # fmt: skip
        name = f"rivals_{scheduler.replace('+', 'p').replace('-', '_')}"
        figures.append(Figure(name, f"Fidelity against cost, {title}", draw))
    return figures


def _points(rows: Sequence[Row]) -> list[Point]:
    groups = {
        "fewer steps": ((FEWER,), False), "DeepCache": ((HOLD, NONUNIFORM), False), "Spectrum": ((SPECTRUM,), False),
        "line": ((LINE,), True), "auto": ((AUTO,), True),
    }  # fmt: skip
    most = 3 * min(row.cost for row in rows)  # at less speed, all points are at the top, and the others close together
    return [
        Point(name, row.speedup, row.psnr_most, f"{row.steps}", ours)
        for name, (methods, ours) in groups.items()
        for row in front(row for row in rows if row.method.startswith(methods))
        if row.cost <= most
    ]
