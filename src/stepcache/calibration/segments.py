"""What a stretch of partial steps costs in the final image: a table that is measured once, and serves every budget.

A segment (a, b) has partial steps between full steps a and b; the rest of the run is full. Its cost is the mean squared
error of the final image, in two factors: the error that the partial steps leave in the U-Net's input at step b, and
how much an error at b grows until the image. So no segment needs a run to the end: the partial steps after a give the
errors of all segments that begin there, and the growth is measured at a few steps and interpolated.

Errors are nearly linear in the dampings of the two lines, so that three measurements give all pairs. The line's second
full step is taken from the original two steps before a: a line through points further apart is nearly the same one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..reuse.predict import HOLD, Apart, Line, Predictor
from .journal import Journal
from .paths import Segment, cheapest, mask_of, segments_of
from .replay import Partial, Replay

GAP = 2
"""Steps between the two full steps of a line."""

GROWTHS = 8
"""At how many steps the growth of errors is measured, at most."""

ROUNDS = 4
"""How often costs are weighed anew for a path (`Segments.mask`)."""

TINY = 1e-20
"""Added to squared errors that are divided by, or whose logarithm is taken: a step may be without error."""


def _finite_or_worst(values: Tensor) -> Tensor:
    """What is NaN or infinite, because something overflowed, as infinite: no cost is worse, and JSON has no NaN."""
    return torch.where(values.isfinite(), values, torch.inf)


@dataclass(frozen=True)
class Segments:
    """The table of one branch, with both halves of guidance or with reuse.

    errors: by segment, inner products of the errors at its end, over their number of values; float64 [N, k, k] for N
    images. k: 1 where there is no line yet (a = 0); 2, hold and what a damping of 1 adds to it; or 3, where the mean of
    the halves (with reuse: the feature) and their difference have a damping each. growth: float64 [N] for the steps
    where it was measured, and 1 at the last, whose errors are those of the images.
    """

    steps: int
    longest: int
    errors: Mapping[Segment, Tensor]
    growth: Mapping[int, Tensor]

    def costs(self, a: int, b: int, mean: float, difference: float) -> Tensor:
        """The mean squared errors, float64 [N], of the images with this segment under these dampings."""
        errors = self.errors[a, b]
        dampings = torch.tensor([1.0, mean, difference], dtype=torch.float64)[: len(errors[0])]
        squared = torch.einsum("k,nkl,l->n", dampings, errors, dampings)
        return _finite_or_worst(squared).clamp(min=0) * self._growth(b)

    def mask(self, full: int, mean: float, difference: float, minimax: bool = False) -> str:
        """The mask of `full` full steps with the lowest costs under these dampings (paths.cheapest).

        An image's costs count relative to its total, since images are compared by their PSNR: what one image loses is
        not worth more because that image is a difficult one. The total is the path's own, so that it takes some rounds.
        """
        table = {segment: self.costs(*segment, mean, difference) for segment in self.errors}
        total = torch.stack(list(table.values())).median(0).values + TINY
        path: tuple[Segment, ...] = ()
        for _ in range(ROUNDS):
            relative = {at: float(_finite_or_worst(costs / total).mean()) for at, costs in table.items()}
            found = cheapest(self.steps, full, self.longest, lambda a, b, known=relative: known[a, b], minimax)  # type: ignore[misc]
            if found == path:
                break
            path = found
            used = [table[segment] for segment in segments_of(mask_of(path))]
            total = torch.stack(used).sum(0) + TINY if used else total
        return mask_of(path)

    def _growth(self, b: int) -> Tensor:
        """Interpolated along the steps, in the logarithm; the nearest one outside of those measured."""
        if b in self.growth:
            return self.growth[b]
        # The images at the last step are in other units, so that nothing is interpolated towards it.
        known = sorted(step for step in self.growth if step < self.steps)
        place = bisect_left(known, b)
        low, high = known[max(place - 1, 0)], known[min(place, len(known) - 1)]
        part = (b - low) / (high - low) if high > low else 0.0
        return torch.exp(torch.lerp(self.growth[low].log(), self.growth[high].log(), part))


class SegmentMeter:
    """Measures segments with replays of some batches, which are alike, and notes them in a journal.

    apart: whether the halves of guidance can be damped apart.
    """

    def __init__(self, replays: Sequence[Replay], notes: Journal, cheapest_branch: int, apart: bool) -> None:
        self._replays, self._notes, self._branch, self._apart = replays, notes, cheapest_branch, apart
        self.steps = len(replays[0].recording.samples)
        self._images = sum(len(replay.recording.images) for replay in replays)
        self._tables: dict[tuple[int, bool, int], Segments] = {}

    def table(self, branch: int, reuse: bool, longest: int) -> Segments:
        """The table of segments of up to `longest` steps; measured, if it is not known.

        Price, in steps of those batches: for each step of the run three times longest - 1 partial ones. For the first
        table half a run at each of `GROWTHS` steps as well.
        """
        longest = min(longest, self.steps)
        if (branch, reuse, longest) not in self._tables:
            errors: dict[Segment, Tensor] = {}
            for a in range(self.steps - 1):
                errors |= self._from(a, branch, reuse, longest)
            growth = {b: self._growth(b) for b in self._growth_at()}
            growth[self.steps] = torch.ones(self._images, dtype=torch.float64)
            self._tables[branch, reuse, longest] = Segments(self.steps, longest, errors, growth)
        return self._tables[branch, reuse, longest]

    def _from(self, a: int, branch: int, reuse: bool, longest: int) -> dict[Segment, Tensor]:
        """The inner products of all segments that begin at `a`."""
        stop = min(a + longest, self.steps)
        lines = [HOLD] if not a else self._lines(reuse)
        shape = stop - a - 1, self._images, len(lines), len(lines)

        def measure() -> Tensor:
            full = (a,) if not a else (a, max(a - GAP, 0))
            runs = [self._errors(Partial(full, stop, branch, reuse, line), stop) for line in lines]
            products = []
            for b in range(a + 2, stop + 1):
                hold, *others = (run[b] for run in runs)
                parts = torch.stack([hold, *(other - hold for other in others)], dim=1)
                products.append(torch.einsum("nkv,nlv->nkl", parts, parts) / hold.shape[1])
            return torch.stack(products)

        how = "reuse" if reuse else "both"
        found = self._noted(f"{self.steps} steps: segments {a} to {stop}, branch {branch} {how}", shape, measure)
        return {(a, a + 2 + i): each for i, each in enumerate(found)}

    def _errors(self, stretch: Partial, stop: int) -> dict[int, Tensor]:
        """Replay.errors over all images."""
        found = [replay.errors(stretch, stop) for replay in self._replays]
        return {step: torch.cat([each[step] for each in found]) for step in found[0]}

    def _lines(self, reuse: bool) -> list[Predictor]:
        if self._apart or reuse:
            return [HOLD, Apart(1.0, 0.0), Apart(0.0, 1.0)]
        return [HOLD, Line(1.0)]

    def _growth_at(self) -> list[int]:
        last = self.steps - 1
        if last < 2:
            return []
        count = min(GROWTHS, last - 1)
        return sorted({round(2 + (last - 2) * i / max(count - 1, 1)) for i in range(count)})

    def _growth(self, b: int) -> Tensor:
        """How much larger the squared error of the images is than that at step b, of a held step before it."""

        def measure() -> Tensor:
            stretch = Partial((b - 2,), b, self._branch, False, HOLD)
            errors = self._errors(stretch, self.steps)
            at, after = (errors[step].square().mean(1) for step in (b, self.steps))
            return (after + TINY) / (at + TINY)

        return self._noted(f"{self.steps} steps: growth from {b}", (self._images,), measure)

    def _noted(self, name: str, shape: tuple[int, ...], measure: Callable[[], Tensor]) -> Tensor:
        count = torch.Size(shape).numel()
        if len(self._notes.known.get(name, ())) != count:
            self._notes.add(name, _finite_or_worst(measure()).flatten().tolist())
        return torch.tensor(self._notes.known[name], dtype=torch.float64).view(shape)
