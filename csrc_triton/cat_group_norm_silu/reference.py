"""The specification of `cat_group_norm_silu` in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .._common import combine


def cat_group_norm_silu_reference(
    h: Tensor,
    skip: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    h2: Tensor | None = None,
    h3: Tensor | None = None,
    mix: Tensor | None = None,
) -> Tensor:
    """silu(group_norm(cat([h', skip], 1))), computed in float32 (float64 for float64 inputs), returned in h's dtype.

    h, h2, h3: [N, C1, H, W]; skip: [N, C2, H, W]; weight, bias: [C1 + C2]; mix: float32, one weight for each
    buffer given, or [2, buffers] (`combine`). h' = h without `mix`, else h' = mix[0] h + mix[1] h2 + mix[2] h3.
    Returns [N, C1 + C2, H, W].
    """
    wide = torch.float64 if h.dtype == torch.float64 else torch.float32
    x = torch.cat([combine(h, h2, h3, mix, wide), skip.to(wide)], dim=1)
    return F.silu(F.group_norm(x, num_groups, weight.to(wide), bias.to(wide), eps)).to(h.dtype)
