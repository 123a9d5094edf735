"""The specification of `dual_conv1x1` in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .._common import combine


def dual_conv1x1_reference(
    h: Tensor,
    skip: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    h2: Tensor | None = None,
    h3: Tensor | None = None,
    mix: Tensor | None = None,
    residual_bias: Tensor | None = None,
) -> Tensor:
    """conv2d(cat([h', skip], 1), weight, bias) + residual + residual_bias, in float32 (float64 for float64 inputs).

    h, h2, h3: [N, C1, H, W]; skip: [N, C2, H, W]; weight: [O, C1 + C2, 1, 1]; bias, residual_bias: [O]; residual:
    [N, O, H, W]; mix: float32, one weight for each buffer given, or [2, buffers] (`combine`). h' = h without
    `mix`, else h' = mix[0] h + mix[1] h2 + mix[2] h3. Returns [N, O, H, W] in h's dtype.
    """
    wide = torch.float64 if h.dtype == torch.float64 else torch.float32
    x = torch.cat([combine(h, h2, h3, mix, wide), skip.to(wide)], dim=1)
    y = F.conv2d(x, weight.to(wide), None if bias is None else bias.to(wide))
    if residual is not None:
        y = y + residual.to(wide)
    if residual_bias is not None:
        y = y + residual_bias.to(wide)[:, None, None]
    return y.to(h.dtype)
