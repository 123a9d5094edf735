"""Runs whose skipped steps take a weighted sum of what earlier full steps computed: ours and rivals', one interface.

A method is where its full steps are, what it sums (the feature that enters the shallow part, or the U-Net's output, so
that a skipped step runs nothing at all), and the weights. Hold, a line, Spectrum's ridge: all of them are weights on
the host. `weighted` runs one eager on a pipeline's own loop; `accelerate` runs those that it has in static graphs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from stepcache.forwards import family_of
from stepcache.reuse.predict import Weights


class Method(Protocol):
    """A way to skip work.

    of: "feature" or "output". keeps: of how many full steps the values are summed, newest first.
    """

    of: str
    keeps: int

    def mask(self, steps: int) -> str:
        """F for each full step of a run, P for the others."""

    def weights(self, step: int, full: Sequence[int], steps: int) -> tuple[Weights, Weights]:
        """Weights of the values at steps `full`, newest first: for the halves' mean, and for their difference."""


class WeightedUNet:
    """A U-Net forward for one run with the batch [unconditional, conditional]."""

    def __init__(self, unet: Any, method: Method, branch: int, steps: int) -> None:
        self.unet, self.method, self.steps, self.family = unet, method, steps, family_of(unet)
        self.cut, self.letters = self.family.layout(unet).cut(branch), method.mask(steps)
        self._step = 0
        self._kept: list[tuple[int, Tensor]] = []  # newest first

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        inputs, _, return_dict = self.family.bind(*args, **kwargs)
        step, self._step = self._step, self._step + 1
        if self.letters[step] == "F":
            output, feature = self.family.full(self.unet, self.cut, **inputs)
            kept = feature if self.method.of == "feature" else output
            self._kept = [(step, kept), *self._kept][: self.method.keeps]
        else:
            output = self._value(step)
            if self.method.of == "feature":
                output = self.family.partial(self.unet, self.cut, output, **inputs)
        return self.family.wrap(output, return_dict)

    def _value(self, step: int) -> Tensor:
        full, values = zip(*self._kept, strict=True)
        weights = self.method.weights(step, full, self.steps)
        mean, difference = (sum(w * v for w, v in zip(each, values, strict=True)) for each in weights)
        if weights[0] == weights[1]:
            return mean  # type: ignore[return-value]
        (u, c), (unconditional, conditional) = mean.chunk(2), difference.chunk(2)  # type: ignore[union-attr]
        middle, half = (u + c) / 2, (conditional - unconditional) / 2
        return torch.cat([middle - half, middle + half])


@contextmanager
def weighted(pipe: Any, method: Method, branch: int, steps: int) -> Iterator[WeightedUNet]:
    """Inside, one call of `pipe` runs by this method. Afterwards its U-Net is as it was."""
    forward = WeightedUNet(pipe.unet, method, branch, steps)
    pipe.unet.forward = forward
    try:
        yield forward
    finally:
        del pipe.unet.forward
