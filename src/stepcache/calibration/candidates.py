"""Candidates, the small frozen values that become plans, and the moves from one to its neighbours."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..plans.plan import Table
from ..reuse.predict import DIFFERENCE, HOLD, Apart, Fitted, Line, Predictor
from .grams import Grams, fitted_weights


@dataclass(frozen=True)
class Candidate:
    """One way to run.

    A partial step predicts the feature as hold + d * (target - hold). target: the line through the last two full steps,
    or with `fitted` the least-squares combination of the last `order`. d goes linearly from `early` at step 0 to `late`
    at the last step. It may be negative, for samplers that undo a part of the last step.

    difference: if given, the halves of guidance are damped apart: d is that of their mean (with reuse: of the feature),
    and this that of their difference, in all steps.
    """

    mask: str
    branch: int
    reuse: bool
    fitted: bool = False
    order: int = 2
    early: float = 0.0
    late: float = 0.0
    difference: float | None = None

    @property
    def key(self) -> str:
        """Its name in the journal."""
        target = f"fitted {self.order}" if self.fitted else "line"
        how = f"{target} {self.early:g}..{self.late:g}" if self.early or self.late else "hold"
        if self.difference is not None:
            how += f", difference {self.difference:g}"
        return f"{self.mask} branch {self.branch} {'reuse' if self.reuse else 'both'} {how}"

    @property
    def line(self) -> Line | Apart | None:
        """The equivalent line (two, if the halves are apart), if it has the same damping in all steps."""
        if self.difference is None and not self.early and not self.late:
            return HOLD
        if self.fitted or self.early != self.late or max(abs(self.early), abs(self.difference or 0.0)) > 1:
            return None
        return Line(self.early) if self.difference is None else Apart(self.early, self.difference)

    def table(self, grams: Grams) -> Table:
        """Weights of all partial steps (predict.Fitted); empty if it is a `line`."""
        table: dict[tuple[int, int, tuple[int, ...]], tuple[float, ...]] = {}
        if self.line is not None:
            return table
        full: tuple[int, ...] = ()
        for step, letter in enumerate(self.mask):
            if letter == "F":
                full = (step, *full)[: self.order]
                continue
            for value in range(1 + (self.reuse or self.difference is not None)):
                table[value, step, full] = self._weights(grams, value, step, full)
        return table

    def predictor(self, grams: Grams) -> Predictor:
        """The predictor of its runs."""
        return self.line or Fitted(self.table(grams), self.order, apart=self.difference is not None)

    def _weights(self, grams: Grams, value: int, step: int, full: tuple[int, ...]) -> tuple[float, ...]:
        hold = HOLD.weights(value, step, full)
        if self.fitted:
            target = fitted_weights(grams.of(value, self.reuse), step, full)
        else:
            target = Line(1.0).weights(value, step, full)
        d = self.early + (self.late - self.early) * step / (len(self.mask) - 1)
        if self.difference is not None and value == DIFFERENCE:
            d = self.difference
        # Rounded as in the plan's file, so that plans run what was measured.
        return tuple(round(h + d * (t - h), 7) for h, t in zip(hold, target, strict=True))


def speedup(mask: str, share: float, reuse: bool) -> float:
    """The original's MACs over this run's. share: a partial step's MACs over a full one's; `reuse` halves it."""
    full = mask.count("F")
    return len(mask) / (full + (len(mask) - full) * (share / 2 if reuse else share))


def most_full_steps(steps: int, share: float, reuse: bool, budget: float) -> int:
    """The most full steps with which a run of `steps` is still `budget` times cheaper; 0 if there is no such number."""
    fits = (n for n in range(steps, 0, -1) if speedup("F" * n + "P" * (steps - n), share, reuse) >= budget - 1e-9)
    return next(fits, 0)


def warped(steps: int, full: int, power: float = 1.0) -> str:
    """A mask of exactly `full` full steps, at steps * (j / full) ** power: over 1 denser early, under 1 late."""
    at = {0}
    for j in range(1, full):
        step = round(steps * (j / full) ** power)
        # If rounding puts two on one step, take the next free one, or at the end the one before.
        at.add(next(s for s in (*range(step, steps), *range(step - 1, 0, -1)) if s not in at))
    return "".join("F" if step in at else "P" for step in range(steps))


def uniform(steps: int, interval: int) -> str:
    """DeepCache's mask."""
    return "".join("P" if step % interval else "F" for step in range(steps))


def predictors(near: Candidate) -> Iterator[Candidate]:
    """The same run with other predictions: a little more or less of the target, then other targets.

    Least squares are only tried with the halves together.
    """
    if near.difference is not None:
        for by in (-0.25, 0.25):
            yield replace(near, difference=near.difference + by)
    for early, late in ((0.25, 0.25), (-0.25, -0.25), (0.25, 0), (-0.25, 0), (0, 0.25), (0, -0.25)):
        yield replace(near, early=near.early + early, late=near.late + late)
    for fitted, order in ((False, 2), (True, 2), (True, 3)):
        if near.line != HOLD:
            yield replace(near, fitted=fitted, order=order, difference=None)
        yield replace(near, fitted=fitted, order=order, early=1.0, late=1.0, difference=None)


def moves(near: Candidate, chance: random.Random) -> Iterator[Candidate]:
    """The same run with one full step moved, first by one step, then by two, each in random order."""
    full = [step for step, letter in enumerate(near.mask) if letter == "F" and step]
    for distance in (1, 2):
        targets = [(step, step + by) for step in full for by in (-distance, distance)]
        chance.shuffle(targets)
        for step, to in targets:
            if 0 < to < len(near.mask) and near.mask[to] == "P":
                letters = list(near.mask)
                letters[step], letters[to] = "P", "F"
                yield replace(near, mask="".join(letters))
