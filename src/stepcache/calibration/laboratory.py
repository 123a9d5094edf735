"""Measures candidates against the original's images, and notes what has been measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import StepCacheError, UnsupportedPipeline
from ..forwards import family_of
from ..forwards.macs import branch_macs, meta_unet
from ..images.fidelity import mean_of
from ..images.make import Request
from ..pipes.batches import guided, shows_halves
from ..pipes.solvers import is_first_order, unet_calls
from ..pipes.vae import pixels_per_latent
from ..plans.plan import Figures
from ..reuse.auto import Auto, Loop
from ..reuse.predict import HOLD, Apart, Line
from .candidates import Candidate, most_full_steps, speedup, uniform, warped
from .grams import Collector
from .images import HEATS, HELD_OUT, Closeness, PromptSet, counted, score
from .journal import Journal
from .replay import Replay
from .search import STARTS, Option, Space, uniform_starts
from .segments import SegmentMeter

# A candidate that is worse than the best by more than this, in dB, on the first half of the calibration prompts is not
# measured on the second.
CLEARLY = 1.0


@dataclass
class Length:
    """What is known of runs of one number of steps. sets: prompts by name, HEATS and HELD_OUT."""

    sets: Mapping[str, PromptSet]
    collector: Collector
    space: Space
    meter: SegmentMeter
    loop: Loop

    def proposals(self, option: Option, highest: float) -> Iterator[Candidate]:
        """Masks to begin a search with, under the dampings of predict="auto": the table's, then uniform ones.

        highest: the largest budget of all searches, whose segments are the longest, so that a table serves all budgets.
        The cheapest branch's table serves all branches: others' masks differ a little, but their tables take as long.
        """
        steps, branch, reuse, full = option
        if full == steps:
            yield from uniform_starts(option)
            return
        own = highest * steps / (self.space.most or steps)
        kinds = (False, True) if self.space.reuse else (False,)
        most = max(most_full_steps(steps, share, kind, own) for share in self.space.shares.values() for kind in kinds)
        # What is tried has at least WORTH_A_TRY of the most full steps, for which these segments are long enough.
        table = self.meter.table(min(self.space.shares), reuse, longest_of(steps, most or full))
        mean, difference = (round(damping, 2) for damping in Auto(self.loop).dampings(round(steps / full)))
        if not self.space.reuse:  # not known to be halves: one line (auto.Auto.whole)
            mean = difference = max(0.0, min(mean, difference))
        masks = [table.mask(full, mean, difference, minimax) for minimax in (False, True)]
        for mask in [*masks, *(start.mask for start in uniform_starts(option))]:
            apart = difference if self.space.reuse else None
            yield Candidate(mask, branch, reuse, early=mean, late=mean, difference=apart)


def longest_of(steps: int, full: int) -> int:
    """The longest segment to measure for masks of `full` full steps: half as long again as even ones, and one more."""
    return min(steps, -(-3 * steps // (2 * full)) + 1)


def expected_spaces(
    pipe: Any, steps: Sequence[int], branches: int, guidance: float, size: tuple[int, int] | None
) -> list[Space]:
    """What candidates will be able to choose, at best, without a run. Empty if only runs can tell.

    steps: their numbers, most first. size: (height, width) in pixels; None: the U-Net's own.
    """
    sample, factor = pipe.unet.config.sample_size, pixels_per_latent(pipe)
    iterations = [unet_calls(pipe.scheduler, count) for count in steps]
    # In a loop that is not known, a step may call the U-Net more than once.
    if not shows_halves(pipe) or None in iterations or (size is None and sample is None):
        return []
    own = sample if isinstance(sample, (list, tuple)) else (sample, sample)
    height, width = own if size is None else (pixels // factor for pixels in size)
    try:
        unet = meta_unet(pipe.unet.config)
        joins = len(family_of(unet).layout(unet).joins)
        macs = list(branch_macs(unet, height, width, 1, range(min(branches, joins))))
    except StepCacheError:  # the run says why
        return []
    shares = {each.branch: each.share for each in macs}
    return [Space(calls, shares, guidance > 1, iterations[0]) for calls in iterations if calls is not None]


@dataclass
class Laboratory:
    """A pipe, what is known of each number of steps by iterations of the loop, and the original's images by set.

    The original is the run of the most steps. notes: what has been measured.
    """

    pipe: Any
    lengths: Mapping[int, Length]
    originals: Mapping[str, np.ndarray]
    notes: Journal

    @classmethod
    def open(
        cls, pipe: Any, sets: Mapping[str, PromptSet], branches: int, notes: Journal, steps: Sequence[int] = ()
    ) -> Laboratory:
        """Run the original over all prompts, and read the features of those to calibrate with.

        steps: other numbers of steps than that of the sets to know too, all lower.
        """
        joins = len(family_of(pipe.unet).layout(pipe.unet).joins)
        lengths: dict[int, Length] = {}
        originals: dict[str, np.ndarray] = {}
        for count in sorted({sets[HELD_OUT].steps, *steps}, reverse=True):
            own = {name: replace(each, steps=count) for name, each in sets.items()}
            collector, is_guided = Collector(pipe, range(min(branches, joins))), _guided(pipe)
            images = {name: _read(own[name].requests(), pipe, collector, is_guided) for name in HEATS}
            originals = originals or images
            batch, _, height, width = collector.sample
            macs = branch_macs(meta_unet(pipe.unet.config), height, width, batch, collector.branches)
            iterations = len(collector.grams[0].whole)
            shares = {each.branch: each.share for each in macs}
            space = Space(iterations, shares, is_guided(), max(lengths, default=None))
            recorded = zip(HEATS, collector.recordings, strict=True)
            replays = [Replay(pipe, own[name].requests()[0], recording) for name, recording in recorded]
            meter = SegmentMeter(replays, notes, min(shares), apart=space.reuse)
            guidance = own[HELD_OUT].call.get("guidance_scale")
            loop = Loop(iterations, max(iterations, count), is_first_order(pipe.scheduler), guidance)
            lengths[iterations] = Length(own, collector, space, meter, loop)
        originals[HELD_OUT] = sets[HELD_OUT].make(pipe)
        return cls(pipe, lengths, originals, notes)

    @property
    def original(self) -> Length:
        """What is known of the most steps."""
        return self.lengths[max(self.lengths)]

    def of(self, candidate: Candidate) -> Length:
        """What is known of the candidate's number of steps."""
        return self.lengths[len(candidate.mask)]

    def propose(self, option: Option, highest: float) -> Iterator[Candidate]:
        """`Length.proposals`."""
        return self.lengths[option.steps].proposals(option, highest)

    def measure(self, candidate: Candidate, name: str) -> Closeness:
        """Closeness on one of the sets; from the notes, if known."""
        length = self.of(candidate)
        predictor = candidate.predictor(length.collector.grams[candidate.branch])
        return self._noted(name, candidate.key, lambda: length.sets[name].under(self.pipe, candidate, predictor))

    def images(self, candidate: Candidate, beat: Candidate | None = None) -> tuple[float, ...]:
        """PSNR of each calibration image (images.counted); none if half of them are clearly below those of `beat`."""
        first, second = HEATS
        psnr = self.measure(candidate, first).psnr
        if beat is not None and score(psnr) < score(self.measure(beat, first).psnr) - CLEARLY:
            return ()
        return counted(psnr + self.measure(candidate, second).psnr)

    def psnr(self, candidate: Candidate) -> float:
        """Mean PSNR on calibration prompts."""
        return score(self.images(candidate))

    def best_line(self, found: Candidate) -> Line | Apart:
        """The damped line that does best with the candidate's mask, for steps without fitted weights."""
        limited = None if found.difference is None else min(1.0, max(-1.0, found.difference))
        near = Candidate(found.mask, found.branch, found.reuse, difference=limited)
        return max((replace(near, early=d, late=d) for d in STARTS), key=self.psnr).line or HOLD

    def figures(self, what: str, candidate: Candidate) -> Figures:
        """The candidate's figures on held-out prompts, under the name `what`."""
        close = self.measure(candidate, HELD_OUT)
        return Figures(what, self.of(candidate).space.speedup(candidate), mean_of(close.psnr), close.ssim)

    def rivals(self, budget: float, found: Candidate) -> list[Figures]:
        """What else costs as much as the candidate `found`.

        predict="auto", which needs no calibration, with as many full steps, evenly spaced. DeepCache's algorithm at the
        most steps: the best within the budget, and the best with the next smaller interval. Where several numbers of
        steps are searched, then also the most steps that fit the budget, all full.
        """
        space = self.original.space
        within, over = [], []
        for branch, share in space.shares.items():
            intervals = range(2, space.steps + 1)
            fits = [n for n in intervals if speedup(uniform(space.steps, n), share, reuse=False) >= budget - 1e-9]
            if fits:
                within.append((fits[0], branch))
            if fits[:1] != [2]:
                over.append((fits[0] - 1 if fits else space.steps, branch))
        sides = [[self._deepcache(*each) for each in side] for side in (within, over) if side]
        best = [max(side, key=lambda figures: figures.psnr) for side in sides]
        auto = [self._auto(found)] if "P" in found.mask else []
        return [*auto, *best, *([self._fewer_steps(budget)] if len(self.lengths) > 1 else [])]

    def _auto(self, found: Candidate) -> Figures:
        """The same cost without a calibration."""
        length = self.of(found)
        even = Candidate(warped(len(found.mask), found.mask.count("F")), found.branch, found.reuse)
        auto = Auto(length.loop)
        close = self._noted(HELD_OUT, f"{even.key}, auto", lambda: length.sets[HELD_OUT].under(self.pipe, even, auto))
        name = 'even full steps, predict="auto"'
        return Figures(name, length.space.speedup(even), mean_of(close.psnr), close.ssim)

    def _deepcache(self, interval: int, branch: int) -> Figures:
        name = f"DeepCache, interval {interval}, branch {branch}"
        return self.figures(name, Candidate(uniform(self.original.space.steps, interval), branch, reuse=False))

    def _fewer_steps(self, budget: float) -> Figures:
        held_out = self.original.sets[HELD_OUT]
        iterations = self.original.space.steps
        calls = {n: unet_calls(self.pipe.scheduler, n) or iterations for n in range(1, held_out.steps)}
        count = max((n for n, number in calls.items() if number * budget <= iterations + 1e-9), default=1)
        what = f"fewer steps: {count}, all full"
        close = self._noted(HELD_OUT, what, lambda: replace(held_out, steps=count).make(self.pipe))
        return Figures(what, iterations / calls[count], mean_of(close.psnr), close.ssim)

    def _noted(self, name: str, what: str, make: Callable[[], np.ndarray]) -> Closeness:
        """Closeness of images of one of the sets; made only if the notes do not have them."""
        key = f"{name}: {what}"
        if len(self.notes.known.get(key, ())) != 1 + len(self.originals[name]):
            close = Closeness.of(make(), self.originals[name])
            self.notes.add(key, [close.ssim, *close.psnr])
        ssim, *psnr = self.notes.known[key]
        return Closeness(tuple(psnr), ssim)


def _read(requests: Sequence[Request], pipe: Any, collector: Collector, is_guided: Callable[[], bool]) -> np.ndarray:
    """The images of requests, whose features are collected; the first request is recorded."""
    images = []
    for i, request in enumerate(requests):
        made = collector.run(lambda each=request: each.make(pipe), is_guided, record=i == 0)  # type: ignore[misc]
        images.append(made.images)
    return np.concatenate(images)


def _guided(pipe: Any) -> Callable[[], bool]:
    """batches.guided; never, if the pipe's batch is not known to be two halves."""
    try:
        return guided(pipe)
    except UnsupportedPipeline:
        return lambda: False
