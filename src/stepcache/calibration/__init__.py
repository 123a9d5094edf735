"""Calibration: finds the plan whose images are closest to the original's at a given cost, by making images.

grams.py reads the features of one run of the original; replay.py runs a few partial steps anywhere in it, and
segments.py makes a table of what they cost, from which paths.py finds full steps for any budget; candidates.py defines
what can be a plan; images.py runs one; laboratory.py measures it, and journal.py keeps the measurements; search.py
chooses for each budget. Candidates are judged by their final images: the error of the feature is a bad guide (with high
guidance the predictions that fit the feature best gave the worst images).
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .._version import __version__
from ..api import restore
from ..errors import InvalidSetting
from ..images.make import check_text_to_image
from ..plans.plan import MadeFor, Plan
from ..progress import advance, progress
from ..reuse.predict import Apart
from ..values import as_entries, positive_int
from .candidates import Candidate
from .images import HEATS, HELD_OUT, NEEDED, PromptSet, score, split
from .journal import Journal
from .laboratory import Laboratory, expected_spaces
from .search import options_within, search


def calibrate(
    pipe: Any,
    prompts: Sequence[str],
    *,
    steps: int | Sequence[int],
    guidance: float,
    budgets: Sequence[float],
    seed: int = 0,
    trials: int = 60,
    branches: int = 3,
    negatives: Sequence[str] | None = None,
    size: tuple[int, int] | None = None,
    batch: int = 8,
    journal: Path | None = None,
    command: str = "",
    progress: bool = True,
) -> list[Plan]:
    """A plan for each of `budgets`, for `pipe` with its present U-Net and scheduler, and that many steps.

    pipe: a text-to-image pipeline; restored first, and left so. prompts: at least 8 different ones; half of them, drawn
    by `seed`, calibrate, and the other half, with other noise, give the figures in the plans. steps: at least 2; of
    several numbers, the one whose images are closest to those of the run of the most steps is chosen for each budget.
    budgets: how many times fewer MACs the U-Net is to take than in the run of the most steps, over 1; a plan saves that
    or a bit more. So with steps (20, 50) and a budget of 2.5, 20 steps may all be full. trials: candidates to try for a
    budget, of all numbers of steps together.
    branches: how many to look at, from the cheapest on. negatives: a negative prompt for each prompt. size: (height,
    width) in pixels; default: the pipeline's. batch: images in a pipeline call, at most. journal: a file for
    measurements, from which an interrupted search goes on; one calibration at a time may use it. command: for the
    plan's record. progress: show a bar with the remaining time.

    Price: the original once over all prompts, other numbers of steps over half of them. For each number of steps
    and kind of guidance that may fit, a table of segments on at most twice `batch` images (SegmentMeter.table).
    For each budget at most `trials` runs at its cost over half of the prompts (candidates that are clearly worse on a
    quarter stop there), and up to 2 * `branches` + 3 over the other half, for figures. Budgets share the original's
    runs and all measurements. Everything runs eager. Main memory holds the features of the table's images, for each
    number of steps: with SDXL at 1024 px in float16 and 3 branches 84 MB an image and step, so 67 GB for 16 images of
    50 steps, and 8 GB with batch=1.

    Figures in a plan: the plan's; then those of predict="auto", which needs no calibration, with its number of full
    steps, evenly spaced, its branch and its guidance; then those of DeepCache's algorithm at the most steps (last
    feature held, both halves of guidance, full steps at regular intervals, the best of these branches) within the
    budget, and at the next higher cost; for several numbers of steps, then of the most steps that fit the budget, all
    full.

    InvalidSetting for invalid arguments; UnsupportedUNet and UnsupportedPipeline as in `accelerate`.
    """
    counts, trials = _counts(steps), positive_int("trials", trials)
    batch, branches = positive_int("batch", batch), positive_int("branches", branches)
    budgets = [_checked(budget) for budget in budgets]
    restore(pipe)
    check_text_to_image(pipe, NEEDED, "calibration")
    call: dict[str, Any] = {"guidance_scale": guidance}
    if size is not None:
        call["height"], call["width"] = size
    sets = split(prompts, negatives, seed, counts[0], call, batch)
    if spaces := expected_spaces(pipe, counts, branches, guidance, size):
        for budget in budgets:
            options_within(spaces, budget)  # raises, before hours of work, if it cannot be reached
    made_for = MadeFor.of(pipe, guidance)
    header = _header(made_for, sets, counts, size, branches)
    header |= {"dtype": str(pipe.unet.dtype), "device": pipe.unet.device.type}
    with Journal(journal, header) as notes, _bar(len(budgets) * trials, progress) as tell:
        laboratory = Laboratory.open(pipe, sets, branches, notes, counts)
        found = []
        for budget in budgets:
            tell(0, f"{budget:g}x: segments")
            best = _search(laboratory, budget, max(budgets), trials, seed, tell)
            tell(0, f"{budget:g}x: held-out prompts")
            own = laboratory.of(best).sets[HELD_OUT].steps
            made_with = {"budget": budget, "call": {"num_inference_steps": own, **call}, "steps": counts}
            made_with |= {"seed": seed, "trials": trials, "command": command}
            found.append(_plan(laboratory, budget, best, made_for, made_with))
        return found


def _search(
    laboratory: Laboratory, budget: float, highest: float, trials: int, seed: int, tell: Callable[[int, str], None]
) -> Candidate:
    done, best_psnr = 0, -float("inf")

    def measure(candidate: Candidate, beat: Candidate | None) -> tuple[float, ...]:
        nonlocal done, best_psnr
        values = laboratory.images(candidate, beat)
        done, best_psnr = done + 1, max([best_psnr, *([score(values)] if values else [])])
        tell(1, f"{budget:g}x: {best_psnr:.2f} dB")
        return values

    spaces = [length.space for length in laboratory.lengths.values()]
    best = search(spaces, budget, trials, seed, measure, lambda option: laboratory.propose(option, highest))
    tell(trials - done, f"{budget:g}x: {best_psnr:.2f} dB")
    return best


def _plan(laboratory: Laboratory, budget: float, best: Candidate, made_for: MadeFor, made_with: dict) -> Plan:
    """The plan of a candidate, with its figures."""
    line = best.line or laboratory.best_line(best)
    length = laboratory.of(best)
    counts = {name: len(each.prompts) for name, each in length.sets.items()}
    made_with = {
        **made_with,
        "candidate": best.key,
        "calibration_psnr": laboratory.psnr(best),
        "prompts": {"calibration": sum(counts[name] for name in HEATS), HELD_OUT: counts[HELD_OUT]},
        "date": datetime.date.today().isoformat(),
        **_versions(),
    }
    return Plan(
        made_for,
        best.mask,
        best.branch,
        "reuse" if best.reuse else "both",
        line.order if best.line else max(best.order, line.order),
        line.mean if isinstance(line, Apart) else line.damping,
        best.table(length.collector.grams[best.branch]),
        length.space.speedup(best),
        (laboratory.figures("plan", best), *laboratory.rivals(budget, best)),
        made_with,
        isinstance(line, Apart),
        line.difference if isinstance(line, Apart) else 0.0,
    )


def _counts(steps: object) -> list[int]:
    """The numbers of steps to search, most first."""
    given = as_entries(steps)
    counts = [positive_int("steps", count, at_least=2) for count in ((steps,) if given is None else given)]
    if not counts:
        raise InvalidSetting("steps must be a number of steps or several, got none.")
    return sorted(set(counts), reverse=True)


def _checked(budget: object) -> float:
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not 1 < budget < float("inf"):
        raise InvalidSetting(f"A budget is a number over 1: how many times cheaper runs are to be. Got {budget!r}.")
    return float(budget)


def _header(
    made_for: MadeFor, sets: dict[str, PromptSet], counts: list[int], size: tuple[int, int] | None, branches: int
) -> dict[str, Any]:
    """All that measurements depend on."""
    return {
        "model": [made_for.unet, made_for.config, list(made_for.weights)],
        "scheduler": made_for.scheduler,
        "guidance": made_for.guidance,
        "steps": counts,
        "prompts": {name: [list(each.prompts), list(each.negatives)] for name, each in sets.items()},
        "seeds": {name: list(each.seeds) for name, each in sets.items()},
        "size": size,
        "batch": sets[HELD_OUT].batch,
        "branches": branches,
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    import diffusers
    import torch

    return {"stepcache": __version__, "torch": torch.__version__, "diffusers": diffusers.__version__}


@contextmanager
def _bar(total: int, shown: bool) -> Iterator[Callable[[int, str], None]]:
    """A bar of trials. Yields tell(trials done, what is going on)."""
    with progress("the original", total, "trials", shown=shown, smoothing=0.1) as bar:

        def tell(done: int, what: str) -> None:
            advance(bar, what, done)

        yield tell


__all__ = ["calibrate"]
