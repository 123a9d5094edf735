"""Ideas beside damping the halves apart, each against the best fixed pair of dampings.

    python -m benchmarks.frontier.ideas --settings dpm++:20:7.5 euler:20:7.5

The demo, branch 0. Each idea's variants are compared on calibration prompts, and its best one is measured on held-out
prompts. So is the baseline: the best of five fixed pairs (mean, difference), hold and line among them. Costs are in
full steps, counted in MACs. iec.py, ltc.py, multistep.py and by_gradient.py have the ideas that change a step;
here are those that are weights or schedules.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.console import parser
from benchmarks.frontier.by_gradient import fitted
from benchmarks.frontier.dampings import Apart
from benchmarks.frontier.iec import Corrected
from benchmarks.frontier.ltc import Coherent
from benchmarks.frontier.measure import setting_of
from benchmarks.frontier.multistep import DataLine, FirstOrder, Revised
from benchmarks.frontier.pictures import CALIBRATION, HELD_OUT, images
from benchmarks.frontier.solver import Run, running
from benchmarks.frontier.weighted import Method
from stepcache.bench.rows import write
from stepcache.forwards.macs import branch_macs, meta_unet
from stepcache.images.fidelity import psnr
from stepcache.images.pipelines import load_demo
from stepcache.images.schedulers import swap_scheduler
from stepcache.progress import progress
from stepcache.reuse.predict import Weights

CHOSEN_ON, JUDGED_ON = (CALIBRATION[:12], 7), (HELD_OUT, 101)
"""Prompts and seed."""

FITTED_ON, ITERATIONS = CALIBRATION[:6], 8
"""Of the descent through the run, which takes as long as five runs an iteration."""

PAIRS = ((0.0, 0.0), (1.0, 1.0), (1.0, 0.0), (1.0, -0.25), (0.5, -0.5))
BASELINE = "fixed pair"
FIRST_ORDER = "first-order update"
DESCENT = "a pair for each step, by gradient"
INTERVALS = {20: (2, 3), 50: (5,)}
SETTINGS = (
    ("dpm++", 20, 7.5), ("dpm++-karras", 20, 7.5), ("euler", 20, 7.5), ("dpm++", 20, 3.0), ("dpm++", 50, 7.5),
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """An idea in one setting. PSNR in dB, the mean over the images."""

    scheduler: str
    steps: int
    guidance_scale: float
    interval: int
    idea: str
    setting: str  # the variant that was best on the calibration prompts
    variants: int  # how many were compared there
    cost: float  # of a run, in full steps
    psnr_calibration: float | None  # None where nothing was chosen
    psnr: float  # held-out
    baseline: str  # the best fixed pair on the calibration prompts
    baseline_psnr: float  # held-out
    gain: float  # over the baseline, held-out
    gain_error: float  # standard error of the gain over the images
    prompts: int
    seeds: int


@dataclass(frozen=True)
class InPairs(Apart):
    """As many full steps as at uniform intervals, but two at a time: FFPPFFPP where that has FPFPFPFP."""

    def mask(self, steps: int) -> str:
        left, letters = -(-steps // self.interval), ""
        for step in range(steps):
            full = step % (2 * self.interval) < 2 and left > 0
            letters, left = letters + ("F" if full else "P"), left - full
        return letters


Added = Callable[[int, float], tuple[float, float]]


@dataclass(frozen=True)
class Changing(Apart):
    """Dampings to which `added(place, time)` is added: what for the mean, and what for the difference.

    place: steps since the full one, from 1. time: 0 at the first step, 1 at the last.
    """

    added: Added = field(default=lambda place, time: (0.0, 0.0))

    def weights(self, step: int, full: Sequence[int], steps: int) -> tuple[Weights, Weights]:
        mean, difference = self.added(step - full[0], step / (steps - 1))
        return Apart(self.interval, self.mean + mean, self.difference + difference).weights(step, full, steps)


PLACES: dict[str, Added] = {
    "mean +0.5, then -0.25": lambda place, time: (0.5 if place == 1 else -0.25, 0.0),
    "difference +0.25, then -0.25": lambda place, time: (0.0, 0.25 if place == 1 else -0.25),
    "both": lambda place, time: (0.5, 0.25) if place == 1 else (-0.25, -0.25),
}
TIMES: dict[str, Added] = {
    "difference lower in the middle": lambda place, time: (0.0, 0.3 - 2.4 * time * (1 - time)),
    "mean falls": lambda place, time: (0.4 - 0.8 * time, 0.0),
}
"""What is added to the fixed pair, by name. These shapes resemble what a descent through the run came to."""


@dataclass(frozen=True)
class Curved(Apart):
    """The mean's line, with a share `curve` of the way to the parabola through the last three full steps."""

    keeps: int = 3
    curve: float = 0.0

    def weights(self, step: int, full: Sequence[int], steps: int) -> tuple[Weights, Weights]:
        mean, difference = super().weights(step, full, steps)
        if len(full) < 3:
            return mean, difference
        c, b, a = full  # newest first; Newton's term of second order
        term = self.curve * (step - c) * (step - b)
        bend = (term / ((c - b) * (c - a)), term / ((b - c) * (b - a)), term / ((a - c) * (a - b)))
        return tuple(w + v for w, v in zip(mean, bend, strict=True)), difference


