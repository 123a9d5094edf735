"""One up-path layer's join: the hidden state meets its skip and goes through the ResNet."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def freeu(block: nn.Module, hidden: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
    """FreeU (arXiv 2309.11497) on a join's two inputs, where `pipe.enable_freeu` has set it on the block.

    hidden: [N, C1, H, W], skip: [N, C2, H, W]; returned in the same shapes. diffusers scales half of `hidden` in
    place; here it is a copy that is scaled, since `hidden` may be the cached feature.
    """
    factors = {name: getattr(block, name, None) for name in ("s1", "s2", "b1", "b2")}
    # Only the first two up blocks are touched; elsewhere diffusers' own function does nothing either.
    if not all(factors.values()) or block.resolution_idx not in (0, 1):
        return hidden, skip
    from diffusers.utils.torch_utils import apply_freeu

    return apply_freeu(block.resolution_idx, hidden.clone(), skip, **factors)


def join(resnet: nn.Module, hidden: Tensor, skip: Tensor, temb: Tensor) -> Tensor:
    """`resnet` on the concat of `hidden` [N, C1, H, W] and `skip` [N, C2, H, W], with time embedding `temb` [N, D]."""
    return resnet(torch.cat([hidden, skip], dim=1), temb)
