"""The search within one budget for the candidate whose images are closest to the original's."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from ..errors import InvalidSetting
from .candidates import Candidate, most_full_steps, moves, predictors, speedup, uniform, warped

# Choices of branch and guidance with fewer full steps than this part of the most are not tried.
WORTH_A_TRY = 0.7
POWERS = (0.8, 0.65, 1.25, 1.6)
STARTS = (0.0, 0.5, 1.0)  # dampings


@dataclass(frozen=True)
class Space:
    """What a candidate can choose.

    shares: by branch, a partial step's MACs over a full one's. reuse: whether guidance can be reused.
    """

    steps: int
    shares: Mapping[int, float]
    reuse: bool

    def speedup(self, candidate: Candidate) -> float:
        """The original's MACs over the candidate's."""
        return speedup(candidate.mask, self.shares[candidate.branch], candidate.reuse)

    def options(self, budget: float) -> list[tuple[int, bool, int]]:
        """(branch, reuse of guidance, full steps) to try, most full steps first; InvalidSetting if none fits."""
        options = []
        for branch, share in self.shares.items():
            both = most_full_steps(self.steps, share, False, budget)
            half = most_full_steps(self.steps, share, True, budget) if self.reuse else 0
            options += [(branch, False, both)] * (both > 0)
            # Reuse that allows no more full steps only loses.
            options += [(branch, True, half)] * (half > both)
        if not options:
            highest = max(speedup("F" + "P" * (self.steps - 1), s, self.reuse) for s in self.shares.values())
            raise InvalidSetting(
                f"No run of {self.steps} steps is {budget:g}x cheaper: the most that these branches can save is "
                f"{highest:.2f}x."
            )
        options.sort(key=lambda option: -option[2])
        return [option for option in options if option[2] >= WORTH_A_TRY * options[0][2]]


def search(
    space: Space, budget: float, trials: int, seed: int, measure: Callable[[Candidate, Candidate | None], float]
) -> Candidate:
    """The best of at most `trials` candidates.

    measure: (candidate, the best before it) -> PSNR of calibration images; -inf is allowed for a worse one.

    It tries the choices of branch and guidance with uniform masks. From the best of them it tries in turn other
    predictions, warped masks, and single full steps moved, until nothing improves.
    """
    climb = _Climb(trials, measure)
    options = space.options(budget)
    for branch, reuse, full in options:
        # DeepCache's mask is among them, if it has as many full steps, so that the plan is no worse.
        masks = [warped(space.steps, full), uniform(space.steps, -(-space.steps // full))]
        for mask in dict.fromkeys(mask for mask in masks if mask.count("F") == full):
            climb.over(Candidate(mask, branch, reuse, early=d, late=d) for d in STARTS)
    chance = random.Random(seed)
    count = {(branch, reuse): full for branch, reuse, full in options}
    while climb.left:
        before = climb.psnr
        climb.descend(predictors)
        masks = [warped(space.steps, count[climb.best.branch, climb.best.reuse], power) for power in POWERS]
        climb.over(replace(climb.best, mask=mask) for mask in masks)
        climb.descend(lambda near: moves(near, chance))
        if climb.psnr <= before:
            break
    return climb.best


class _Climb:
    """The best candidate so far."""

    def __init__(self, trials: int, measure: Callable[[Candidate, Candidate | None], float]) -> None:
        self.left, self._measure = trials, measure
        self._tried: set[Candidate] = set()
        self.psnr = -float("inf")
        self._best: Candidate | None = None

    @property
    def best(self) -> Candidate:
        """The best so far, after the first trial."""
        assert self._best is not None
        return self._best

    def over(self, candidates: Iterable[Candidate]) -> None:
        """Try each of them."""
        for candidate in candidates:
            self._try(candidate)

    def descend(self, neighbours: Callable[[Candidate], Iterable[Candidate]]) -> None:
        """Go to the first better neighbour, from there to its first better neighbour, and so on."""
        while self.left and any(self._try(candidate) for candidate in neighbours(self.best)):
            pass

    def _try(self, candidate: Candidate) -> bool:
        """Whether it is the best so far. A new candidate counts as a trial, even if its figures are known."""
        if candidate in self._tried or not self.left:
            return False
        self._tried.add(candidate)
        self.left -= 1
        psnr = self._measure(candidate, self._best)
        if psnr <= self.psnr:
            return False
        self._best, self.psnr = candidate, psnr
        return True
