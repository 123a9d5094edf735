"""Inner products of features over steps, from one run of the original pipeline.

Least-squares weights of a step's feature on those of earlier steps need inner products only: with G[i, k] = <f_i, f_k>
summed over prompts, they solve G[K, K] w = G[K, i] for any set K of full steps. So one run gives the weights of every
mask. Features are read by hooks on the original pipeline, which is not accelerated for that: the ResNet of a branch's
join takes the feature and the skip as one concat, and the U-Net's output gives the guidance difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidSetting
from ..forwards import family_of

# Added to the diagonal, times its mean: features of neighbouring steps are nearly the same, and without it the weights
# would be large numbers of both signs that fit rounding.
RIDGE = 1e-6


@dataclass
class Grams:
    """Float64 [T, T] on the CPU: of one branch's feature (whole batch), of its conditional half, and of the difference.

    half and difference are None without guidance.
    """

    whole: Tensor
    half: Tensor | None = None
    difference: Tensor | None = None

    def of(self, value: int, reuse: bool) -> Tensor:
        """Those of what a run keeps: value 0 the feature, 1 the guidance difference (predict.Predictor)."""
        if not reuse:
            return self.whole
        chosen = self.difference if value else self.half
        assert chosen is not None
        return chosen


def fitted_weights(gram: Tensor, step: int, full: Sequence[int]) -> tuple[float, ...]:
    """Least-squares weights of the features at `full` for that at `step`."""
    kept = list(full)
    a = gram[kept][:, kept]
    a = a + RIDGE * a.diagonal().mean() * torch.eye(len(kept), dtype=a.dtype)
    return tuple(torch.linalg.solve(a, gram[kept, step]).tolist())


@dataclass
class _Seen:
    """What hooks have read in the present run, on the CPU: by branch the feature of each step, and the outputs."""

    features: dict[int, list[Tensor]] = field(default_factory=dict)
    outputs: list[Tensor] = field(default_factory=list)
    sample: tuple[int, ...] = ()


class Collector:
    """Grams of some branches, added up over runs of `pipe`."""

    def __init__(self, pipe: Any, branches: Sequence[int]) -> None:
        self.unet, self.branches = pipe.unet, tuple(branches)
        self.grams: dict[int, Grams] = {}
        # [B, in_channels, H, W] of the U-Net's calls.
        self.sample: tuple[int, ...] = ()

    def run(self, make: Callable[[], Any], guided: Callable[[], bool]) -> Any:
        """`make()` makes a batch of images with `pipe`; returns what it returns. Price: all features of that run."""
        seen = _Seen({branch: [] for branch in self.branches})
        with ExitStack() as hooks:
            for handle in self._hooks(seen):
                hooks.callback(handle.remove)
            made = make()
        self._add(seen, guided())
        return made

    def _hooks(self, seen: _Seen) -> list[Any]:
        unet = self.unet
        layout = family_of(unet).layout(unet)

        def note_sample(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.sample = tuple((args[0] if args else kwargs["sample"]).shape)

        def note_output(module: Any, args: tuple[Any, ...], output: Any) -> None:
            seen.outputs.append(output[0].detach().cpu())

        handles = [unet.register_forward_pre_hook(note_sample, with_kwargs=True)]
        handles.append(unet.register_forward_hook(note_output))
        for branch in self.branches:
            cut = layout.cut(branch)
            resnet = unet.get_submodule(f"up_blocks.{cut.block}.resnets.{cut.layer}")
            # The concat's first channels: the skip's come behind.
            channels = resnet.in_channels - unet.get_submodule(layout.skips[branch]).out_channels

            def note(module: Any, args: tuple[Any, ...], branch: int = branch, channels: int = channels) -> None:
                seen.features[branch].append(args[0][:, :channels].detach().cpu())

            handles.append(resnet.register_forward_pre_hook(note))
        return handles

    def _add(self, seen: _Seen, guided: bool) -> None:
        if len({tensor.shape for tensor in seen.outputs}) != 1:
            raise InvalidSetting(
                "The U-Net's batch changed in the middle of a run (guidance switched off, say): calibration needs runs "
                "of one shape."
            )
        self.sample = seen.sample
        difference = _gram([out.chunk(2)[1] - out.chunk(2)[0] for out in seen.outputs]) if guided else None
        for branch, features in seen.features.items():
            half = _gram([feature.chunk(2)[1] for feature in features]) if guided else None
            new = Grams(_gram(features), half, difference)
            old = self.grams.get(branch)
            self.grams[branch] = new if old is None else _sum(old, new)


def _sum(one: Grams, other: Grams) -> Grams:
    def both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        return None if a is None or b is None else a + b

    return Grams(one.whole + other.whole, both(one.half, other.half), both(one.difference, other.difference))


def _gram(tensors: Sequence[Tensor]) -> Tensor:
    """[T, T] of T tensors, in float64: their differences are small beside them. A part of the values at a time."""
    rows = torch.stack([tensor.flatten() for tensor in tensors])
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for part in rows.split(2**18, dim=1):
        wide = part.double()
        gram += wide @ wide.T
    return gram
