"""The rule of predict="auto", fitted to dampings.csv.

    python -m benchmarks.frontier.fit

For each kind of solver: of all rules on a grid, the one that loses the least against the best pair that was measured in
a setting: the mean square of loss / (1 + gain), with the best pair's gain over holding, both in dB. Between measured
pairs the PSNR is interpolated; beyond them nothing is gained.

The mean's rule is not fitted. It is 1 up to a gap of 15% of the run, as all settings want it, and 0.5 from 25% on, as
DPM++ wants it with every fifth of 20 steps full.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks import RESULTS
from benchmarks.frontier.dampings import Row
from stepcache.bench.rows import read
from stepcache.reuse.auto import Rules

FIRST_ORDER = ("ddim", "euler")
OFFSETS, SLOPES = np.arange(0.5, 3.01, 0.1), np.arange(0.5, 3.61, 0.1)
POWERS = (1.0, 1.25, 1.5)

Setting = tuple[str, int, float, int]  # scheduler, steps, guidance scale, interval
Measured = Mapping[tuple[float, float], float]  # (mean, difference) -> PSNR


def measured(rows: Iterable[Row], first_order: bool) -> dict[Setting, dict[tuple[float, float], float]]:
    """What was measured in each setting of the solvers of that kind."""
    found: dict[Setting, dict[tuple[float, float], float]] = {}
    for row in rows:
        if (row.scheduler in FIRST_ORDER) is first_order:
            setting = row.scheduler, row.steps, row.guidance_scale, row.interval
            found.setdefault(setting, {})[row.mean, row.difference] = row.psnr
    return found


def surface(pairs: Measured, mean: float, difference: np.ndarray) -> np.ndarray:
    """PSNR at one damping of the mean and many of the difference: linear between measured ones, first along these."""
    lines: dict[float, list[tuple[float, float]]] = {}
    for (m, d), psnr in sorted(pairs.items()):
        lines.setdefault(m, []).append((d, psnr))
    known = [m for m, points in lines.items() if len(points) > 1]
    low = max(m for m in known if m <= mean)
    high = min(m for m in known if m >= mean)
    ends = [_along(lines[m], difference) for m in (low, high)]
    part = 0.0 if high == low else (mean - low) / (high - low)
    return (1 - part) * ends[0] + part * ends[1]


def _along(points: Sequence[tuple[float, float]], at: np.ndarray) -> np.ndarray:
    """Linear between the points. Beyond them the last slope goes on, if it falls."""
    x, y = map(np.array, zip(*points, strict=True))
    low, high = max(0.0, (y[1] - y[0]) / (x[1] - x[0])), min(0.0, (y[-1] - y[-2]) / (x[-1] - x[-2]))
    return np.interp(at, x, y) + low * np.minimum(0, at - x[0]) + high * np.maximum(0, at - x[-1])


def fit(settings: Mapping[Setting, Measured]) -> Rules:
    """The rules of one kind of solver."""
    each = [Rules(*map(float, numbers)) for numbers in itertools.product(OFFSETS, SLOPES, POWERS)]
    squares = np.zeros(len(each))
    for (_, steps, guidance, interval), pairs in settings.items():
        differences = np.array([rules.difference(interval, steps, guidance) for rules in each])
        psnr = surface(pairs, each[0].mean(interval, steps), differences)
        best = max(pairs.values())
        squares += (np.maximum(0, best - psnr) / (1 + best - pairs[0.0, 0.0])) ** 2
    return Rules(*(round(number, 6) for number in each[int(squares.argmin())]))


def losses(settings: Mapping[Setting, Measured], rules: Rules) -> dict[Setting, tuple[float, float]]:
    """What the rules lose against the best measured pair, and gain over holding, in dB; interpolated."""
    found = {}
    for setting, pairs in settings.items():
        _, steps, guidance, interval = setting
        difference = np.array([rules.difference(interval, steps, guidance)])
        psnr = float(surface(pairs, rules.mean(interval, steps), difference)[0])
        found[setting] = max(pairs.values()) - psnr, psnr - pairs[0.0, 0.0]
    return found


def main(paths: Sequence[Path] = (RESULTS / "dampings.csv",)) -> None:
    """Print the rules, and what they lose in each setting."""
    rows = list(itertools.chain.from_iterable(read(path, Row) for path in paths))
    for first_order in (True, False):
        settings = measured(rows, first_order)
        rules = fit(settings)
        print(f"{'first order' if first_order else 'multistep'}: {rules}")
        for setting, (loss, gain) in losses(settings, rules).items():
            mean, difference = rules.mean(setting[3], setting[1]), rules.difference(setting[3], setting[1], setting[2])
            print(f"  {setting}: ({mean:.2f}, {difference:.2f}), {loss:.2f} dB lost, {gain:.2f} dB over holding")


if __name__ == "__main__":
    main()
