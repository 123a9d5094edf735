"""A feature as a weighted sum of kept buffers, which the join sums in registers where it can."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Blend(NamedTuple):
    """A weighted sum of tensors that is not computed yet.

    buffers: one to three tensors of one shape and dtype. weights: float32 [len(buffers)] on their device, so that a
    compiled or captured graph sees the weights of each step. Or [2, len(buffers)]: the second row weighs each buffer's
    sample in the other half of the batch.
    """

    buffers: tuple[Tensor, ...]
    weights: Tensor

    def value(self) -> Tensor:
        """The sum, computed in float32 (float64 for float64 buffers) and rounded to the buffers' dtype."""
        wide = torch.promote_types(self.buffers[0].dtype, torch.float32)
        buffers = [buffer.to(wide) for buffer in self.buffers]
        own, *others = self.weights if self.weights.dim() == 2 else (self.weights,)
        terms = [weight * buffer for weight, buffer in zip(own, buffers, strict=True)]
        for other in others:
            terms += [weight * swapped(buffer) for weight, buffer in zip(other, buffers, strict=True)]
        return sum(terms[1:], terms[0]).to(self.buffers[0].dtype)


def swapped(batch: Tensor) -> Tensor:
    """The batch with its two halves in the other order."""
    return torch.cat(batch.chunk(2)[::-1])


def value_of(tensor: Tensor | Blend) -> Tensor:
    """The tensor itself, or a blend's sum."""
    return tensor.value() if isinstance(tensor, Blend) else tensor
