"""Figures of a comparison over all prompts: one summary for the original and one for each setting, and their table."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..images.fidelity import in_words, mean_of
from .results import Comparison, Setting, Variant


@dataclass(frozen=True)
class Summary:
    """A setting's figures over all prompts; None if no image has one.

    setting: None for the original. kinds: a letter for each U-Net call; cost: of all of them, in full calls. seconds:
    median per image. speed_up: median over prompts of the original's seconds over the setting's, and its range. Means,
    that of PSNR without identical images (fidelity.mean_of). worst_*: of the least faithful image.
    """

    setting: Setting | None
    kinds: str
    seconds: float
    cost: float | None = None
    speed_up: float | None = None
    speed_ups: tuple[float, float] | None = None
    psnr: float | None = None
    worst_psnr: float | None = None
    ssim: float | None = None
    worst_ssim: float | None = None
    lpips: float | None = None
    worst_lpips: float | None = None
    clip: float | None = None

    @property
    def name(self) -> str:
        """The setting's, or "original"."""
        return "original" if self.setting is None else self.setting.name


def summaries(comparison: Comparison) -> list[Summary]:
    """The original's, then one for each setting."""
    originals = [result.original for result in comparison.results]
    found = [
        Summary(
            None,
            originals[0].kinds,
            statistics.median(shot.seconds for shot in originals),
            _cost(comparison, None, originals[0].kinds),
            clip=_mean(shot.clip for shot in originals),
        )
    ]
    for i, setting in enumerate(comparison.settings):
        shots = [result.shots[i] for result in comparison.results]
        ratios = [original.seconds / shot.seconds for original, shot in zip(originals, shots, strict=True)]
        psnr = [shot.psnr for shot in shots if shot.psnr is not None]
        ssim = [shot.ssim for shot in shots if shot.ssim is not None]
        lpips = [shot.lpips for shot in shots if shot.lpips is not None]
        found.append(
            Summary(
                setting,
                shots[0].kinds,
                statistics.median(shot.seconds for shot in shots),
                _cost(comparison, setting, shots[0].kinds),
                statistics.median(ratios),
                (min(ratios), max(ratios)),
                psnr=mean_of(psnr) if psnr else None,
                worst_psnr=min(psnr, default=None),
                ssim=_mean(ssim),
                worst_ssim=min(ssim, default=None),
                lpips=_mean(lpips),
                worst_lpips=max(lpips, default=None),
                clip=_mean(shot.clip for shot in shots),
            )
        )
    return found


def _cost(comparison: Comparison, setting: Setting | None, kinds: str) -> float | None:
    if comparison.cost is None:
        return None
    return comparison.cost.in_calls(kinds, setting.branch if isinstance(setting, Variant) else 0)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def table(rows: Sequence[Summary]) -> str:
    """The summaries as text, a line each, without the scores that were not computed."""
    columns: list[tuple[str, int, Callable[[Summary], str]]] = [
        ("seconds", 8, lambda row: f"{row.seconds:.2f}"),
        ("speed-up", 10, lambda row: _text(row.speed_up, "{:.2f}x")),
        ("PSNR", 11, lambda row: "" if row.psnr is None else in_words(row.psnr)),
        ("worst", 11, lambda row: "" if row.worst_psnr is None else in_words(row.worst_psnr)),
        ("SSIM", 8, lambda row: _text(row.ssim, "{:.3f}")),
        ("worst", 8, lambda row: _text(row.worst_ssim, "{:.3f}")),
    ]
    if any(row.lpips is not None for row in rows):
        columns.append(("LPIPS", 8, lambda row: _text(row.lpips, "{:.3f}")))
    if any(row.clip is not None for row in rows):
        columns.append(("CLIP", 8, lambda row: _text(row.clip, "{:.2f}")))
    first = max(24, *(len(row.name) + 2 for row in rows))
    lines = [f"{'setting':{first}}" + "".join(f"{name:>{width}}" for name, width, _ in columns)]
    lines += [f"{row.name:{first}}" + "".join(f"{text(row):>{width}}" for _, width, text in columns) for row in rows]
    return "\n".join(lines)


def _text(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
