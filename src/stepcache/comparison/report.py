"""The comparison as one HTML page that needs nothing else: style, script and images are in it.

The page is assets/report: a Jinja template, its style sheet and its script. Its content security policy forbids every
request, so that a browser would say so if one were made.
"""

from __future__ import annotations

import math
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ..images.pictures import GAIN, LOSSLESS
from .charts import drift_chart, round_up, schedule_bars
from .results import Comparison, figures_of


def html_report(comparison: Comparison) -> str:
    """The page. The comparison has at least one result."""
    assets = files("stepcache") / "assets" / "report"
    template, css, js = ((assets / f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js"))
    figures = figures_of(comparison)
    drifts = [run for runs in comparison.drifts.values() for run in runs]
    count = max((len(runs) for runs in comparison.drifts.values()), default=0)
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return page.from_string(template).render(
        comparison=comparison,
        figures=figures,
        has_lpips=any(row.lpips is not None for row in figures),
        has_clip=any(row.clip is not None for row in figures),
        charts=_charts(comparison, round_up(max((max(run) for run in drifts), default=0))),
        drift_prompts="the first prompt" if count == 1 else f"the first {count} prompts",
        drift_many=count > 1,
        # Of each prompt, its PSNR under each setting, to sort by; those that cannot be compared go last.
        ranks=[[_rank(shot.psnr) for shot in result.reused] for result in comparison.results],
        gain=GAIN,
        small=LOSSLESS,  # pixels: such images are shown larger than they are, with their pixels to be seen
        bars=lambda kinds: Markup(schedule_bars(kinds)),
        decibel=_decibel,
        seconds=_seconds,
        css=Markup(css),
        js=Markup(js),
    )


def _charts(comparison: Comparison, top: float) -> list[tuple[str, Markup]]:
    """Name and drift chart of each setting that has one."""
    return [
        (setting.name, Markup(drift_chart(setting.schedule.kinds(len(runs[0])), runs, top)))
        for setting, runs in comparison.drifts.items()
        if runs
    ]


def _rank(psnr: float | None) -> str:
    return "Infinity" if psnr is None or math.isinf(psnr) else f"{psnr:.4f}"


def _decibel(value: float) -> str:
    return "identical" if math.isinf(value) else f"{value:.1f} dB"


def _seconds(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"
