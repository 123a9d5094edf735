"""A prototype of `guidance="alternate"`, a mode that stepcache does not have, for measure.py.

Every second full step runs only its conditional half, and extrapolates the guidance difference as partial steps do.
frontier.csv shows that it does not pay (CHANGELOG), which is why it is not part of the package.
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
    """A U-Net forward for one run with the batch [unconditional, conditional] and extrapolated features."""

    def __init__(self, unet: Any, interval: int, branch: int) -> None:
        self.unet, self.interval, self.family = unet, interval, family_of(unet)
        self.cut = self.family.layout(unet).cut(branch)
        self.letters = ""  # F full, C full on the conditional half, P partial
        self._features: list[tuple[int, Tensor]] = []  # newest first
        self._differences: list[tuple[int, Tensor]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
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
        """The cost of the run in full steps. share: MACs of a partial step with both halves over a full step's."""
        price = {"F": 1.0, "C": 0.5, "P": share / 2}
        return sum(price[letter] for letter in self.letters)


def _on_line(known: list[tuple[int, Tensor]], step: int) -> Tensor:
    weights = Line(1.0).weights(0, step, [at for at, _ in known])
    return sum(weight * value for weight, (_, value) in zip(weights, known, strict=True))  # type: ignore[return-value]


@contextmanager
def alternating(pipe: Any, interval: int, branch: int) -> Iterator[AlternateGuidance]:
    """Inside, one call of `pipe` runs in this mode. Afterwards its U-Net is as it was."""
    forward = AlternateGuidance(pipe.unet, interval, branch)
    pipe.unet.forward = forward
    try:
        yield forward
    finally:
        del pipe.unet.forward
