"""What `guidance="alternate"` would give, for frontier.py alone: a prototype of a mode that stepcache does not have.

Every second full step runs its conditional half only, and the guidance difference is extrapolated in it as in partial
steps. It is measured beside the modes that exist because the plan asked for it to be shipped if it pays; frontier.csv
says that it does not (CHANGELOG).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from stepcache.forwards import family_of
from stepcache.forwards.guidance import conditional_half
from stepcache.reuse.predict import Line


class AlternateGuidance:
    """A U-Net forward for one run of a pipeline whose batch is [unconditional, conditional], features extrapolated."""

    def __init__(self, unet: Any, interval: int, branch: int) -> None:
        self.unet, self.interval, self.family = unet, interval, family_of(unet)
        self.cut = self.family.layout(unet).cut(branch)
        self.letters = ""  # F full, C full on the conditional half, P partial
        self._features: list[tuple[int, Tensor]] = []  # newest first
        self._differences: list[tuple[int, Tensor]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """One U-Net call, with the stock forward's arguments."""
        inputs, _, return_dict = self.family.bind(*args, **kwargs)
        step = len(self.letters)
        if step % self.interval == 0 and step // self.interval % 2 == 0:
            self.letters += "F"
            output, feature = self.family.full(self.unet, self.cut, **inputs)
            unconditional, conditional = output.chunk(2)
            self._features = [(step, feature.chunk(2)[1]), *self._features][:2]
            self._differences = [(step, conditional - unconditional), *self._differences][:2]
            return self.family.wrap(output, return_dict)
        half = conditional_half(inputs)
        if step % self.interval == 0:
            self.letters += "C"
            conditional, feature = self.family.full(self.unet, self.cut, **half)
            self._features = [(step, feature), *self._features][:2]
        else:
            self.letters += "P"
            conditional = self.family.partial(self.unet, self.cut, _on_line(self._features, step), **half)
        difference = _on_line(self._differences, step)
        return self.family.wrap(torch.cat([conditional - difference, conditional]), return_dict)

    def cost(self, share: float) -> float:
        """Of the run, in full steps. share: MACs of a partial step with both halves over those of a full one."""
        price = {"F": 1.0, "C": 0.5, "P": share / 2}
        return sum(price[letter] for letter in self.letters)


def _on_line(known: list[tuple[int, Tensor]], step: int) -> Tensor:
    weights = Line(1.0).weights(0, step, [at for at, _ in known])
    return sum(weight * value for weight, (_, value) in zip(weights, known, strict=True))  # type: ignore[return-value]


@contextmanager
def alternating(pipe: Any, interval: int, branch: int) -> Iterator[AlternateGuidance]:
    """One call of `pipe` in this mode; its U-Net is as it was afterwards."""
    forward = AlternateGuidance(pipe.unet, interval, branch)
    pipe.unet.forward = forward
    try:
        yield forward
    finally:
        del pipe.unet.forward
