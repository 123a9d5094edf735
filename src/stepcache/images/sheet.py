"""A contact sheet: rows of images under one heading, to be compared by eye."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from PIL import Image, ImageDraw, ImageFont

INK, GREY, FAINT = (24, 24, 27), (95, 95, 104), (228, 228, 231)
FULL, PARTIAL = (37, 99, 235), (203, 219, 250)

# In pixels.
MARGIN, GAP = 44, 22
LABEL = 296  # width of the column of titles
PITCH = 8  # from one step's bar to the next
HEADING, TITLE, TEXT = 38, 28, 21  # font sizes


@dataclass(frozen=True)
class SheetRow:
    """One row: a title with notes below it, images, and their steps ("FPPFPP", drawn as bars)."""

    title: str
    images: Sequence[Image.Image]
    notes: Sequence[str] = ()
    steps: str = ""


def contact_sheet(
    heading: str, subheading: str, columns: Sequence[str], rows: Sequence[SheetRow], cell: int = 192
) -> Image.Image:
    """The rows below each other, on white, each image scaled to fit `cell` x `cell` pixels, as an RGB image.

    columns: a caption for each column. ValueError if a row has more or fewer images.
    """
    for row in rows:
        if len(row.images) != len(columns):
            raise ValueError(f"The row {row.title!r} has {len(row.images)} images for {len(columns)} columns.")
    # At least three columns wide, for the heading.
    width = 2 * MARGIN + LABEL + max(len(columns), 3) * (cell + GAP) - GAP
    inner = width - 2 * MARGIN
    text = [(line, HEADING, INK) for line in _wrapped(heading, HEADING, inner)]
    text += [(line, TEXT, GREY) for line in _wrapped(subheading, TEXT, inner, most=4)]
    captions = [_wrapped(caption, TEXT, cell) for caption in columns]
    top = MARGIN + sum(_line(size) for _, size, _ in text) + 36
    top += _line(TEXT) * max((len(lines) for lines in captions), default=0) + 8
    sheet = Image.new("RGB", (width, top + len(rows) * (cell + GAP) - GAP + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)

    y = MARGIN
    for line, size, colour in text:
        draw.text((MARGIN, y), line, fill=colour, font=_font(size), anchor="lt")
        y += _line(size)
    for i, lines in enumerate(captions):
        x = MARGIN + LABEL + i * (cell + GAP) + cell // 2
        for j, line in enumerate(reversed(lines)):
            draw.text((x, top - 14 - j * _line(TEXT)), line, fill=INK, font=_font(TEXT), anchor="ms")
    for i, row in enumerate(rows):
        y = top + i * (cell + GAP)
        if i:
            draw.line((MARGIN, y - GAP // 2, width - MARGIN, y - GAP // 2), fill=FAINT)
        _label(draw, row, y, cell)
        for j, image in enumerate(row.images):
            scaled = _scaled(image, cell)
            x = MARGIN + LABEL + j * (cell + GAP) + (cell - scaled.width) // 2
            sheet.paste(scaled, (x, y + (cell - scaled.height) // 2))
    return sheet


def png(sheet: Image.Image) -> bytes:
    """A sheet as a PNG file, as small as it gets."""
    file = io.BytesIO()
    sheet.save(file, format="PNG", optimize=True)
    return file.getvalue()


def _label(draw: ImageDraw.ImageDraw, row: SheetRow, y: int, cell: int) -> None:
    """Draw title, notes and bars of a row, centred beside its images, whose top is at `y`."""
    bars = _bars(row.steps)
    height = _line(TITLE) + len(row.notes) * _line(TEXT) + (8 + 16 * len(bars) if bars else 0)
    y += (cell - height) // 2
    draw.text((MARGIN, y), row.title, fill=INK, font=_font(TITLE), anchor="lt")
    y += _line(TITLE)
    for note in row.notes:
        draw.text((MARGIN, y), note, fill=GREY, font=_font(TEXT), anchor="lt")
        y += _line(TEXT)
    y += 8
    for line in bars:
        for i, letter in enumerate(line):
            x = MARGIN + PITCH * i
            draw.rectangle((x, y, x + PITCH - 3, y + 11), fill=PARTIAL if letter == "P" else FULL)
        y += 16


def _bars(steps: str) -> list[str]:
    """`steps` in up to three lines of the same length; no lines if it is too long for three."""
    lines = -(-len(steps) // ((LABEL - GAP) // PITCH))
    if not 0 < lines <= 3:
        return []
    length = -(-len(steps) // lines)
    return [steps[i : i + length] for i in range(0, len(steps), length)]


def _scaled(image: Image.Image, cell: int) -> Image.Image:
    factor = cell / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


@cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size=size)


def _line(size: int) -> int:
    """Height of a line of text in that font size."""
    return round(1.32 * size)


def _wrapped(text: str, size: int, width: int, most: int = 2) -> list[str]:
    """`text` in at most `most` lines of `width` pixels; what does not fit is cut off with an ellipsis."""
    lines = [""]
    for word in text.split():
        # A character takes a pixel or more, so the rest of a word does not fit; and it can be a megabyte long.
        longer = f"{lines[-1]} {word[: width + 1]}".strip()
        if not lines[-1] or _font(size).getlength(longer) <= width:
            lines[-1] = longer
        elif len(lines) < most:
            lines.append(word[: width + 1])
        else:
            lines[-1] = longer
            break
    return [_cut(line, size, width) for line in lines]


def _cut(line: str, size: int, width: int) -> str:
    if _font(size).getlength(line) <= width:
        return line
    fits = bisect_right(range(len(line)), width, key=lambda n: _font(size).getlength(f"{line[:n]}...")) - 1
    return f"{line[: max(fits, 0)].rstrip()}..."
