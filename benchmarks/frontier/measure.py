"""Fidelity against cost: DeepCache's algorithm, each thing that stepcache adds to it, and calibrated plans.

    python -m benchmarks.frontier.measure                                  # the bundled demo, all twelve settings
    python -m benchmarks.frontier.measure path/to/pipeline --prompts my.txt --settings ddim:50:7.5

A setting is a scheduler, a number of steps and a guidance scale. In each, every method runs at a range of costs, and
its images are compared with the original's, on prompts and seeds that no calibration has seen. Cost is in MACs, and
exact: `speedup_macs` is a run of full steps over this run. `seconds` are a rough figure: the whole call, eager, the
best of the seeds.

- `DeepCache`: hold, both halves of the batch, uniform intervals, branches 0 and 1. `DeepCache 1:N`: the paper's
  non-uniform schedule (section 4.3), centred in the middle of the run, power 1.4.
- `linear`, `damped`: the feature extrapolated with damping 1 and 0.5. `auto`: by `predict="auto"`. `reuse`: guidance
  reuse. Also both together.
- `linear + alternate (prototype)`: every second full step on the conditional half alone (alternate.py).
- `calibrated`: plans from `stepcache calibrate` on other prompts, one for each cost on DeepCache's front.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.console import parser
from benchmarks.frontier.alternate import alternating
from benchmarks.frontier.rows import ALTERNATE, CALIBRATED, DEEPCACHE, HIGH, LOW, Row, deepcache, front
from stepcache import Schedule, accelerate, last_run, restore
from stepcache.bench.rows import write
from stepcache.calibration import calibrate
from stepcache.errors import InvalidSetting
from stepcache.forwards.macs import branch_macs, meta_unet
from stepcache.images.fidelity import mean_psnr, psnr, ssim
from stepcache.images.pipelines import DTYPES, default_device, dtype_named, load_demo, load_directory
from stepcache.images.prompts import read_prompts
from stepcache.images.schedulers import swap_scheduler
from stepcache.progress import progress

SETTINGS = tuple(itertools.product(("ddim", "dpm++", "euler"), (20, 50), (3.0, 7.5)))
INTERVALS = (2, 3, 4, 5)
BRANCHES = (0, 1)
SEEDS = (101, 102, 103)
TRIALS = 40
# Emoji that the demo knows. CALIBRATION is never used for measuring, HELD_OUT never for calibration.
CALIBRATION = (
    "fox face", "cherry blossom", "hamburger", "red apple", "grinning face", "pineapple", "panda face", "maple leaf",
    "dog face", "raccoon", "hot dog", "peanuts", "ice cream", "grapes", "penguin", "lemon",
)  # fmt: skip
HELD_OUT = ("tiger face", "avocado", "frog face", "mushroom")


class Candidate(NamedTuple):
    """Arguments of `accelerate` and the name of the method."""

    method: str
    branch: int
    options: dict[str, Any]
    budget: float | None = None


def candidates(steps: int, intervals: Sequence[int], branches: Sequence[int]) -> Iterator[Candidate]:
    """All methods without calibration; on deeper branches only DeepCache, `linear` and `linear + reuse`."""
    for interval, branch in itertools.product(intervals, branches):
        if branch > branches[0] and interval == max(intervals):
            continue
        uniform = {"interval": interval, "branch": branch}
        yield Candidate(DEEPCACHE, branch, uniform)
        yield Candidate("linear", branch, {**uniform, "predict": "linear"})
        yield Candidate("linear + reuse", branch, {**uniform, "predict": "linear", "guidance": "reuse"})
        if branch == branches[0]:
            with suppress(InvalidSetting):  # too many full steps too close together
                paper = Schedule.nonuniform(steps, interval, center=steps // 2, power=1.4)
                yield Candidate(f"{DEEPCACHE} 1:N", branch, {"schedule": paper, "branch": branch})
            yield Candidate("reuse", branch, {**uniform, "guidance": "reuse"})
            for method, predict in (("damped", 0.5), ("auto", "auto")):
                yield Candidate(method, branch, {**uniform, "predict": predict})
                yield Candidate(f"{method} + reuse", branch, {**uniform, "predict": predict, "guidance": "reuse"})


class Bench:
    """One setting: the pipe, the held-out prompts, the original's images and seconds."""

    def __init__(
        self, pipe: Any, scheduler: str, steps: int, guidance: float, prompts: Sequence[str], seeds: Sequence[int]
    ) -> None:
        swap_scheduler(pipe, scheduler, steps)
        self.pipe, self.scheduler, self.steps, self.guidance = pipe, scheduler, steps, guidance
        self.prompts, self.seeds = list(prompts), list(seeds)
        self.originals, self.seconds = self._images()

    def _images(self, mode: Callable[[], AbstractContextManager[None]] = nullcontext) -> tuple[np.ndarray, float]:
        """All images [seeds * prompts, H, W, 3] and the seconds of the fastest call. Each call is inside a `mode()`."""
        images, seconds = [], []
        for seed in self.seeds:
            generators = [torch.Generator().manual_seed(1000 * seed + i) for i in range(len(self.prompts))]
            start = time.perf_counter()
            with mode():
                output = self.pipe(
                    self.prompts,
                    num_inference_steps=self.steps,
                    guidance_scale=self.guidance,
                    generator=generators,
                    output_type="np",
                )
            images.append(output.images)
            seconds.append(time.perf_counter() - start)
        return np.concatenate(images), min(seconds)

    def row(self, model: str, candidate: Candidate, share: float) -> Row:
        """Measure a candidate. share: MACs of a partial step of its branch over a full step's."""
        accelerate(self.pipe, **candidate.options, compile=False, cuda_graphs=False, channels_last=False)
        try:
            images, seconds = self._images()
            kinds = last_run(self.pipe).kinds
        finally:
            restore(self.pipe)
        plan = candidate.options.get("plan")
        predict = "fitted" if plan is not None and plan.table else str(candidate.options.get("predict", "hold"))
        guidance = candidate.options.get("guidance", "both") if plan is None else plan.guidance
        partial = share / 2 if guidance == "reuse" else share
        cost = kinds.count("F") + partial * kinds.count("P")
        return self._row(model, candidate, predict, guidance, kinds, cost, images, seconds)

    def alternating_row(self, model: str, interval: int, branch: int, share: float) -> Row:
        """Measure the prototype of alternate.py."""
        runs = []

        @contextmanager
        def mode() -> Iterator[None]:
            with alternating(self.pipe, interval, branch) as run:
                runs.append(run)
                yield

        images, seconds = self._images(mode)
        candidate = Candidate(ALTERNATE, branch, {})
        run = runs[0]
        return self._row(model, candidate, "linear", "alternate", run.letters, run.cost(share), images, seconds)

    def _row(
        self,
        model: str,
        candidate: Candidate,
        predict: str,
        guidance: str,
        kinds: str,
        cost: float,
        images: np.ndarray,
        seconds: float,
    ) -> Row:
        each = psnr(images, self.originals)
        return Row(
            model=model,
            scheduler=self.scheduler,
            steps=self.steps,
            guidance_scale=self.guidance,
            method=candidate.method,
            predict=predict,
            guidance=guidance,
            branch=candidate.branch,
            schedule=kinds,
            budget=candidate.budget,
            speedup_macs=len(kinds) / cost,
            seconds=seconds,
            speedup_seconds=self.seconds / seconds,
            psnr=mean_psnr(images, self.originals),
            psnr_p20=float(np.percentile(each, 20)),
            psnr_p80=float(np.percentile(each, 80)),
            ssim=float(ssim(images, self.originals).mean()),
            prompts=len(self.prompts),
            seeds=len(self.seeds),
        )


