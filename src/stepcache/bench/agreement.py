"""Checks a variant's images against a variant that computes the same with nothing compiled or captured.

A speed means nothing if the images are wrong, and fidelity to the original cannot show that, since reuse itself changes
the images. So each variant has a reference that does the same work at the same steps:

- stepcache compiled, captured or with its kernels: stepcache eager at the same interval and branch;
- stepcache eager that holds the feature: DeepCache, the published implementation, if both count steps and branches
  alike;
- torch.compile with DeepCache: DeepCache; with fewer steps: fewer steps; torch.compile alone, and variants without
  reuse (interval 1): eager.

Eager, fewer steps, DeepCache and predictions have no reference. A variant whose reference is wrong is wrong too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..reuse.schedule import Schedule
from .entries import Entry

TOLERANCE = {"float32": 0.05, "float16": 0.05, "bfloat16": 0.2}
"""The largest `difference` that is accepted, by dtype.

Compiled code rounds differently, and steps with guidance amplify that. Rounding everything in a run changed the demo's
images by 0.003 of their contrast in float16 and 0.03 in bfloat16 (50 steps), and SD 2.1's with random weights by 0.04
in bfloat16 (20 steps). On a GPU, float32's convolutions are TF32, which has float16's digits. The rest is room for
models that amplify more. Reuse at interval 3 changed SD 2.1's images by 0.07; a graph that reads memory of others
changes them far more.
"""


class Agreement(NamedTuple):
    """reference: name of the variant that computes the same, or "" if none ran. wrong: what is wrong, or ""."""

    reference: str = ""
    difference: float | None = None
    wrong: str = ""


def difference(images: np.ndarray, reference: np.ndarray) -> float:
    """RMS of the difference over the standard deviation of the reference's pixels: 0 if equal, 1.4 if unrelated.

    It is relative to the contrast because random weights make nearly gray images, which are all alike in PSNR.
    """
    rms = float(np.sqrt(np.mean(np.square(images.astype(np.float64) - reference))))
    contrast = float(reference.std(dtype=np.float64))
    return rms / contrast if contrast else (0.0 if rms == 0 else float("inf"))


def agreements(entries: Sequence[Entry], dtype: str) -> dict[int, Agreement]:
    """The agreement of each measured entry, by its `id`."""
    found: dict[int, Agreement] = {}

    def judge(entry: Entry) -> Agreement:
        if id(entry) not in found:
            found[id(entry)] = Agreement()  # remembers that it has been judged
            other = _reference(entry, entries)
            if other is not None:
                found[id(entry)] = _compare(entry, other, judge(other), TOLERANCE[dtype])
        return found[id(entry)]

    for entry in entries:
        if entry.measured:
            judge(entry)
    return found


def _compare(entry: Entry, other: Entry, of_other: Agreement, tolerance: float) -> Agreement:
    name = other.variant.name
    if not np.isfinite(other.images).all():
        return Agreement(name)  # nothing to compare with; the reference's own row says so
    if not np.isfinite(entry.images).all():
        return Agreement(name, None, f"images are wrong: not finite, while those of {name} are")
    off = difference(entry.images, other.images)
    if not off <= tolerance:
        return Agreement(name, off, f"images are wrong: {off:.2g} of their contrast away from {name}")
    if of_other.wrong:
        return Agreement(name, off, f"images are wrong: like those of {name}")
    return Agreement(name, off)


_REFERENCES = {
    "eager": "",
    "fewer-steps": "",
    "deepcache": "",
    "compile+fewer-steps": "fewer-steps",
    "compile+deepcache": "deepcache",
    "stepcache-eager": "deepcache",
}


def _reference(entry: Entry, entries: Sequence[Entry]) -> Entry | None:
    """The measured entry whose images `entry` must reproduce; None if there is none."""
    variant = entry.variant
    key = _REFERENCES.get(variant.key, "stepcache-eager")
    if variant.interval in (None, 1) and key and variant.key != "compile+deepcache":
        key = "eager"
    found = next((other for other in entries if other.measured and other.variant.key == key), None)
    if found is not None and (variant.key, key) == ("stepcache-eager", "deepcache") and not _counts_alike(entry, found):
        return None
    return found


def _counts_alike(ours: Entry, theirs: Entry) -> bool:
    """Whether DeepCache runs the same steps and branch for the same numbers, on the same features.

    It predicts none, counts timesteps, of which Heun and the like have two per step, and assumes that a block has three
    ResNets.
    """
    interval, branch = ours.variant.interval, ours.variant.branch
    if interval is None or branch is None or ours.pipe is None or ours.variant.predict != "hold":
        return False
    if ours.kinds != Schedule.uniform(interval).kinds(theirs.repeats[-1].unet_calls):
        return False
    blocks = [len(block.resnets) for block in getattr(ours.pipe.unet, "up_blocks", ())]
    return bool(blocks) and (branch < blocks[-1] or set(blocks) == {3})
