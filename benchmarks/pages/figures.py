"""What all figures share: a light and a dark theme on a transparent background, and the HTML that shows the pair."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from html import escape

FONTS = "-apple-system, 'Segoe UI', 'Noto Sans', Helvetica, Arial, sans-serif"  # those of GitHub's pages
WIDTH = 830  # pixels: the width of a README on GitHub


@dataclass(frozen=True)
class Theme:
    """CSS colours. The accent marks stepcache's own data."""

    name: str
    ground: str  # the page's background, for text on a mark
    ink: str
    muted: str  # secondary text
    faint: str  # lines behind the data
    other: str  # marks of other methods
    accent: str
    tint: str  # a surface in the accent's colour, behind ink


LIGHT = Theme("light", "#ffffff", "#1f2328", "#59636e", "#d1d9e0", "#8c959f", "#0969da", "#ddf0ff")
DARK = Theme("dark", "#0d1117", "#f0f6fc", "#9198a1", "#3d444d", "#6e7681", "#4493f8", "#132d4f")
THEMES = (LIGHT, DARK)


@dataclass(frozen=True)
class Figure:
    """A drawing in both themes. `draw` returns the text of an SVG, always the same for a theme."""

    name: str
    alt: str
    draw: Callable[[Theme], str]

    def files(self) -> dict[str, str]:
        """The text of each SVG, by file name."""
        return {f"{self.name}-{theme.name}.svg": self.draw(theme) for theme in THEMES}

    def picture(self, folder: str) -> str:
        """HTML that shows the SVG of the reader's theme. folder: relative to the page, "" or ending in a slash."""
        light, dark = (f"{folder}{self.name}-{theme.name}.svg" for theme in THEMES)
        return (
            f'<picture>\n<source media="(prefers-color-scheme: dark)" srcset="{dark}">\n'
            f'<img src="{light}" alt="{escape(self.alt)}" width="{WIDTH}">\n</picture>'
        )


def svg(theme: Theme, height: int, arrowheads: Mapping[str, str], marks: Iterable[str]) -> str:
    """The text of an SVG that is written by hand. arrowheads: name -> colour; a path ends in `url(#name)`."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="{FONTS}" font-size="13" text-anchor="middle" fill="{theme.ink}">'
    )
    heads = [
        f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto" '
        f'markerUnits="userSpaceOnUse"><path d="M0 0.5 8 4 0 7.5z" fill="{colour}"/></marker>'
        for name, colour in arrowheads.items()
    ]
    return "\n".join([head, "<defs>", *heads, "</defs>", *marks, "</svg>"]) + "\n"


def svg_text(x: float, y: float, text: str, style: str = "") -> str:
    """Text around x, with its baseline at y."""
    return f'<text x="{x:g}" y="{y:g}" {style}>{text}</text>'
