"""The figure of the two graphs, of a full and a partial step, and the feature's buffer between them."""

from __future__ import annotations

from benchmarks.pages.figures import WIDTH, Figure, Theme, svg, svg_text

# All lengths are pixels. A panel shows a graph: the down path on its left, the up path on its right.
HEIGHT = 448
PANEL = 330, 432  # width, height
LEFT, RIGHT, TOP = 8, WIDTH - 8 - PANEL[0], 8
BOX = 112, 36
DOWN, UP = 24, PANEL[0] - 24 - BOX[0]  # of the boxes' left edges in a panel
ROWS = 112, 172, 256, 316  # of the boxes' upper edges
MIDDLE = 380
FEATURE = 232  # the height at which the feature leaves one graph and enters the other
BRANCH = 1


def draw(theme: Theme) -> str:
    """The SVG."""
    marks = [
        *_panel(theme, LEFT, "Full step", "graph 1: steps 0, N, 2N, …", shown=len(ROWS)),
        *_panel(theme, RIGHT, f"Partial step, branch {BRANCH}", "graph 2: the steps in between", shown=BRANCH + 1),
        *_feature(theme),
    ]
    arrowheads = {"runs": theme.ink, "rests": theme.other, "feature": theme.accent}
    return svg(theme, HEIGHT, arrowheads, marks)


def _panel(theme: Theme, x: int, title: str, when: str, shown: int) -> list[str]:
    """A graph at `x` whose first `shown` rows run."""
    width, height = BOX
    down, up = x + DOWN, x + UP
    marks = [
        f'<rect x="{x}" y="{TOP}" width="{PANEL[0]}" height="{PANEL[1]}" rx="10" fill="none" stroke="{theme.faint}"/>',
        svg_text(x + PANEL[0] / 2, TOP + 30, title, 'font-size="16" font-weight="600"'),
        svg_text(x + PANEL[0] / 2, TOP + 51, when, f'fill="{theme.muted}"'),
        svg_text(down + width / 2, ROWS[0] - 21, "latent"),
        _arrow(theme, f"M{down + width / 2} {ROWS[0] - 16}V{ROWS[0] - 2}"),
        svg_text(up + width / 2, ROWS[0] - 21, "noise"),
        _arrow(theme, f"M{up + width / 2} {ROWS[0]}V{ROWS[0] - 15}"),
    ]
    names = (("conv_in", "join 0"), ("layer 1", "join 1"), ("layer 2", "join 2"), ("deeper layers", "deeper joins"))
    for row, (y, (layer, join)) in enumerate(zip(ROWS, names, strict=True)):
        runs = row < shown
        marks += [
            _box(theme, down, y, layer, runs),
            _box(theme, up, y, join, runs),
            _arrow(theme, f"M{down + width} {y + height / 2}H{up - 2}", runs),
        ]
        if row + 1 < len(ROWS):
            below, deeper = ROWS[row + 1], row + 1 < shown
            marks.append(_arrow(theme, f"M{down + width / 2} {y + height}V{below - 2}", deeper))
            marks += _note(theme, (down + width + up) / 2, y + height / 2 - 6, f"skip {row}")
            if row != BRANCH:  # the feature's arrow is here
                marks.append(_arrow(theme, f"M{up + width / 2} {below}V{y + height + 2}", deeper))
    middle, runs = x + PANEL[0] / 2, shown == len(ROWS)
    marks += [
        _box(theme, middle - width / 2, MIDDLE, "mid block", runs),
        _arrow(theme, f"M{down + width / 2} {ROWS[-1] + height}V{MIDDLE + height / 2}H{middle - width / 2 - 2}", runs),
        _arrow(theme, f"M{middle + width / 2} {MIDDLE + height / 2}H{up + width / 2}V{ROWS[-1] + height + 2}", runs),
    ]
    return marks


def _feature(theme: Theme) -> list[str]:
    """The feature's path from below join `BRANCH` of the full step through the buffer to that of the partial step."""
    height = BOX[1]
    out, back = LEFT + UP + BOX[0] / 2, RIGHT + UP + BOX[0] / 2
    into, below = ROWS[BRANCH] + height + 2, ROWS[BRANCH + 1]
    middle, (width, tall, lid) = WIDTH / 2, (84, 76, 8)
    left, right, top, bottom = middle - width / 2, middle + width / 2, FEATURE - tall / 2, FEATURE + tall / 2
    line = f'fill="none" stroke="{theme.accent}" stroke-width="2.5"'
    body = (
        f"M{left} {top}V{bottom}A{width / 2} {lid} 0 0 0 {right} {bottom}V{top}"
        f"A{width / 2} {lid} 0 0 0 {left} {top}A{width / 2} {lid} 0 0 0 {right} {top}"
    )
    return [
        f'<path d="M{out} {below}V{into}" {line} marker-end="url(#feature)"/>',
        f'<circle cx="{out}" cy="{FEATURE}" r="4.5" fill="{theme.accent}"/>',
        f'<path d="M{out} {FEATURE}H{left - 2}" {line} marker-end="url(#feature)"/>',
        f'<path d="M{right} {FEATURE}H{back}V{into}" {line} marker-end="url(#feature)"/>',
        f'<path d="{body}" fill="{theme.tint}" stroke="{theme.accent}" stroke-width="1.5"/>',
        svg_text(middle, FEATURE + 5, "feature", 'font-weight="600"'),
        *_note(theme, middle, FEATURE + 22, "buffer"),
        *_note(theme, (LEFT + PANEL[0] + left) / 2, FEATURE - 9, "write"),
        *_note(theme, (right + RIGHT) / 2, FEATURE - 9, "read"),
        *_note(theme, middle, bottom + 30, "the only tensor", "that is cached,", "allocated once"),
    ]


def _note(theme: Theme, x: float, y: float, *lines: str) -> list[str]:
    """Lines of small text."""
    return [svg_text(x, y + 16 * n, line, f'fill="{theme.muted}" font-size="11.5"') for n, line in enumerate(lines)]


def _box(theme: Theme, x: float, y: float, name: str, runs: bool) -> str:
    surface = (
        f'fill="{theme.tint}" stroke="{theme.accent}" stroke-width="1.5"'
        if runs
        else f'fill="none" stroke="{theme.other}" stroke-dasharray="4 4"'
    )
    text = svg_text(x + BOX[0] / 2, y + BOX[1] / 2 + 4.5, name, "" if runs else f'fill="{theme.muted}"')
    return f'<rect x="{x:g}" y="{y:g}" width="{BOX[0]}" height="{BOX[1]}" rx="6" {surface}/>{text}'


def _arrow(theme: Theme, path: str, runs: bool = True) -> str:
    line = f'stroke="{theme.ink}"' if runs else f'stroke="{theme.other}" stroke-dasharray="4 4"'
    return f'<path d="{path}" fill="none" {line} marker-end="url(#{"runs" if runs else "rests"})"/>'


FIGURE = Figure(
    "two_graphs",
    "Two graphs. In a full step the whole U-Net runs and the hidden state that enters join 1 is written to a buffer; "
    "in a partial step of branch 1 only conv_in, the first layer and the last two joins run, and join 1 reads it.",
    draw,
)
