"""The comparison as one HTML page, with style, script and images inside.

The page is assets/report: a Jinja template, its style sheet and its script. Its content security policy forbids all
requests but for pictures beside the page, if it has any (page.py), so a browser would report any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ..images.fidelity import in_words
from ..images.pictures import GAIN, LOSSLESS
from .charts import drift_chart, round_up, schedule_bars
from .closer import closer
from .results import Comparison, FewerSteps
from .summary import summaries


def html_report(comparison: Comparison, source: Callable[[str], str] | None = None) -> str:
    """The page of a comparison with at least one result.

    source: what the page has for a picture's data URI; default: the URI itself, so that the page is one file.
    """
    assets = files("stepcache") / "assets" / "report"
    template, css, js = ((assets / f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js"))
    rows = summaries(comparison)
    drifts = [run for runs in comparison.drifts.values() for run in runs]
    count = max((len(runs) for runs in comparison.drifts.values()), default=0)
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return page.from_string(template).render(
        comparison=comparison,
        closer=closer(comparison),
        fewer=[isinstance(setting, FewerSteps) for setting in comparison.settings],
        predicts=not all(variant.holds for variant in comparison.variants),
        summaries=rows,
        has_lpips=any(row.lpips is not None for row in rows),
        has_clip=any(row.clip is not None for row in rows),
        charts=_charts(comparison, round_up(max((max(run) for run in drifts), default=0))),
        drift_prompts="the first prompt" if count == 1 else f"the first {count} prompts",
        drift_many=count > 1,
        # For each prompt its PSNR in each setting, to sort by. Images that were not compared go last.
        ranks=[[_rank(shot.psnr) for shot in result.shots] for result in comparison.results],
        source=source or str,
        beside=source is not None,
        gain=GAIN,
        small=LOSSLESS,  # images of up to so many pixels are enlarged, with visible pixels
        bars=lambda kinds: Markup(schedule_bars(kinds)),
        decibel=in_words,
        seconds=_seconds,
        css=Markup(css),
        js=Markup(js),
    )


def _charts(comparison: Comparison, top: float) -> list[tuple[str, Markup]]:
    """Name and drift chart of each variant that has one."""
    return [
        (variant.name, Markup(drift_chart(variant.schedule.kinds(len(runs[0])), runs, top)))
        for variant, runs in comparison.drifts.items()
        if runs
    ]


def _rank(psnr: float | None) -> str:
    return "Infinity" if psnr is None or math.isinf(psnr) else f"{psnr:.4f}"


def _seconds(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"
