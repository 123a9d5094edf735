"""Calibration: the plan whose images are closest to the original's at a given cost, found by making images.

features.py reads the features of one run of the original; candidates.py says what a plan may be; images.py runs one;
laboratory.py measures it, and journal.py remembers; search.py chooses for each budget. All is judged by the final
images: the error of the feature itself is a bad guide (with high guidance the predictions that fit it best gave the
worst images).
"""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .._version import __version__
from ..api import restore
from ..errors import InvalidSetting
from ..plans.plan import MadeFor, Plan
from ..reuse.schedule import positive_int
from .candidates import Candidate
from .images import Shots, check_call
from .journal import Journal
from .laboratory import HEATS, HELD_OUT, Laboratory
from .search import search

# To search with, and again held out.
LEAST_PROMPTS = 4


def calibrate(
    pipe: Any,
    prompts: Sequence[str],
    *,
    steps: int,
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
    """One plan for each of `budgets`, for `pipe` with its present U-Net, scheduler, and that many steps.

    pipe: a text-to-image pipeline; it is made the original's again (restore) and left so. prompts: at least 8, without
    repetitions; half of them, drawn by `seed`, calibrate, and the other half, with other noise, give the figures that
    plans carry. budgets: how many times fewer MACs the U-Net shall take, over 1; a plan has that or a bit more.
    trials: candidates that are tried for a budget. branches: so many of the cheapest are looked at. negatives: a
    negative prompt each. size: (height, width) in pixels; default: the pipeline's. batch: images a pipeline call, at
    most. journal: a file that measurements are noted in, and taken from where a search was interrupted. command: for
    the plan's record. progress: a bar with the time that remains.

    Price: the original once over all prompts, and for each budget at most `trials` runs of its cost over half of them
    (those that do clearly worse on a quarter stop there); all features of `batch` images in main memory for a while.
    Several budgets share runs of the original and all measurements. Everything runs eager. Figures: the plan's, then
    those of DeepCache's algorithm (the last feature held, both halves of guidance, full steps at regular intervals, the
    best of these branches) at no more than the budget's cost, and of the next dearer one.

    InvalidSetting for arguments that do not do, UnsupportedUNet and UnsupportedPipeline as in `accelerate`.
    """
    steps, trials = positive_int("steps", steps, at_least=2), positive_int("trials", trials)
    batch, branches = positive_int("batch", batch), positive_int("branches", branches)
    budgets = [_checked(budget) for budget in budgets]
    restore(pipe)
    check_call(pipe)
    call: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": guidance}
    if size is not None:
        call["height"], call["width"] = size
    sets = _split(prompts, negatives, seed, call, batch)
    made_for = MadeFor.of(pipe, guidance)
    notes = Journal(journal, _header(made_for, sets, steps, size, branches))
    with _bar(len(budgets) * trials, progress) as tell:
        tell(0, "the original")
        laboratory = Laboratory.open(pipe, sets, branches, notes)
        found = []
        for budget in budgets:
            best = _search(laboratory, budget, trials, seed, tell)
            tell(0, f"{budget:g}x: held-out prompts")
            made_with = {"budget": budget, "call": call, "seed": seed, "trials": trials, "command": command}
            found.append(_plan(laboratory, budget, best, made_for, made_with))
        return found


def _search(
    laboratory: Laboratory, budget: float, trials: int, seed: int, tell: Callable[[int, str], None]
) -> Candidate:
    done, highest = 0, -float("inf")

    def measure(candidate: Candidate, beat: Candidate | None) -> float:
        nonlocal done, highest
        value = laboratory.psnr(candidate, beat)
        done, highest = done + 1, max(highest, value)
        tell(1, f"{budget:g}x: {highest:.2f} dB")
        return value

    best = search(laboratory.space, budget, trials, seed, measure)
    tell(trials - done, f"{budget:g}x: {highest:.2f} dB")
    return best


def _plan(laboratory: Laboratory, budget: float, best: Candidate, made_for: MadeFor, made_with: dict) -> Plan:
    """The plan of a candidate, with its figures."""
    line = best.line or laboratory.best_line(best)
    counts = {name: len(shots.prompts) for name, shots in laboratory.sets.items()}
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
        line.damping,
        best.table(laboratory.collector.grams[best.branch]),
        laboratory.space.speedup(best),
        (laboratory.figures("plan", best), *laboratory.rivals(budget)),
        made_with,
    )


def _checked(budget: object) -> float:
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not 1 < budget < float("inf"):
        raise InvalidSetting(f"A budget is a number over 1, how many times cheaper a run shall be; got {budget!r}.")
    return float(budget)


def _split(
    prompts: Sequence[str], negatives: Sequence[str] | None, seed: int, call: dict[str, Any], batch: int
) -> dict[str, Shots]:
    """A quarter, a quarter and a half of the prompts, with seeds that no two images share."""
    negatives = [""] * len(prompts) if negatives is None else negatives
    if len(negatives) != len(prompts):
        raise InvalidSetting(f"{len(prompts)} prompts and {len(negatives)} negative prompts: one each is needed.")
    pairs = list(dict.fromkeys(zip(prompts, negatives, strict=True)))
    if len(pairs) < 2 * LEAST_PROMPTS:
        raise InvalidSetting(
            f"Calibration needs at least {2 * LEAST_PROMPTS} different prompts, {LEAST_PROMPTS} to search with and "
            f"{LEAST_PROMPTS} to tell how good the plan is; got {len(pairs)}."
        )
    random.Random(seed).shuffle(pairs)
    ends = 0, len(pairs) // 4, len(pairs) // 2, len(pairs)
    sets = {}
    for name, start, end in zip((*HEATS, HELD_OUT), ends, ends[1:], strict=False):
        texts, others = zip(*pairs[start:end], strict=True)
        sets[name] = Shots(tuple(texts), tuple(others), tuple(range(seed + start, seed + end)), call, batch)
    return sets


def _header(
    made_for: MadeFor, sets: dict[str, Shots], steps: int, size: tuple[int, int] | None, branches: int
) -> dict[str, Any]:
    """What measurements depend on."""
    return {
        "model": [made_for.unet, made_for.config, list(made_for.weights)],
        "scheduler": made_for.scheduler,
        "guidance": made_for.guidance,
        "steps": steps,
        "prompts": {name: [list(shots.prompts), list(shots.negatives)] for name, shots in sets.items()},
        "seeds": {name: list(shots.seeds) for name, shots in sets.items()},
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
    """A bar of trials. Yields tell(number done, what is going on)."""
    from tqdm.auto import tqdm

    with tqdm(total=total, unit=" trials", disable=not shown, smoothing=0.1) as bar:

        def tell(done: int, what: str) -> None:
            bar.set_description(what)
            bar.update(done)

        yield tell


__all__ = ["calibrate"]
