"""The comparison as a contact sheet."""

from __future__ import annotations

from PIL import Image

from ..images.fidelity import in_words
from ..images.sheet import SheetRow, contact_sheet
from .results import Comparison
from .summary import Summary, summaries

COLUMNS = 8  # prompts beside each other
LEGEND = "Each bar is a U-Net call: dark ran all of it, light its shallow part. Figures are over all prompts."


def draw(comparison: Comparison) -> Image.Image:
    """At most COLUMNS prompts beside each other, and the next ones below."""
    results = comparison.results
    parts = []
    for first in range(0, len(results), COLUMNS):
        some = results[first : first + COLUMNS]
        heading, subheading = f"stepcache compare: {comparison.model}", f"{comparison.summary} {LEGEND}"
        if first:
            heading, subheading = f"Prompts {first + 1} to {first + len(some)}", ""
        shots = [[result.original for result in some]]
        shots += [[result.reused[i] for result in some] for i in range(len(comparison.variants))]
        rows = [
            SheetRow(row.name.split(",")[0], [shot.thumbnail for shot in images], _notes(row), row.kinds)
            for row, images in zip(summaries(comparison), shots, strict=True)
        ]
        parts.append(contact_sheet(heading, subheading, [result.request.text for result in some], rows))
    sheet = Image.new("RGB", (max(part.width for part in parts), sum(part.height for part in parts)), "white")
    for i, part in enumerate(parts):
        sheet.paste(part, (0, sum(above.height for above in parts[:i])))
    return sheet


def _notes(row: Summary) -> list[str]:
    """The text beside a row of images: figures over all prompts."""
    if row.speed_up is None:
        return [f"{row.seconds:.2f} s"]
    notes = [row.name.split(", ")[1], f"speed-up {row.speed_up:.2f}x, {row.seconds:.2f} s"]
    if row.psnr is not None:
        notes.append(in_words(row.psnr, "PSNR "))
    return notes
