"""Whether a variant's images are those of the variant that computes the same with nothing compiled or captured.

A speed is worth nothing where the images are wrong, and fidelity to the original does not show that: reuse changes the
images itself. So each variant has a reference that does the same work at the same steps:

- stepcache compiled, captured or with its kernels: stepcache eager at the same interval and branch;
- stepcache eager: DeepCache, the published implementation, where the two count steps and branches alike;
- torch.compile with DeepCache: DeepCache; torch.compile, and all that reuses nothing (an interval of 1): eager.

Eager has none, nor has DeepCache. A variant whose reference is wrong is wrong too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from stepcache import Schedule

from .entries import Entry

TOLERANCE = {"float32": 0.05, "float16": 0.05, "bfloat16": 0.2}
"""By dtype, the most that `difference` may be.

Compiled code rounds elsewhere, and steps with guidance enlarge that. Rounding all of a run moved the demo's images by
0.003 of their contrast in float16 and 0.03 in bfloat16 (50 steps), and by 0.04 in bfloat16 those of SD 2.1 with random
weights (20 steps). float32's convolutions on a GPU are TF32, with float16's digits. The rest is room for models that
enlarge it more: reuse itself, at interval 3, moved those of SD 2.1 by 0.07, and a graph that reads memory which is not
its own moves them by much more.
"""


class Agreement(NamedTuple):
    """reference: name of the variant that computes the same, "" where none ran. wrong: what is wrong, "" if nothing."""

    reference: str = ""
    difference: float | None = None
    wrong: str = ""


def difference(images: np.ndarray, reference: np.ndarray) -> float:
    """RMS of the difference over the standard deviation of the reference's pixels: 0 the same, 1.4 unrelated images.

    Relative to the contrast, since random weights make images of nearly one gray, all of them alike in PSNR.
    """
    rms = float(np.sqrt(np.mean(np.square(images.astype(np.float64) - reference))))
    contrast = float(reference.std(dtype=np.float64))
    return rms / contrast if contrast else (0.0 if rms == 0 else float("inf"))


def agreements(entries: Sequence[Entry], dtype: str) -> dict[int, Agreement]:
    """By `id` of the entry, for those that were measured."""
    found: dict[int, Agreement] = {}

    def judge(entry: Entry) -> Agreement:
        if id(entry) not in found:
            found[id(entry)] = Agreement()  # what is its own reference has none
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
        return Agreement(name)  # nothing can be said; that images are not finite is in their own row
    if not np.isfinite(entry.images).all():
        return Agreement(name, None, f"images are wrong: not finite, while those of {name} are")
    off = difference(entry.images, other.images)
    if not off <= tolerance:
        return Agreement(name, off, f"images are wrong: {off:.2g} of their contrast away from {name}")
    if of_other.wrong:
        return Agreement(name, off, f"images are wrong: like those of {name}")
    return Agreement(name, off)


def _reference(entry: Entry, entries: Sequence[Entry]) -> Entry | None:
    """The entry whose images those of `entry` must be; None where there is none, or it was not measured."""
    variant = entry.variant
    key = {"eager": "", "deepcache": "", "compile+deepcache": "deepcache", "stepcache-eager": "deepcache"}.get(
        variant.key, "stepcache-eager"
    )
    if variant.interval in (None, 1) and key and variant.key != "compile+deepcache":
        key = "eager"
    found = next((other for other in entries if other.measured and other.variant.key == key), None)
    if found is not None and (variant.key, key) == ("stepcache-eager", "deepcache") and not _counts_alike(entry, found):
        return None
    return found


def _counts_alike(ours: Entry, theirs: Entry) -> bool:
    """Whether DeepCache runs the same steps and the same branch under the same numbers.

    It counts steps by timesteps, of which Heun and the like have two a step, and takes for granted that a block has
    three ResNets.
    """
    interval, branch = ours.variant.interval, ours.variant.branch
    if interval is None or branch is None or ours.pipe is None:
        return False
    if ours.kinds != Schedule.uniform(interval).kinds(theirs.repeats[-1].unet_calls):
        return False
    blocks = [len(block.resnets) for block in getattr(ours.pipe.unet, "up_blocks", ())]
    return bool(blocks) and (branch < blocks[-1] or set(blocks) == {3})
