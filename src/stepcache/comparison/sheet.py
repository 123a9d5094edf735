"""The comparison as a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from ..images.fidelity import in_words
from ..images.sheet import SheetRow, contact_sheet
from .results import Comparison
from .summary import Summary, summaries

COLUMNS = 8  # prompts beside each other
LEGEND = "Each bar is a U-Net call: dark ran all of it, light its shallow part. Figures are over all prompts."


def draw(comparison: Comparison) -> Image.Image:
    """At most COLUMNS prompts beside each other, and the next ones below."""
    results, sheets = comparison.results, []
    named = [("original",), *(variant.parts for variant in comparison.variants)]
    for first in range(0, len(results), COLUMNS):
        some = results[first : first + COLUMNS]
        heading, subheading = f"stepcache compare: {comparison.model}", f"{comparison.summary} {LEGEND}"
        if first:
            heading, subheading = f"Prompts {first + 1} to {first + len(some)}", ""
        shots = [[result.original for result in some]]
        shots += [[result.reused[i] for result in some] for i in range(len(comparison.variants))]
        rows = [
            SheetRow(parts[0], [shot.thumbnail for shot in images], _notes(row, parts[1:]), row.kinds)
            for row, parts, images in zip(summaries(comparison), named, shots, strict=True)
        ]
        sheets.append(contact_sheet(heading, subheading, [result.request.text for result in some], rows))
    sheet = Image.new("RGB", (max(part.width for part in sheets), sum(part.height for part in sheets)), "white")
    for i, part in enumerate(sheets):
        sheet.paste(part, (0, sum(above.height for above in sheets[:i])))
    return sheet


def _notes(row: Summary, parts: Sequence[str]) -> list[str]:
    """The text beside a row of images: the rest of its name, and figures over all prompts."""
    if row.speed_up is None:
        return [f"{row.seconds:.2f} s"]
    notes = [", ".join(parts), f"speed-up {row.speed_up:.2f}x, {row.seconds:.2f} s"]
    if row.psnr is not None:
        notes.append(in_words(row.psnr, "PSNR "))
    return notes
