"""The search within one budget for the candidate whose images are closest to the original's."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ..errors import InvalidSetting
from ..reuse.predict import HOLD
from .candidates import Candidate, most_full_steps, moves, predictors, speedup, uniform, warped

# Choices of branch and guidance with fewer full steps than this part of the most are not tried.
WORTH_A_TRY = 0.7
POWERS = (0.8, 0.65, 1.25, 1.6)
STARTS = (0.0, 0.5, 1.0)  # dampings
PAIRS = ((1.0, -0.25), (1.0, 0.0), (0.5, -0.25), (1.0, 0.5))  # of the halves' mean and difference

# A candidate replaces the best if its mean gain over the images is larger than this many standard errors of the gain.
# Of many candidates with the same fidelity, some are better on a few images.
SURELY = 1.0


class Option(NamedTuple):
    """A choice of steps, branch and guidance, with the most full steps that the budget allows it."""

    steps: int
    branch: int
    reuse: bool
    full: int


@dataclass(frozen=True)
class Space:
    """What a candidate of one number of steps can choose.

    steps: iterations of the loop. shares: by branch, a partial step's MACs over a full one's. reuse: whether guidance
    can be reused. most: iterations of the run that costs are relative to; None: of this one.
    """

    steps: int
    shares: Mapping[int, float]
    reuse: bool
    most: int | None = None

    def speedup(self, candidate: Candidate) -> float:
        """The MACs of the run that costs are relative to over the candidate's."""
        return self._relative * speedup(candidate.mask, self.shares[candidate.branch], candidate.reuse)

    def options(self, budget: float) -> list[Option]:
        """What to try, most full steps first; InvalidSetting if nothing fits."""
        own = budget / self._relative
        if own <= 1:  # all steps can be full
            return [Option(self.steps, min(self.shares), False, self.steps)]
        options = []
        for branch, share in self.shares.items():
            both = most_full_steps(self.steps, share, False, own)
            half = most_full_steps(self.steps, share, True, own) if self.reuse else 0
            options += [Option(self.steps, branch, False, both)] * (both > 0)
            # Reuse that allows no more full steps only loses.
            options += [Option(self.steps, branch, True, half)] * (half > both)
        if not options:
            shares = self.shares.values()
            highest = max(speedup("F" + "P" * (self.steps - 1), s, self.reuse) for s in shares) * self._relative
            raise InvalidSetting(
                f"No run of {self.steps} steps is {budget:g}x cheaper: the most that these branches can save is "
                f"{highest:.2f}x."
            )
        options.sort(key=lambda option: -option.full)
        return [option for option in options if option.full >= WORTH_A_TRY * options[0].full]

    @property
    def _relative(self) -> float:
        return (self.most or self.steps) / self.steps


Measure = Callable[[Candidate, Candidate | None], Sequence[float]]
"""(candidate, the best before it) -> PSNR of each calibration image; none of a candidate that is clearly worse."""

Propose = Callable[[Option], Iterable[Candidate]]


def search(
    spaces: Sequence[Space], budget: float, trials: int, seed: int, measure: Measure, propose: Propose
) -> Candidate:
    """The best of at most `trials` candidates of these numbers of steps; InvalidSetting if none has one that fits.

    propose: for an option, starts of as many masks, the most promising first; at least one.

    It tries the first start of each choice of steps, branch and guidance, with the best of them the others, and with
    the best of those DeepCache's algorithm and other dampings. From the best it tries in turn other predictions, warped
    masks, and single full steps moved, until nothing improves. Where fewer steps, all full, are the best first start,
    the best start with partial steps is improved all the same, unless all are clearly worse.
    """
    climb = _Climb(trials, measure)
    options = options_within(spaces, budget)
    starts = {option: list(dict.fromkeys(propose(option))) for option in options}
    climb.over((tries[0] for tries in starts.values()), surely=0.0)
    first = climb.best
    if not climb.turn_to([tries[0] for option, tries in starts.items() if option.full < option.steps]):
        return first
    option = next((option for option, tries in starts.items() if climb.best is tries[0]), options[0])
    climb.over(starts[option][1:])
    # DeepCache's algorithm, if its mask has as many full steps.
    climb.over([start for start in uniform_starts(option) if start.line == HOLD][-1:])
    climb.over(dampings(climb.best, next(space for space in spaces if space.steps == option.steps).reuse))
    chance = random.Random(seed)
    while climb.left:
        before = climb.best
        climb.descend(predictors)
        masks = [warped(len(before.mask), before.mask.count("F"), power) for power in POWERS]
        climb.over(replace(climb.best, mask=mask) for mask in masks)
        climb.descend(lambda near: moves(near, chance))
        if climb.best is before:
            break
    climb.turn_to([climb.best, first])
    return climb.best


