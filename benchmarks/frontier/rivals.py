"""Ways to skip work, ours and rivals', on the same pictures at equal cost in MACs: what each leaves of the image.

    python -m benchmarks.frontier.rivals                                  # the bundled demo, all settings
    python -m benchmarks.frontier.rivals path/to/pipeline --prompts my.txt --settings dpm++:20:7.5

A setting is a scheduler, a number of steps and a guidance scale. In each, and at each interval, a method may cost as
much as DeepCache with that uniform interval at branch 0. Rows are written as they are measured; with `--append` those
that --out has already are not measured again, so that methods may be added later.

- `hold`, `DeepCache 1:N`: DeepCache's algorithm, uniform and with the paper's schedule (centred, power 1.4).
- `line`, `auto`: `predict="linear"`, `predict="auto"`. `fixed m,d`: mean and difference of the halves damped by m, d.
- `Spectrum on outputs`, `on features`: spectrum.py, by its own schedule, or with full steps that are evenly spaced.
  `constant kept`: without the penalty on the constant term.
- `fewer steps`: the scheduler itself with as many full steps as a method's cost allows.

Every run is compared with the original of as many steps, and with the original of most steps; fewer steps only with the
latter.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.console import parser
from benchmarks.frontier.dampings import Apart
from benchmarks.frontier.measure import setting_of
from benchmarks.frontier.pictures import HELD_OUT, SEEDS, images
from benchmarks.frontier.rivals_rows import (
    AUTO,
    FEWER,
    FIXED,
    HOLD,
    LINE,
    NONUNIFORM,
    SPECTRUM,
    Row,
    text_of,
)
from benchmarks.frontier.spectrum import OF_SDCPP, PUBLISHED, Spectrum
from benchmarks.frontier.weighted import Method, weighted
from stepcache import Schedule, accelerate, last_run, restore
from stepcache.bench.rows import check_out, read, write
from stepcache.errors import InvalidSetting
from stepcache.forwards.macs import branch_macs, meta_unet
from stepcache.images.fidelity import mean_of, psnr
from stepcache.images.pipelines import DTYPES, default_device, dtype_named, load_demo, load_directory
from stepcache.images.prompts import read_prompts
from stepcache.images.schedulers import SCHEDULERS as KNOWN
from stepcache.images.schedulers import swap_scheduler
from stepcache.progress import progress

MOST = 50
SCHEDULERS = ("ddim", "euler", "dpm++", "dpm++-karras")
INTERVALS = {20: (2, 3), 30: (2, 3), 50: (3, 5)}
# What the page's first table needs comes first.
ORDER = ((20, 7.5), (50, 7.5), (50, 3.0), (30, 7.5), (20, 3.0), (20, 5.0), (30, 3.0), (30, 5.0), (50, 5.0))
SETTINGS = tuple((scheduler, *rest) for rest, scheduler in itertools.product(ORDER, SCHEDULERS))
METHODS = (HOLD, NONUNIFORM, LINE, AUTO, SPECTRUM, FIXED, FEWER)
PAIRS, FIXED_IN = ((1, 0), (1, -0.25), (0.5, -0.25), (0.5, -0.5), (1, 0.5)), (20, 7.5)
BRANCH = 0


class Way(Protocol):
    """How a candidate runs."""

    def run(self, pipe: Any, make: Callable[..., np.ndarray]) -> tuple[np.ndarray, str]:
        """The images of `make(mode)`, and the kinds of the steps: F full, P skipped."""


class Accelerated(NamedTuple):
    """By `accelerate` with these options, eager."""

    options: Mapping[str, Any]

    def run(self, pipe: Any, make: Callable[..., np.ndarray]) -> tuple[np.ndarray, str]:
        accelerate(pipe, **self.options, compile=False, cuda_graphs=False, channels_last=False)
        try:
            return make(), last_run(pipe).kinds
        finally:
            restore(pipe)


class Weighted(NamedTuple):
    """By weighted.py."""

    method: Method
    steps: int

    def run(self, pipe: Any, make: Callable[..., np.ndarray]) -> tuple[np.ndarray, str]:
        made = make(functools.partial(weighted, pipe, self.method, BRANCH, self.steps))
        return made, self.method.mask(self.steps)


class Candidate(NamedTuple):
    """A method at an interval. share: the cost of a skipped step, in full steps."""

    method: str
    interval: int
    share: float
    way: Way


def cost(kinds: str, share: float) -> float:
    """Of a run, in full steps."""
    return kinds.count("F") + share * kinds.count("P")


def candidates(
    setting: tuple[str, int, float], intervals: Sequence[int], share: float, methods: Sequence[str] = METHODS
) -> Iterator[Candidate]:
    """Those of `methods` at each interval, fewer steps left out. share: of a partial step.

    A schedule that does not exist is left out, with a message.
    """
    _, steps, guidance = setting
    for interval, method in itertools.product(intervals, methods):
        uniform = {"interval": interval, "branch": BRANCH}
        if method == HOLD:
            yield Candidate(HOLD, interval, share, Accelerated(uniform))
        elif method == LINE:
            yield Candidate(LINE, interval, share, Accelerated({**uniform, "predict": "linear"}))
        elif method == AUTO:
            yield Candidate(AUTO, interval, share, Accelerated({**uniform, "predict": "auto"}))
        elif method == NONUNIFORM:
            try:
                paper = Schedule.nonuniform(steps, interval, center=steps // 2, power=1.4)
            except InvalidSetting as error:  # too many full steps too close together
                tqdm.write(f"{NONUNIFORM}, {steps} steps, interval {interval}: left out. {error}")
                continue
            yield Candidate(NONUNIFORM, interval, share, Accelerated({"schedule": paper, "branch": BRANCH}))
        elif method == SPECTRUM:
            yield from _spectrum(steps, interval, share, (steps, guidance) == FIXED_IN)
        elif method == FIXED and (steps, guidance) == FIXED_IN:
            for mean, apart in PAIRS:
                way = Weighted(Apart(interval, mean, apart), steps)
                yield Candidate(f"{FIXED} {mean:g},{apart:g}", interval, share, way)


def _spectrum(steps: int, interval: int, share: float, only_here: bool) -> Iterator[Candidate]:
    """only_here: also the variant that tells apart what its schedule costs and what the shrunken constant costs."""
    budget = cost(Schedule.uniform(interval).kinds(steps), share)
    outputs = f"{SPECTRUM} on outputs"
    # The better of the two on calibration prompts. On outputs that is always stable-diffusion.cpp's.
    values = OF_SDCPP if interval / steps > 0.1 else PUBLISHED
    ways = [
        (f"{outputs}, own schedule", Spectrum("output", budget, 0.0, values=OF_SDCPP)),
        (f"{outputs}, even, constant kept", Spectrum("output", budget, 0.0, True, False, OF_SDCPP)),
        (f"{SPECTRUM} on features, even", Spectrum("feature", budget, share, True, True, values)),
        (f"{SPECTRUM} on features, even, constant kept", Spectrum("feature", budget, share, True, False, values)),
    ]
    if only_here:
        ways.append((f"{outputs}, even", Spectrum("output", budget, 0.0, True, True, OF_SDCPP)))
    for name, method in ways:
        try:
            method.mask(steps)
        except InvalidSetting as error:
            tqdm.write(f"{name}, {steps} steps, interval {interval}: left out. {error}")
            continue
        yield Candidate(name, interval, method.share, Weighted(method, steps))


@dataclass
class Bench:
    """A pipe and its pictures.

    Originals are made once, and kept in the folder `kept`. Without one, and in memory, there are only those of one
    scheduler and guidance scale: large images of all settings would not fit.
    """

    pipe: Any
    model: str
    prompts: Sequence[str]
    seeds: Sequence[int] = SEEDS
    most: int = MOST
    kept: Path | None = None

    def __post_init__(self) -> None:
        self._scheduler = self.pipe.scheduler
        self._originals: dict[tuple[str, int, float], np.ndarray] = {}
        size = self.pipe.unet.config.sample_size
        (count,) = branch_macs(meta_unet(self.pipe.unet.config), size, size, branches=[BRANCH])
        self.share = count.share

    def maker(self, scheduler: str, steps: int, guidance: float) -> Callable[..., np.ndarray]:
        """Gives the pipe this scheduler, and returns a function of a mode that makes all images."""
        # From the pipeline's own each time: a swap keeps what it finds in the config of the one before.
        self.pipe.scheduler = self._scheduler
        swap_scheduler(self.pipe, scheduler, steps)
        return functools.partial(images, self.pipe, self.prompts, self.seeds, steps, guidance)

    def originals(self, scheduler: str, steps: int, guidance: float) -> np.ndarray:
        """Images of full steps only, [seeds * prompts, H, W, 3]."""
        key = scheduler, steps, guidance
        if key not in self._originals:
            if any((other[0], other[2]) != (scheduler, guidance) for other in self._originals):
                self._originals.clear()
            path = self._path(key)
            if path is not None and path.exists():
                self._originals[key] = np.load(path)
            else:
                self._originals[key] = self.maker(*key)()
                if path is not None:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    part = path.with_name(f"{path.stem}.part.npy")
                    np.save(part, self._originals[key])
                    part.replace(path)
        return self._originals[key]

    def _path(self, key: tuple[str, int, float]) -> Path | None:
        about = repr((self.model, *key, list(self.prompts), list(self.seeds), str(self.pipe.unet.dtype)))
        name = f"{key[0]}-{key[1]}-{key[2]:g}-{hashlib.sha256(about.encode()).hexdigest()[:12]}.npy"
        return None if self.kept is None else self.kept / name

    def row(self, setting: tuple[str, int, float], candidate: Candidate) -> Row:
        """Measure a candidate. InvalidSetting if `accelerate` refuses its options."""
        originals, most = self.originals(*setting), self.originals(setting[0], self.most, setting[2])
        made, kinds = candidate.way.run(self.pipe, self.maker(*setting))
        close = psnr(made, originals)
        return self._row(
            setting, candidate.method, candidate.interval, kinds, cost(kinds, candidate.share), close, psnr(made, most)
        )

    def fewer(self, scheduler: str, steps: int, guidance: float) -> Row:
        """The row of fewer steps."""
        most = psnr(self.originals(scheduler, steps, guidance), self.originals(scheduler, self.most, guidance))
        return self._row((scheduler, steps, guidance), FEWER, None, "F" * steps, float(steps), None, most)

    def _row(
        self,
        setting: tuple[str, int, float],
        method: str,
        interval: int | None,
        kinds: str,
        price: float,
        close: np.ndarray | None,
        most: np.ndarray,
    ) -> Row:
        return Row(
            self.model, *setting, method, interval, kinds, price, None if close is None else mean_of(close),
            mean_of(most), len(self.prompts), len(self.seeds), self.most,
            "" if close is None else text_of(close, len(self.seeds)), text_of(most, len(self.seeds)),
        )  # fmt: skip


def fewer_steps(setting: tuple[str, int, float], intervals: Sequence[int], share: float, most: int = MOST) -> list[int]:
    """Numbers of full steps for the costs of a setting's methods, and its own: each below `most`, once."""
    _, steps, _ = setting
    budgets = [math.floor(cost(Schedule.uniform(interval).kinds(steps), share)) for interval in intervals]
    return sorted({number for number in (*budgets, steps) if number < most})