@dataclass(frozen=True)
class Variant:
    """A way to run, with its name in the rows."""

    name: str
    method: Method
    run: Callable[..., Run] = Run


def told(mean: float, difference: float) -> str:
    """A pair of dampings as the rows name it."""
    return {(0.0, 0.0): "hold", (1.0, 1.0): "line"}.get((mean, difference), f"{mean:g}, {difference:g}")


def pairs(interval: int) -> list[Variant]:
    """The baseline's variants."""
    return [Variant(told(*pair), Apart(interval, *pair)) for pair in PAIRS]


def ideas(base: Apart, all_of_them: bool) -> dict[str, list[Variant]]:
    """Variants by idea, on the best fixed pair: what changes a step, and with `all_of_them` weights and schedules too.

    Those that need a fit are in `measure`.
    """
    interval, pair = base.interval, (base.mean, base.difference)

    def changed(name: str, run: type[Run], **options: Any) -> Variant:
        return Variant(name, base, functools.partial(run, **options))

    def by(shapes: dict[str, Added]) -> list[Variant]:
        return [Variant(name, Changing(interval, *pair, added=added)) for name, added in shapes.items()]

    found = {
        "IEC: partial steps repeated": [changed(f"gamma {gamma:g}", Corrected, gamma=gamma) for gamma in (0.25, 1.0)],
        FIRST_ORDER: [
            changed("in partial steps", FirstOrder, where="P"),
            changed("in full steps after partial ones", FirstOrder, where="A"),
        ],
        "partial steps done again after the next full one": [
            changed("on a line, weight 1", Revised, weight=1.0, parabola=False),
            changed("on a parabola, weight 0.5", Revised, weight=0.5, parabola=True),
        ],
        "x0 extrapolated, mixed with the shallow part": [changed("mix 0.25", DataLine, mix=0.25)],
        "x0 extrapolated, no shallow part": [changed(told(*pair), DataLine, mix=1.0)],
    }
    if not all_of_them:
        return found
    in_pairs = [Variant(told(*each), InPairs(interval, *each)) for each in dict.fromkeys(((0.0, 0.0), pair))]
    return {
        **found,
        "full steps in pairs": in_pairs,
        **({"pair by place after the full step": by(PLACES)} if interval > 2 else {}),
        "pair by time": by(TIMES),
        "the mean bent towards a parabola": [Variant("curve 0.25", Curved(interval, *pair, curve=0.25))],
    }


class Pictures:
    """Prompts and a seed, and the original's images of them."""

    def __init__(self, pipe: Any, share: float, steps: int, guidance: float, prompts: Sequence[str], seed: int) -> None:
        self.pipe, self.share, self.steps, self.guidance = pipe, share, steps, guidance
        self.prompts, self.seed = prompts, seed
        self.originals = images(pipe, prompts, (seed,), steps, guidance)

    def run(self, variant: Variant) -> tuple[np.ndarray, Run]:
        """PSNR of each image, and the run as it is afterwards."""
        run = variant.run(self.pipe, variant.method, self.steps, self.guidance, self.share)
        made = images(self.pipe, self.prompts, (self.seed,), self.steps, self.guidance, lambda: running(self.pipe, run))
        return psnr(made, self.originals), run

    def best(self, variants: Sequence[Variant]) -> tuple[Variant, float | None]:
        """The variant that is best here, and its PSNR. A single one is not run."""
        if len(variants) == 1:
            return variants[0], None
        found = [float(self.run(variant)[0].mean()) for variant in variants]
        first = int(np.argmax(found))
        return variants[first], found[first]


def measure(
    pipe: Any,
    setting: tuple[str, int, float],
    intervals: Sequence[int],
    *,
    chosen_on: tuple[Sequence[str], int] = CHOSEN_ON,
    judged_on: tuple[Sequence[str], int] = JUDGED_ON,
    all_of_them: bool = True,
    iterations: int = 0,
) -> Iterator[Row]:
    """All rows of one setting. Afterwards `pipe` has its own scheduler again.

    iterations: of the descent through the run, 0 for none.
    """
    scheduler, steps, _ = setting
    own = pipe.scheduler
    swap_scheduler(pipe, scheduler, steps)
    try:
        yield from _measured(pipe, setting, intervals, chosen_on, judged_on, all_of_them, iterations)
    finally:
        pipe.scheduler = own  # the next one is made from its config, which must not be this setting's


