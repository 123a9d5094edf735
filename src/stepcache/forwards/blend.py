"""A feature as a weighted sum of kept buffers, which the join sums in registers where it can."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Blend(NamedTuple):
    """A weighted sum of tensors that is not computed yet.

    buffers: one to three tensors of one shape and dtype. weights: float32 on their device, so that a compiled or
    captured graph sees the weights of each step; [len(buffers)], or [2, len(buffers)] where each half of the batch also
    takes from the other half. Then the first row weighs what a buffer holds for a sample itself, the second row what it
    holds for the sample at the same place in the other half: sample b with (b + B / 2) mod B.
    """

    buffers: tuple[Tensor, ...]
    weights: Tensor

    @property
    def halves(self) -> bool:
        """Whether the halves of the batch take from each other."""
        return self.weights.dim() == 2

    def value(self) -> Tensor:
        """The sum, computed in float32 (float64 for float64 buffers) and rounded to the buffers' dtype.

        ValueError: the halves take from each other, and the batch (the first dimension) is odd.
        """
        first = self.buffers[0]
        wide = torch.promote_types(first.dtype, torch.float32)
        own, other = self.weights.unbind() if self.halves else (self.weights, None)
        terms = [weight * buffer.to(wide) for weight, buffer in zip(own, self.buffers, strict=True)]
        if other is not None:
            terms += [weight * _exchanged(buffer).to(wide) for weight, buffer in zip(other, self.buffers, strict=True)]
        return sum(terms[1:], terms[0]).to(first.dtype)


def value_of(tensor: Tensor | Blend) -> Tensor:
    """The tensor itself, or a blend's sum."""
    return tensor.value() if isinstance(tensor, Blend) else tensor


def _exchanged(tensor: Tensor) -> Tensor:
    """The second half of the batch, then the first. Inductor reads a flip in place, and a roll through an index."""
    batch = tensor.shape[0]
    if batch % 2 != 0:
        raise ValueError(f"the weights of a blend are for two halves of a batch, but its buffers hold {batch} samples")
    return tensor.unflatten(0, (2, batch // 2)).flip(0).flatten(0, 1)