def measure(
    pipe: Any,
    model: str,
    setting: tuple[str, int, float],
    calibration: Sequence[str],
    held_out: Sequence[str],
    *,
    intervals: Sequence[int] = INTERVALS,
    branches: Sequence[int] = BRANCHES,
    seeds: Sequence[int] = SEEDS,
    trials: int = TRIALS,
) -> Iterator[Row]:
    """All rows of one setting, as they are measured. The scheduler of `pipe` is replaced by the setting's."""
    scheduler, steps, guidance = setting
    bench = Bench(pipe, scheduler, steps, guidance, held_out, seeds)
    size = pipe.unet.config.sample_size
    shares = {count.branch: count.share for count in branch_macs(meta_unet(pipe.unet.config), size, size)}
    rows = []
    for candidate in candidates(steps, intervals, branches):
        rows.append(bench.row(model, candidate, shares[candidate.branch]))
        yield rows[-1]
    for interval in intervals:
        yield bench.alternating_row(model, interval, branches[0], shares[branches[0]])
    # At the costs of the points on DeepCache's front, so that the two are compared at equal cost.
    budgets = [row.speedup_macs for row in front(deepcache(rows)) if LOW <= row.speedup_macs <= HIGH]
    plans = calibrate(pipe, calibration, steps=steps, guidance=guidance, budgets=budgets, trials=trials)
    for plan, budget in zip(plans, budgets, strict=True):
        yield bench.row(model, Candidate(CALIBRATED, plan.branch, {"plan": plan}, budget), shares[plan.branch])


def setting_of(text: str) -> tuple[str, int, float]:
    """ "ddim:50:7.5" as ("ddim", 50, 7.5)."""
    try:
        scheduler, steps, guidance = text.split(":")
        return scheduler, int(steps), float(guidance)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not SCHEDULER:STEPS:GUIDANCE, such as ddim:50:7.5") from None


def main(argv: Sequence[str] | None = None) -> None:
    """Measure setting by setting; write rows as they come."""
    arguments = parser(__doc__, "frontier.csv", append=True)
    arguments.add_argument("pipeline", nargs="?", default="demo", help="a local pipeline's directory (default: demo)")
    arguments.add_argument("--prompts", type=Path, help="a file of prompts; every second one is held out")
    arguments.add_argument("--settings", type=setting_of, nargs="+", default=list(SETTINGS), metavar="S:N:G")
    arguments.add_argument("--trials", type=int, default=TRIALS, help=f"of each calibration (default: {TRIALS})")
    arguments.add_argument("--dtype", default="float32", choices=DTYPES)
    args = arguments.parse_args(argv)
    torch.set_flush_denormal(True)
    calibration, held_out = CALIBRATION, HELD_OUT
    if args.prompts is not None:
        texts = [prompt.text for prompt in read_prompts(args.prompts)]
        calibration, held_out = tuple(texts[::2]), tuple(texts[1::2])
    elif args.pipeline != "demo":
        arguments.error("--prompts: give a file of prompts for this pipeline.")
    device, dtype = default_device(), dtype_named(args.dtype)
    demo = args.pipeline == "demo"
    pipe = load_demo(device, dtype) if demo else load_directory(Path(args.pipeline), device, dtype)
    append = args.append
    for setting in progress("settings", unit="settings", over=args.settings):
        for row in measure(pipe, Path(args.pipeline).name, setting, calibration, held_out, trials=args.trials):
            write(args.out, [row], append=append)
            append = True
    print(f"rows: {args.out}")


if __name__ == "__main__":
    main()
