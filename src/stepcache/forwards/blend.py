"""A feature as a weighted sum of kept buffers, which the join sums in registers where it can."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Blend(NamedTuple):
    """A weighted sum of tensors that is not computed yet.

    buffers: one to three tensors of one shape and dtype. weights: float32 [len(buffers)] on their device, so that a
    compiled or captured graph sees the weights of each step.
    """

    buffers: tuple[Tensor, ...]
    weights: Tensor

    def value(self) -> Tensor:
        """The sum, computed in float32 (float64 for float64 buffers) and rounded to the buffers' dtype."""
        wide = torch.promote_types(self.buffers[0].dtype, torch.float32)
        terms = [weight * buffer.to(wide) for weight, buffer in zip(self.weights, self.buffers, strict=True)]
        return sum(terms[1:], terms[0]).to(self.buffers[0].dtype)


def value_of(tensor: Tensor | Blend) -> Tensor:
    """The tensor itself, or a blend's sum."""
    return tensor.value() if isinstance(tensor, Blend) else tensor
