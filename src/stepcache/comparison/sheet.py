"""The comparison as a contact sheet."""

from __future__ import annotations

from PIL import Image

from ..images.fidelity import in_words
from ..images.sheet import SheetRow, contact_sheet
from ..values import amount
from .results import Comparison, FewerSteps
from .summary import Summary, summaries

COLUMNS = 8  # prompts beside each other
LEGEND = "Each bar is a U-Net call: dark ran all of it, light its shallow part."
FEWER = "Fewer steps: the original pipeline, with the most steps that should cost no more than the rows above it."


def draw(comparison: Comparison) -> Image.Image:
    """At most COLUMNS prompts beside each other, and the next ones below."""
    results = comparison.results
    rows = summaries(comparison)
    legend = f"{LEGEND} Figures are over {amount(len(results), 'prompt')}."
    if any(isinstance(row.setting, FewerSteps) for row in rows):
        legend += f" {FEWER}"
    parts = []
    for first in range(0, len(results), COLUMNS):
        some = results[first : first + COLUMNS]
        heading, subheading = f"stepcache compare: {comparison.model}", f"{comparison.summary} {legend}"
        if first:
            heading, subheading = f"Prompts {first + 1} to {first + len(some)}", ""
        shots = [[result.original for result in some]]
        shots += [[result.shots[i] for result in some] for i in range(len(comparison.settings))]
        pictures = [[shot.thumbnail for shot in images] for images in shots]
        beside = [
            SheetRow(_title(row), images, _notes(row), row.kinds) for row, images in zip(rows, pictures, strict=True)
        ]
        parts.append(contact_sheet(heading, subheading, [result.request.text for result in some], beside))
    sheet = Image.new("RGB", (max(part.width for part in parts), sum(part.height for part in parts)), "white")
    for i, part in enumerate(parts):
        sheet.paste(part, (0, sum(above.height for above in parts[:i])))
    return sheet


def _title(row: Summary) -> str:
    if row.setting is None:
        return row.name
    if isinstance(row.setting, FewerSteps):
        return f"{row.setting.steps} of {row.setting.of} steps"
    return f"interval {row.setting.interval}"


def _notes(row: Summary) -> list[str]:
    """The text beside a row of images: figures over all prompts."""
    if row.setting is None or row.speed_up is None:
        return [f"{row.seconds:.2f} s"]
    if isinstance(row.setting, FewerSteps):
        count = len(row.setting.variants)
        notes = ["for the cost of the row above" if count == 1 else f"for the cost of the {count} rows above"]
    else:
        notes = [row.setting.detail]
    notes.append(f"speed-up {row.speed_up:.2f}x, {row.seconds:.2f} s")
    if row.psnr is not None:
        notes.append(in_words(row.psnr, "PSNR "))
    return notes
