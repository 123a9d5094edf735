"""Inner products of features over steps, from one run of the original pipeline.

The least-squares weights of a step's feature on those of earlier steps need inner products only: with
G[i, k] = <f_i, f_k> summed over prompts, they solve G[K, K] w = G[K, i] for any set K of full steps. So one run gives
the weights of every mask. The U-Net's outputs give the guidance difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidSetting
from ..images.features import features_read
from ..images.make import Made
from .replay import Recording

# Added to the diagonal, times the diagonal's mean. Features of neighbouring steps are nearly the same, and without it
# the weights would be large numbers of both signs that fit rounding errors.
RIDGE = 1e-6


@dataclass
class Grams:
    """Gram matrices over T steps, float64 [T, T] on the CPU.

    whole: of one branch's feature, of the whole batch; half: of its conditional half; difference: of the guidance
    difference. The last two are None without guidance.
    """

    whole: Tensor
    half: Tensor | None = None
    difference: Tensor | None = None

    def of(self, value: int, reuse: bool) -> Tensor:
        """The matrix of a value that a run keeps: 0 the feature, 1 the guidance difference (predict.Predictor)."""
        if not reuse:
            return self.whole
        chosen = self.difference if value else self.half
        assert chosen is not None
        return chosen


def fitted_weights(gram: Tensor, step: int, full: Sequence[int]) -> tuple[float, ...]:
    """Least-squares weights, with which the features at steps `full` give that at `step`."""
    kept = list(full)
    a = gram[kept][:, kept]
    a = a + RIDGE * a.diagonal().mean() * torch.eye(len(kept), dtype=a.dtype)
    return tuple(torch.linalg.solve(a, gram[kept, step]).tolist())


class Collector:
    """Grams of some branches, added up over runs of `pipe`."""

    def __init__(self, pipe: Any, branches: Sequence[int]) -> None:
        self.unet, self.branches = pipe.unet, tuple(branches)
        self.grams: dict[int, Grams] = {}
        # [B, in_channels, H, W] of the U-Net's calls.
        self.sample: tuple[int, ...] = ()
        self.recordings: list[Recording] = []

    def run(self, make: Callable[[], Made], guided: Callable[[], bool], record: bool = False) -> Made:
        """`make()`, which makes a batch of images with `pipe`. Price: the features of that run in main memory.

        record: let all of that run stay there, as the last of `recordings`.
        """
        features: dict[int, list[Tensor]] = {branch: [] for branch in self.branches}
        outputs: list[Tensor] = []
        samples: list[Tensor] = []

        def note_sample(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            sample = args[0] if args else kwargs["sample"]
            self.sample = tuple(sample.shape)
            if record:
                samples.append(sample.detach().cpu().clone())

        def note_output(module: Any, args: tuple[Any, ...], output: Any) -> None:
            outputs.append(output[0].detach().cpu().clone())

        with ExitStack() as hooks:
            hooks.callback(self.unet.register_forward_pre_hook(note_sample, with_kwargs=True).remove)
            hooks.callback(self.unet.register_forward_hook(note_output).remove)
            hooks.enter_context(
                features_read(
                    self.unet, self.branches, lambda branch, value: features[branch].append(value.cpu().contiguous())
                )
            )
            made = make()
        self._add(features, outputs, guided())
        if record:
            self.recordings.append(Recording(samples, outputs, features, made.images, guided()))
        return made

    def _add(self, features: dict[int, list[Tensor]], outputs: list[Tensor], guided: bool) -> None:
        if len({tensor.shape for tensor in outputs}) != 1:
            raise InvalidSetting(
                "The U-Net's batch changed mid-run (guidance switched off, for example): calibration needs runs of one "
                "shape."
            )
        difference = _gram([out.chunk(2)[1] - out.chunk(2)[0] for out in outputs]) if guided else None
        for branch, values in features.items():
            half = _gram([value.chunk(2)[1] for value in values]) if guided else None
            new = Grams(_gram(values), half, difference)
            old = self.grams.get(branch)
            self.grams[branch] = new if old is None else _sum(old, new)


def _sum(one: Grams, other: Grams) -> Grams:
    def both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        return None if a is None or b is None else a + b

    return Grams(one.whole + other.whole, both(one.half, other.half), both(one.difference, other.difference))


def _gram(tensors: Sequence[Tensor]) -> Tensor:
    """[T, T] of T tensors, a part of the values at a time. In float64, since neighbouring steps differ little."""
    rows = torch.stack([tensor.flatten() for tensor in tensors])
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for part in rows.split(2**18, dim=1):
        wide = part.double()
        gram += wide @ wide.T
    return gram
