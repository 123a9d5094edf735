"""The rival of plans.py: the search of stepcache before it had a table of segments and halves apart.

It begins with full steps at regular intervals, held and along a line, for each choice of branch and guidance, takes any
gain of the mean for one, and has no other source of masks than moving single full steps of the best.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import replace

from stepcache.calibration.candidates import Candidate, moves, predictors, warped
from stepcache.calibration.images import score
from stepcache.calibration.laboratory import Laboratory
from stepcache.calibration.search import POWERS, uniform_starts


class UniformSearch:
    """The best of at most `trials` candidates within a budget."""

    def __init__(self, laboratory: Laboratory, trials: int) -> None:
        self._laboratory, self.left = laboratory, trials
        self._tried: set[Candidate] = set()
        self.best: Candidate | None = None
        self.psnr = -float("inf")

    def run(self, budget: float, seed: int) -> Candidate:
        """Search. seed: of the order of moves."""
        for option in self._laboratory.original.space.options(budget):
            self._over(uniform_starts(option))
        chance = random.Random(seed)
        assert self.best is not None
        while self.left:
            before = self.psnr
            self._descend(predictors)
            full = self.best.mask.count("F")
            masks = [warped(len(self.best.mask), full, power) for power in POWERS]
            self._over(replace(self.best, mask=mask) for mask in masks)
            self._descend(lambda near: moves(near, chance))
            if self.psnr <= before:
                break
        return self.best

    def _over(self, candidates: Iterable[Candidate]) -> None:
        for candidate in candidates:
            self._try(candidate)

    def _descend(self, neighbours: Callable[[Candidate], Iterable[Candidate]]) -> None:
        assert self.best is not None
        while self.left and any(self._try(candidate) for candidate in neighbours(self.best)):
            pass

    def _try(self, candidate: Candidate) -> bool:
        if candidate in self._tried or not self.left:
            return False
        self._tried.add(candidate)
        self.left -= 1
        values = self._laboratory.images(candidate, self.best)
        if not values or score(values) <= self.psnr:
            return False
        self.best, self.psnr = candidate, score(values)
        return True
