"""What all figures share: a light and a dark theme on transparent ground, and how a page shows the pair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape

FONTS = "-apple-system, 'Segoe UI', 'Noto Sans', Helvetica, Arial, sans-serif"  # GitHub's, those of the page around it
WIDTH = 830  # pixels, of a README's column on GitHub


@dataclass(frozen=True)
class Theme:
    """Colours, as in CSS. Only what is stepcache's own has the accent."""

    name: str
    ground: str  # the page's: for text on a mark
    ink: str
    muted: str  # text of less weight
    faint: str  # lines behind the data
    other: str  # marks of the others
    accent: str
    tint: str  # the accent as a surface behind ink


LIGHT = Theme("light", "#ffffff", "#1f2328", "#59636e", "#d1d9e0", "#8c959f", "#0969da", "#ddf0ff")
DARK = Theme("dark", "#0d1117", "#f0f6fc", "#9198a1", "#3d444d", "#6e7681", "#4493f8", "#132d4f")
THEMES = (LIGHT, DARK)


@dataclass(frozen=True)
class Figure:
    """A drawing in both themes. `draw` returns an SVG's text, the same one for the same theme."""

    name: str
    alt: str
    draw: Callable[[Theme], str]

    def files(self) -> dict[str, str]:
        """File names and what is in them."""
        return {f"{self.name}-{theme.name}.svg": self.draw(theme) for theme in THEMES}

    def picture(self, folder: str) -> str:
        """HTML that shows the one that fits the reader's theme; `folder` as the page sees it, "" or with a slash."""
        light, dark = (f"{folder}{self.name}-{theme.name}.svg" for theme in THEMES)
        return (
            f'<picture>\n<source media="(prefers-color-scheme: dark)" srcset="{dark}">\n'
            f'<img src="{light}" alt="{escape(self.alt)}" width="{WIDTH}">\n</picture>'
        )
