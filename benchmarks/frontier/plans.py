"""Calibration with a table of segments and halves apart, against the search that it replaced, at about equal time.

    python -m benchmarks.frontier.plans

Each method makes plans for all budgets in one calibration, on the demo's calibration prompts. Their images are compared
with the original's on other prompts and seeds. `seconds` are those of one core for the whole calibration, all budgets,
with the original's runs. The search that was replaced gets twice the trials, which takes about as long as the table.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.console import parser
from benchmarks.frontier.measure import setting_of
from benchmarks.frontier.pictures import CALIBRATION, HELD_OUT, SEEDS, images
from benchmarks.frontier.uniform_search import UniformSearch
from stepcache import accelerate, restore
from stepcache import calibration as package
from stepcache.bench.rows import write
from stepcache.calibration import calibrate
from stepcache.images.bootstrap import bootstrap
from stepcache.images.fidelity import psnr
from stepcache.images.pipelines import load_demo
from stepcache.images.schedulers import swap_scheduler
from stepcache.plans.plan import Plan
from stepcache.progress import progress

SETTINGS = (("dpm++", 20, 7.5), ("dpm++", 50, 7.5), ("euler", 20, 7.5))
BUDGETS = (2.0, 2.5)
TRIALS = {"search": 24, "segments": 12}


@dataclass(frozen=True)
class Row:
    """One plan. gain: over the plan of the search, in dB, with its confidence interval (bootstrap over prompts)."""

    scheduler: str
    steps: int
    guidance_scale: float
    budget: float
    method: str
    trials: int
    seconds: float
    schedule: str
    branch: int
    guidance: str
    candidate: str
    speedup_macs: float
    psnr_calibration: float
    psnr: float
    gain: float | None
    gain_low: float | None
    gain_high: float | None
    prompts: int
    seeds: int


class Calibrated(NamedTuple):
    """The plans of a method by budget, and the seconds of one core that they took together."""

    plans: dict[float, Plan]
    seconds: float


@contextlib.contextmanager
def replaced_search() -> Iterator[None]:
    """Within the block `calibrate` searches as it did before (uniform_search.py)."""
    present = package._search

    def uniform(
        laboratory: Any, budget: float, highest: float, trials: int, seed: int, tell: Callable[..., None]
    ) -> Any:
        return UniformSearch(laboratory, trials).run(budget, seed)

    package._search = uniform
    try:
        yield
    finally:
        package._search = present


def calibrated(
    pipe: Any,
    method: str,
    setting: tuple[str, int, float],
    prompts: Sequence[str],
    budgets: Sequence[float],
    trials: int,
) -> Calibrated:
    """Plans by "search" or "segments". The scheduler of `pipe` must be the setting's."""
    _, steps, guidance = setting
    start = time.process_time()
    with replaced_search() if method == "search" else contextlib.nullcontext():
        found = calibrate(pipe, prompts, steps=steps, guidance=guidance, budgets=budgets, trials=trials, progress=False)
    return Calibrated(dict(zip(budgets, found, strict=True)), time.process_time() - start)


def measure(
    pipe: Any,
    setting: tuple[str, int, float],
    *,
    calibration: Sequence[str] = CALIBRATION,
    held_out: Sequence[str] = HELD_OUT,
    seeds: Sequence[int] = SEEDS[:1],
    budgets: Sequence[float] = BUDGETS,
    trials: dict[str, int] = TRIALS,
) -> Iterator[Row]:
    """All rows of one setting. The scheduler of `pipe` is replaced by the setting's."""
    scheduler, steps, guidance = setting
    swap_scheduler(pipe, scheduler, steps)
    methods = {name: calibrated(pipe, name, setting, calibration, budgets, count) for name, count in trials.items()}
    originals = images(pipe, held_out, seeds, steps, guidance)
    for budget in budgets:
        rival: np.ndarray | None = None
        for method, (plans, seconds) in methods.items():
            plan = plans[budget]
            accelerate(pipe, plan=plan, compile=False, cuda_graphs=False, channels_last=False)
            try:
                close = psnr(images(pipe, held_out, seeds, steps, guidance), originals)
            finally:
                restore(pipe)
            by_prompt = close.reshape(len(seeds), len(held_out)).T
            gain = None if rival is None else bootstrap(by_prompt - rival)
            rival = by_prompt if method == "search" else rival
            yield Row(
                *setting, budget, method, trials[method], seconds, plan.mask, plan.branch, plan.guidance,
                plan.made_with["candidate"], plan.speedup, plan.made_with["calibration_psnr"], float(close.mean()),
                *((None,) * 3 if gain is None else gain), len(held_out), len(seeds),
            )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Measure setting by setting; write rows as they come."""
    arguments = parser(__doc__, "plans.csv", append=True)
    arguments.add_argument("--settings", type=setting_of, nargs="+", default=list(SETTINGS), metavar="S:N:G")
    args = arguments.parse_args(argv)
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)
    pipe, append = load_demo("cpu"), args.append
    for setting in progress("settings", unit="settings", over=args.settings):
        for row in measure(pipe, setting):
            write(args.out, [row], append=append)
            append = True


if __name__ == "__main__":
    main()