def measure(
    bench: Bench,
    setting: tuple[str, int, float],
    methods: Sequence[str] = METHODS,
    *,
    intervals: Sequence[int] | None = None,
    known: frozenset[tuple[Any, ...]] = frozenset(),
) -> Iterator[Row]:
    """The rows of one setting, as they are measured. known: keys of rows (`key_of`) that need not be measured."""
    scheduler, steps, guidance = setting
    intervals = intervals or INTERVALS.get(steps, (2, 3))
    for candidate in candidates(setting, intervals, bench.share, methods):
        if (bench.model, *setting, candidate.method, candidate.interval) in known:
            continue
        yield bench.row(setting, candidate)
    for number in fewer_steps(setting, intervals, bench.share, bench.most) if FEWER in methods else ():
        if (bench.model, scheduler, number, guidance, FEWER, None) not in known:
            yield bench.fewer(scheduler, number, guidance)


def key_of(row: Row) -> tuple[Any, ...]:
    """What tells rows of a file apart."""
    return row.model, row.scheduler, row.steps, row.guidance_scale, row.method, row.interval


def main(argv: Sequence[str] | None = None) -> None:
    """Measure setting by setting; write rows as they come."""
    arguments = parser(__doc__, "rivals.csv", append=True)
    arguments.add_argument("pipeline", nargs="?", default="demo", help="a local pipeline's directory (default: demo)")
    arguments.add_argument("--prompts", type=Path, help="a file of prompts, all made in one batch, for each seed")
    arguments.add_argument("--settings", type=setting_of, nargs="+", default=list(SETTINGS), metavar="S:N:G")
    arguments.add_argument("--schedulers", nargs="+", choices=sorted(KNOWN), help="only settings with one of these")
    arguments.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    arguments.add_argument("--originals", type=Path, metavar="FOLDER", help="keep originals there, and take them")
    arguments.add_argument("--dtype", default="float32", choices=DTYPES)
    args = arguments.parse_args(argv)
    torch.set_flush_denormal(True)
    prompts: Sequence[str] = HELD_OUT
    if args.prompts is not None:
        prompts = tuple(prompt.text for prompt in read_prompts(args.prompts))
    elif args.pipeline != "demo":
        arguments.error("--prompts: give a file of prompts for this pipeline.")
    known: set[tuple[Any, ...]] = set()
    if args.append:
        check_out(args.out, Row)
        known = {key_of(row) for row in read(args.out, Row)} if args.out.exists() else known
    device, dtype = default_device(), dtype_named(args.dtype)
    demo = args.pipeline == "demo"
    pipe = load_demo(device, dtype) if demo else load_directory(Path(args.pipeline), device, dtype)
    pipe.set_progress_bar_config(disable=True)
    bench, append = Bench(pipe, Path(args.pipeline).name, prompts, kept=args.originals), args.append
    settings = [setting for setting in args.settings if args.schedulers is None or setting[0] in args.schedulers]
    for setting in progress("settings", unit="settings", over=settings):
        for row in measure(bench, setting, args.methods, known=frozenset(known)):
            write(args.out, [row], append=append)
            known.add(key_of(row))
            append = True
    print(f"rows: {args.out}")


if __name__ == "__main__":
    main()