def options_within(spaces: Sequence[Space], budget: float) -> list[Option]:
    """What to try of all numbers of steps; InvalidSetting if nothing fits."""
    found, errors = [], []
    for space in spaces:
        try:
            found += space.options(budget)
        except InvalidSetting as error:
            errors.append(error)
    if not found:
        raise errors[-1]  # of the fewest steps, which can save the most
    return found


def dampings(near: Candidate, halves: bool) -> Iterator[Candidate]:
    """The same run with other dampings: of the halves apart, if the batch is halves; then of one line."""
    if halves:
        for mean, difference in PAIRS:
            yield replace(near, early=mean, late=mean, difference=difference)
    for damping in STARTS:
        yield replace(near, early=damping, late=damping, difference=None)


def uniform_starts(option: Option) -> list[Candidate]:
    """Full steps at regular intervals, held and along a line; one candidate if all steps are full."""
    steps, branch, reuse, full = option
    if full == steps:
        return [Candidate("F" * steps, branch, reuse)]
    # DeepCache's mask is among them, if it has as many full steps.
    masks = [warped(steps, full), uniform(steps, -(-steps // full))]
    fits = dict.fromkeys(mask for mask in masks if mask.count("F") == full)
    return [Candidate(mask, branch, reuse, early=d, late=d) for mask in fits for d in STARTS]


class _Climb:
    """The best candidate so far."""

    def __init__(self, trials: int, measure: Measure) -> None:
        self.left, self._measure = trials, measure
        # PSNR of each image; empty if clearly worse than the best then.
        self._tried: dict[Candidate, np.ndarray] = {}
        self._best: Candidate | None = None

    @property
    def best(self) -> Candidate:
        """The best so far, after the first trial."""
        assert self._best is not None
        return self._best

    def turn_to(self, candidates: Iterable[Candidate]) -> bool:
        """Take the best of these for the best so far, the first of equal ones; False if no figures are known of any."""
        known = [candidate for candidate in candidates if len(self._tried.get(candidate, ()))]
        self._best = max(known, key=lambda candidate: float(self._tried[candidate].mean()), default=self._best)
        return bool(known)

    def over(self, candidates: Iterable[Candidate], surely: float = SURELY) -> None:
        """Try each of them."""
        for candidate in candidates:
            self._try(candidate, surely)

    def descend(self, neighbours: Callable[[Candidate], Iterable[Candidate]]) -> None:
        """Go to the first better neighbour, from there to its first better neighbour, and so on."""
        while self.left and any(self._try(candidate, SURELY) for candidate in neighbours(self.best)):
            pass

    def _try(self, candidate: Candidate, surely: float) -> bool:
        """Whether it is the best so far. A new candidate counts as a trial, even if its figures are known."""
        if candidate in self._tried or not self.left:
            return False
        self.left -= 1
        psnr = self._tried[candidate] = np.asarray(self._measure(candidate, self._best), dtype=float)
        if self._best is not None and not _is_better(psnr, self._tried[self._best], surely):
            return False
        self._best = candidate
        return True


def _is_better(psnr: np.ndarray, best: np.ndarray, surely: float) -> bool:
    if len(psnr) != len(best):
        return False
    gains = psnr - best
    doubt = gains.std(ddof=1) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
    return bool(gains.mean() > surely * doubt)