def _measured(
    pipe: Any,
    setting: tuple[str, int, float],
    intervals: Sequence[int],
    chosen_on: tuple[Sequence[str], int],
    judged_on: tuple[Sequence[str], int],
    all_of_them: bool,
    iterations: int,
) -> Iterator[Row]:
    """`measure`, with the setting's scheduler in place."""
    _, steps, guidance = setting
    size = pipe.unet.config.sample_size
    (count,) = branch_macs(meta_unet(pipe.unet.config), size, size, branches=[0])
    calibration = Pictures(pipe, count.share, steps, guidance, *chosen_on)
    held_out = Pictures(pipe, count.share, steps, guidance, *judged_on)
    for interval in intervals:
        fixed = pairs(interval)
        best, best_psnr = calibration.best(fixed)
        base = best.method
        assert isinstance(base, Apart)
        judged = Judged(setting, interval, held_out, best)
        for variant in fixed:
            yield judged.row(BASELINE, variant, len(fixed), best_psnr if variant is best else None)
        for of in ("latents", "output"):
            _, fit = calibration.run(Variant("", base, functools.partial(Coherent, of=of)))
            assert isinstance(fit, Coherent)
            variant = Variant("fitted", base, functools.partial(Coherent, of=of, scalars=fit.scalars))
            yield judged.row(f"LTC-Accel: a scalar for each step, {of}", variant, 1, None)
        for idea, variants in ideas(base, all_of_them).items():
            if idea == FIRST_ORDER and not hasattr(pipe.scheduler, "lower_order_nums"):
                continue  # all of this solver's updates are
            variant, chosen = calibration.best(variants)
            yield judged.row(idea, variant, len(variants), chosen)
        if iterations:
            method, nearer = descended(pipe, base, steps, guidance, iterations, chosen_on[1])
            yield judged.row(DESCENT, Variant(f"latents {nearer:+.2f} dB where fitted", method), iterations, None)


class Judged:
    """Rows on the held-out pictures, against the baseline `best`."""

    def __init__(self, setting: tuple[str, int, float], interval: int, pictures: Pictures, best: Variant) -> None:
        self.setting, self.interval, self.pictures, self.best = setting, interval, pictures, best
        self.baseline, self.spent = self._run(best)

    def _run(self, variant: Variant) -> tuple[np.ndarray, float]:
        each, run = self.pictures.run(variant)
        return each, run.spent

    def row(self, idea: str, variant: Variant, variants: int, psnr_calibration: float | None) -> Row:
        """Measure a variant. The other arguments are the row's."""
        each, cost = (self.baseline, self.spent) if variant is self.best else self._run(variant)
        gain = each - self.baseline
        scheduler, steps, guidance = self.setting
        return Row(
            scheduler=scheduler,
            steps=steps,
            guidance_scale=guidance,
            interval=self.interval,
            idea=idea,
            setting=variant.name,
            variants=variants,
            cost=cost,
            psnr_calibration=psnr_calibration,
            psnr=float(each.mean()),
            baseline=self.best.name,
            baseline_psnr=float(self.baseline.mean()),
            gain=float(gain.mean()),
            gain_error=float(gain.std(ddof=1) / np.sqrt(len(gain))),
            prompts=len(self.pictures.prompts),
            seeds=1,
        )


def descended(
    pipe: Any, base: Apart, steps: int, guidance: float, iterations: int, seed: int, prompts: Sequence[str] = FITTED_ON
) -> tuple[Method, float]:
    """by_gradient.fitted on the demo's pipeline."""
    call = type(pipe).__call__.__wrapped__  # without no_grad

    def make() -> Tensor:
        noise = [torch.Generator().manual_seed(1000 * seed + i) for i in range(len(prompts))]
        options = {"num_inference_steps": steps, "guidance_scale": guidance, "generator": noise}
        latents: Tensor = call(pipe, list(prompts), output_type="latent", **options).images
        return latents

    return fitted(pipe, make, base, steps, guidance, iterations)


def options_of(setting: tuple[str, int, float]) -> tuple[Sequence[int], dict[str, Any]]:
    """Intervals and options of `measure`: all ideas at 20 steps and guidance 7.5, some of them elsewhere."""
    scheduler, steps, guidance = setting
    whole = (steps, guidance) == (20, 7.5)
    descent = ITERATIONS if whole and scheduler == "dpm++" else 0
    return INTERVALS[steps] if whole else INTERVALS[steps][:1], {"all_of_them": whole, "iterations": descent}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure setting by setting; write rows as they come."""
    arguments = parser(__doc__, "ideas.csv", append=True)
    arguments.add_argument("--settings", type=setting_of, nargs="+", default=list(SETTINGS), metavar="S:N:G")
    args = arguments.parse_args(argv)
    torch.set_flush_denormal(True)
    pipe, append = load_demo("cpu"), args.append
    for setting in progress("settings", unit="settings", over=args.settings):
        intervals, options = options_of(setting)
        for row in measure(pipe, setting, intervals, **options):
            write(args.out, [row], append=append)
            append = True


if __name__ == "__main__":
    main()
