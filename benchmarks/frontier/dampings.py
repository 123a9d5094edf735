"""Which damping of the halves' mean, and of their difference, gives the best images? The table behind predict="auto".

    python -m benchmarks.frontier.dampings --settings dpm++:20:7.5 euler:20:7.5
    python -m benchmarks.frontier.dampings --guidance reuse --out benchmarks/results/dampings_reuse.csv

Calibration prompts of the demo, branch 0, uniform intervals, one seed. PSNR against the original of the same number of
steps. `reuse/auto.py` has the rules that `fit` makes of these rows; its test compares the two.
"""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.console import parser
from benchmarks.frontier.measure import setting_of
from benchmarks.frontier.pictures import CALIBRATION, images
from stepcache import accelerate, restore
from stepcache.bench.rows import write
from stepcache.images.fidelity import psnr
from stepcache.images.pipelines import load_demo
from stepcache.images.schedulers import swap_scheduler
from stepcache.progress import progress
from stepcache.reuse.predict import Line, Weights
from stepcache.reuse.schedule import Schedule

PROMPTS, SEED = CALIBRATION[:12], 7
SCHEDULERS = ("dpm++", "dpm++-karras", "ddim", "euler")
INTERVALS = {20: (2, 3), 30: (2, 3), 50: (3, 5)}
SETTINGS = tuple(itertools.product(SCHEDULERS, INTERVALS, (7.5, 3.0, 5.0)))
PAIRS = (
    (0.0, 0.0), (1.0, 1.0), (1.0, 0.5), (1.0, 0.0), (1.0, -0.25), (0.5, 0.5), (0.5, 0.0), (0.5, -0.25), (0.5, -0.5),
    (0.75, 0.25),
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One pair of dampings in one setting. psnr: mean over the images, in dB."""

    scheduler: str
    steps: int
    guidance_scale: float
    interval: int
    mean: float
    difference: float
    psnr: float
    prompts: int
    seeds: int


@dataclass(frozen=True)
class Apart:
    """Lines through the last two full steps, damped apart for the halves' mean and for their difference."""

    interval: int
    mean: float
    difference: float
    of: str = "feature"
    keeps: int = 2

    def mask(self, steps: int) -> str:
        return Schedule.uniform(self.interval).kinds(steps)

    def weights(self, step: int, full: Sequence[int], steps: int) -> tuple[Weights, Weights]:
        return Line(self.mean).weights(0, step, full), Line(self.difference).weights(0, step, full)


def measure(
    pipe: Any,
    setting: tuple[str, int, float],
    reuse: str = "both",
    intervals: Sequence[int] | None = None,
    pairs: Sequence[tuple[float, float]] = PAIRS,
) -> Iterator[Row]:
    """All rows of one setting. The scheduler of `pipe` is replaced by the setting's. reuse: of guidance."""
    scheduler, steps, guidance = setting
    swap_scheduler(pipe, scheduler, steps)
    make = functools.partial(images, pipe, PROMPTS, (SEED,), steps, guidance)
    originals = make()
    eager = {"compile": False, "cuda_graphs": False, "channels_last": False}
    for interval, (mean, difference) in itertools.product(intervals or INTERVALS[steps], pairs):
        accelerate(pipe, interval, predict=(mean, difference), guidance=reuse, **eager)
        try:
            close = float(psnr(make(), originals).mean())
        finally:
            restore(pipe)
        yield Row(scheduler, steps, guidance, interval, mean, difference, close, len(PROMPTS), 1)


def pair_of(text: str) -> tuple[float, float]:
    """ "1,-0.25" as (1.0, -0.25)."""
    try:
        mean, difference = map(float, text.split(","))
        return mean, difference
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not MEAN,DIFFERENCE, such as 1,-0.25") from None


def main(argv: Sequence[str] | None = None) -> None:
    """Measure setting by setting; write rows as they come."""
    arguments = parser(__doc__, "dampings.csv", append=True)
    arguments.add_argument("--settings", type=setting_of, nargs="+", default=list(SETTINGS), metavar="S:N:G")
    arguments.add_argument("--guidance", choices=("both", "reuse"), default="both", help="accelerate's")
    arguments.add_argument("--intervals", type=int, nargs="+", help=f"default: by the number of steps, {INTERVALS}")
    arguments.add_argument("--pairs", type=pair_of, nargs="+", default=list(PAIRS), metavar="M,D")
    args = arguments.parse_args(argv)
    torch.set_flush_denormal(True)
    pipe, append = load_demo("cpu"), args.append
    scheduler = pipe.scheduler
    for setting in progress("settings", unit="settings", over=args.settings):
        pipe.scheduler = scheduler  # a swap keeps what it finds, such as Karras' sigmas of the setting before
        for row in measure(pipe, setting, args.guidance, args.intervals, args.pairs):
            write(args.out, [row], append=append)
            append = True


if __name__ == "__main__":
    main()
