"""What the plots are drawn with: matplotlib's canvas in pixels, text at points of the data, and its SVG.

With one version of matplotlib, the same rows give the same bytes. Text stays text, in the font of the surrounding page,
so positions are in pixels and do not depend on glyphs, which differ between readers.
"""

from __future__ import annotations

import io
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from benchmarks.pages.figures import FONTS, WIDTH, Theme

POINT = 0.75  # a pixel in points, matplotlib's unit for text and lines
SMALL, NORMAL, TITLE = 11.5 * POINT, 13 * POINT, 15 * POINT
BELOW = 18
LETTER = 6.7  # pixels: a generous width of a letter at NORMAL
SETTINGS = {
    "svg.hashsalt": "stepcache",
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",  # comes with matplotlib; replaced by FONTS in the SVG
    "font.size": NORMAL,
    "figure.dpi": 72,  # a dot is a point
    "axes.linewidth": 1 * POINT,
    "lines.linewidth": 2 * POINT,
    "text.parse_math": False,
}


def add_note(
    axes: Axes, theme: Theme, text: str, at: tuple[float, float], xytext: tuple[float, float], **style: Any
) -> None:
    """Text whose baseline is at a point of the data, offset by pixels; muted by default."""
    offset = tuple(POINT * pixels for pixels in xytext)
    style = {"color": theme.muted, "va": "baseline", "annotation_clip": False, "zorder": 5, **style}
    axes.annotate(text, at, xytext=offset, textcoords="offset points", **style)


def add_title(canvas: Canvas, theme: Theme, height: int, text: str, below: str) -> None:
    """The figure's title, and lines below it, BELOW pixels apart. height: of the figure, in pixels."""
    canvas.text(8 / WIDTH, 1 - 22 / height, text, color=theme.ink, size=TITLE, weight="bold", va="baseline")
    for n, line in enumerate(below.splitlines()):
        canvas.text(8 / WIDTH, 1 - (42 + BELOW * n) / height, line, color=theme.muted, va="baseline")


def plain(axes: Axes, theme: Theme) -> None:
    """Leave of the axes only the left spine."""
    axes.patch.set_visible(False)
    axes.set_axisbelow(True)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.spines["left"].set_color(theme.other)
    axes.tick_params(colors=theme.muted, length=0, labelsize=SMALL, pad=5)


def inches(pixels: float) -> float:
    """Pixels in inches, in which matplotlib has a figure's size."""
    return pixels * POINT / 72


def fractions(left: float, bottom: float, width: float, height: float, of: float) -> tuple[float, float, float, float]:
    """Pixels as fractions of the figure, as matplotlib needs them."""
    return left / WIDTH, bottom / of, width / WIDTH, height / of


def svg_of(canvas: Canvas) -> str:
    """The text of the SVG."""
    canvas.patch.set_visible(False)
    text = io.StringIO()
    canvas.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    lines = text.getvalue().replace("'DejaVu Sans'", FONTS).splitlines()
    return "\n".join(line.rstrip() for line in lines) + "\n"
