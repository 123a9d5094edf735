"""Small charts as inline SVG. Their colours are the page's CSS classes, so they follow its light or dark mode."""

from __future__ import annotations

import math
from collections.abc import Sequence

# In units of the view box: pixels, if the chart is shown at this width.
WIDTH, HEIGHT = 360, 168
LEFT, RIGHT, TOP, BOTTOM = 42, 4, 8, 38  # around the plot: labels on the left, bars and labels below

BAR = 6  # from one U-Net call's bar to the next in `schedule_bars`


def schedule_bars(kinds: str) -> str:
    """A bar for each U-Net call of "FPPFPP": dark and high for full ones, light and low for partial ones."""
    bars = "".join(
        f'<rect class="{"partial" if letter == "P" else "full"}" x="{BAR * i}" '
        f'y="{5 if letter == "P" else 0}" width="{BAR - 2}" height="{7 if letter == "P" else 12}"/>'
        for i, letter in enumerate(kinds)
    )
    width = BAR * len(kinds) - 2
    label = f"{kinds.count('P')} of {len(kinds)} U-Net calls are partial: {kinds}"
    # If there is too little room, it gets narrower but not lower.
    size = f'width="{width}" height="12" viewBox="0 0 {width} 12" preserveAspectRatio="none"'
    return f'<svg class="bars" role="img" aria-label="{label}" {size}><title>{label}</title>{bars}</svg>'


def round_up(value: float, digits: Sequence[int] = (1, 2, 3, 4, 5, 6, 8, 10)) -> float:
    """`value` rounded up to one of the `digits` times a power of ten, for the end of an axis; at least 0.01."""
    power = 10 ** math.floor(math.log10(max(value, 0.01)))
    return next(digit * power for digit in digits if digit * power >= max(value, 0.01) * (1 - 1e-9))


def drift_chart(kinds: str, runs: Sequence[Sequence[float]], top: float) -> str:
    """A column for each step: the mean drift over runs, and a line from the least to the most.

    kinds: the schedule, a letter for each step. runs: the drift of each step, a sequence for each prompt, as long as
    `kinds`. top: the drift at the upper end of the axis, the same in charts to be compared.
    """
    steps = len(kinds)
    pitch = (WIDTH - LEFT - RIGHT) / steps
    base = HEIGHT - BOTTOM
    scale = (base - TOP) / top
    means = [sum(values) / len(runs) for values in zip(*runs, strict=True)]
    worst = max(range(steps), key=means.__getitem__)
    label = f"Drift of the feature by step; mean at most {means[worst]:.1%}, in step {worst}."

    parts = [f'<svg class="drift" role="img" aria-label="{label}" viewBox="0 0 {WIDTH} {HEIGHT}">']
    for share in (0, 0.5, 1):
        y = base - share * (base - TOP)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{100 * share * top:.3g} %</text>')
    for i, letter in enumerate(kinds):
        x = LEFT + pitch * i
        values = [run[i] for run in runs]
        height = means[i] * scale
        parts.append(
            f'<rect class="{"full" if letter == "F" else "partial"}" x="{x + 0.1 * pitch:.2f}" y="{base + 5}" '
            f'width="{0.8 * pitch:.2f}" height="8"/>'
        )
        if max(values) > 0:
            spread = f"{min(values):.1%} to {max(values):.1%}"
            parts.append(
                f"<g><title>step {i}: {means[i]:.1%} ({spread})</title>"
                f'<rect class="column" x="{x + 0.1 * pitch:.2f}" y="{base - height:.2f}" width="{0.8 * pitch:.2f}" '
                f'height="{height:.2f}"/>'
                f'<line class="spread" x1="{x + pitch / 2:.2f}" x2="{x + pitch / 2:.2f}" '
                f'y1="{base - min(values) * scale:.2f}" y2="{base - max(values) * scale:.2f}"/></g>'
            )
    for i in _ticks(steps):
        parts.append(f'<text x="{LEFT + pitch * (i + 0.5):.1f}" y="{HEIGHT - 10}" text-anchor="middle">{i}</text>')
    return "".join([*parts, "</svg>"])


def _ticks(steps: int) -> range:
    """The steps to be numbered: about five, a round number apart."""
    return range(0, steps, max(1, int(round_up(steps / 5, digits=(1, 2, 5, 10)))))
