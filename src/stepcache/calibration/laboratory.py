"""Measures candidates against the original's images, and notes what has been measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UnsupportedPipeline
from ..forwards import family_of
from ..forwards.macs import branch_macs, meta_unet
from ..images.fidelity import mean_of
from ..images.make import Request
from ..pipes.batches import guided
from ..plans.plan import Figures
from ..reuse.predict import HOLD, Line
from .candidates import Candidate, speedup, uniform
from .grams import Collector
from .images import HEATS, HELD_OUT, Closeness, PromptSet, score
from .journal import Journal
from .search import Space

# A candidate that is worse than the best by more than this, in dB, on the first half of the calibration prompts is not
# measured on the second.
CLEARLY = 1.0

# Dampings to try for a line, for steps without fitted weights.
DAMPINGS = (0.0, 0.5, 1.0)


@dataclass
class Laboratory:
    """A pipe, its prompt sets (HEATS to calibrate with, and HELD_OUT), and the original's images of each."""

    pipe: Any
    sets: Mapping[str, PromptSet]
    originals: Mapping[str, np.ndarray]
    collector: Collector
    space: Space
    notes: Journal

    @classmethod
    def open(cls, pipe: Any, sets: Mapping[str, PromptSet], branches: int, notes: Journal) -> Laboratory:
        """Run the original over all prompts, and read the features of those to calibrate with."""
        joins = len(family_of(pipe.unet).layout(pipe.unet).joins)
        collector, is_guided = Collector(pipe, range(min(branches, joins))), _guided(pipe)

        def read(request: Request) -> np.ndarray:
            return collector.run(lambda: request.make(pipe), is_guided).images

        originals = {name: np.concatenate([read(request) for request in sets[name].requests()]) for name in HEATS}
        originals[HELD_OUT] = sets[HELD_OUT].make(pipe)
        batch, _, height, width = collector.sample
        counted = branch_macs(meta_unet(pipe.unet.config), height, width, batch, collector.branches)
        iterations = len(collector.grams[0].whole)
        space = Space(iterations, {m.branch: m.share for m in counted}, reuse=is_guided())
        return cls(pipe, sets, originals, collector, space, notes)

    def measure(self, candidate: Candidate, name: str) -> Closeness:
        """Closeness on one of the sets; from the notes, if known."""
        key = f"{name}: {candidate.key}"
        if len(self.notes.known.get(key, ())) != 1 + len(self.sets[name].prompts):
            images = self.sets[name].under(self.pipe, candidate, self.collector.grams[candidate.branch])
            close = Closeness.of(images, self.originals[name])
            self.notes.add(key, [close.ssim, *close.psnr])
        ssim, *psnr = self.notes.known[key]
        return Closeness(tuple(psnr), ssim)

    def psnr(self, candidate: Candidate, beat: Candidate | None = None) -> float:
        """Mean PSNR on calibration prompts; -inf if on half of them it is clearly below that of `beat`."""
        first, second = HEATS
        psnr = self.measure(candidate, first).psnr
        if beat is not None and score(psnr) < score(self.measure(beat, first).psnr) - CLEARLY:
            return -float("inf")
        return score(psnr + self.measure(candidate, second).psnr)

    def best_line(self, found: Candidate) -> Line:
        """The damped line that does best with the candidate's mask, for steps without fitted weights."""
        lines = [Candidate(found.mask, found.branch, found.reuse, early=d, late=d) for d in DAMPINGS]
        return max(lines, key=self.psnr).line or HOLD

    def figures(self, what: str, candidate: Candidate) -> Figures:
        """The candidate's figures on held-out prompts, under the name `what`."""
        close = self.measure(candidate, HELD_OUT)
        return Figures(what, self.space.speedup(candidate), mean_of(close.psnr), close.ssim)

    def rivals(self, budget: float) -> list[Figures]:
        """DeepCache's algorithm: the best within the budget, and the best with the next smaller interval."""
        steps = self.space.steps
        within, over = [], []
        for branch, share in self.space.shares.items():
            intervals = range(2, steps + 1)
            fits = [n for n in intervals if speedup(uniform(steps, n), share, reuse=False) >= budget - 1e-9]
            if fits:
                within.append((fits[0], branch))
            if fits[:1] != [2]:
                over.append((fits[0] - 1 if fits else steps, branch))
        sides = [[self._deepcache(*each) for each in side] for side in (within, over) if side]
        return [max(side, key=lambda figures: figures.psnr) for side in sides]

    def _deepcache(self, interval: int, branch: int) -> Figures:
        name = f"DeepCache, interval {interval}, branch {branch}"
        return self.figures(name, Candidate(uniform(self.space.steps, interval), branch, reuse=False))


def _guided(pipe: Any) -> Callable[[], bool]:
    """batches.guided; never, if the pipe's batch is not known to be two halves."""
    try:
        return guided(pipe)
    except UnsupportedPipeline:
        return lambda: False
