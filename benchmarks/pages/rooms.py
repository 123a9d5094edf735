"""The map of the package: its rooms, and which imports which; drawn from the code into docs/rooms-*.svg.

A room is a folder of src/stepcache, or a file at its top; the Triton ops are one. Its line of text is the first
sentence of its docstring. Left out are `errors`, which all rooms import, `cli`, which starts commands by name, and
arrows that a longer way implies.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

from benchmarks import ROOT
from benchmarks.pages.figures import WIDTH, Figure, Theme, svg, svg_text
from stepcache.files.replacing import write_text

SOURCE = ROOT / "src" / "stepcache"
KERNELS = ROOT / "csrc_triton"
LEFT_OUT = {"errors", "cli", "_version", "__init__", "__main__"}

# Pixels.
ROW, BOX, ROOM, LINE, MARGIN = 102, 66, 192, 14, 8


def rooms() -> dict[str, str]:
    """Each room's name, and the first sentence of its docstring."""
    found = {path.stem: path for path in SOURCE.glob("*.py")}
    found |= {path.parent.name: path for path in SOURCE.glob("*/__init__.py")}
    found["kernels"] = KERNELS / "__init__.py"
    docs = {name: ast.get_docstring(ast.parse(path.read_text())) or "" for name, path in found.items()}
    return {name: doc.split("\n\n")[0].replace("\n", " ") for name, doc in sorted(docs.items()) if name not in LEFT_OUT}


def imports() -> dict[str, set[str]]:
    """For each room the rooms that it imports, inside of functions too."""
    found: dict[str, set[str]] = {name: set() for name in rooms()}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        if parts[0] in found:
            found[parts[0]] |= {name for name in _imported(path, parts[:-1]) if name in found and name != parts[0]}
    return found


def _imported(path: Path, package: tuple[str, ...]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        names = (node.module or "").split(".") if node.module else []
        if node.level:
            names = [*package[: len(package) - node.level + 1], *names]
        elif names[0] == "stepcache":
            names = names[1:]
        else:
            continue
        # What `stepcache` itself has are rooms and the public names.
        yield from names[:1] or [alias.name if (SOURCE / alias.name).is_dir() else "api" for alias in node.names]


def levels(edges: Mapping[str, set[str]]) -> dict[str, int]:
    """Each room's floor, one above the highest that it imports. ValueError where imports run in a circle."""
    known: dict[str, int] = {}

    def level(name: str, above: tuple[str, ...] = ()) -> int:
        if name in above:
            raise ValueError(f"These rooms import each other in a circle: {' -> '.join((*above, name))}.")
        if name not in known:
            known[name] = 1 + max((level(other, (*above, name)) for other in edges[name]), default=-1)
        return known[name]

    for name in edges:
        level(name)
    return known


def direct(edges: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The same without the arrows that a longer way implies."""

    def reach(name: str) -> set[str]:
        return edges[name].union(*(reach(other) for other in edges[name]))

    return {
        name: {other for other in others if not any(other in reach(between) for between in others - {other})}
        for name, others in edges.items()
    }


def draw(theme: Theme) -> str:
    """The SVG: a row for each floor, the highest first."""
    docs, edges = rooms(), imports()
    floor = levels(edges)
    height = MARGIN * 2 + ROW * max(floor.values()) + BOX
    boxes: dict[str, tuple[float, float]] = {}  # middle, upper edge
    for n in range(max(floor.values()) + 1):
        names = sorted(name for name in docs if floor[name] == n)
        for i, name in enumerate(names):
            boxes[name] = WIDTH * (i + 0.5) / len(names), height - MARGIN - BOX - n * ROW
    marks = []
    for name, others in direct(edges).items():
        for other in sorted(others):
            (x, y), (to_x, to_y) = boxes[name], boxes[other]
            marks.append(
                f'<path d="M{x:.0f} {y + BOX:.0f}L{to_x:.0f} {to_y - 2:.0f}" fill="none" stroke="{theme.other}" '
                'marker-end="url(#imports)"/>'
            )
    for name, (x, y) in boxes.items():  # over the arrows that pass behind them
        marks.append(
            f'<rect x="{x - ROOM / 2:.0f}" y="{y:.0f}" width="{ROOM}" height="{BOX}" rx="6" fill="{theme.ground}" '
            f'stroke="{theme.accent}"/>'
        )
        marks.append(svg_text(round(x), y + 17, f'<tspan font-weight="600">{name}</tspan>'))
        for i, line in enumerate(_lines(docs[name])):
            marks.append(svg_text(round(x), y + 32 + LINE * i, escape(line), f'fill="{theme.muted}" font-size="10.5"'))
    return svg(theme, height, {"imports": theme.other}, marks)


def _lines(text: str) -> list[str]:
    """Its first sentence, as much of it as a box holds."""
    return textwrap.wrap(text.split(". ")[0].removesuffix(".").replace("`", ""), 32, max_lines=3, placeholder=" …")


FIGURE = Figure(
    "rooms",
    "The rooms of the package, one floor above another; each imports only from floors below: commands at the top, then "
    "calibration, comparison and bench, api, run, settings, graphs, forwards, and reuse at the bottom.",
    draw,
)


def main() -> None:
    """Write both pictures to docs/."""
    for name, text in FIGURE.files().items():
        write_text(ROOT / "docs" / name, text)


if __name__ == "__main__":
    main()
