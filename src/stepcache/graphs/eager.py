"""Full and partial forward, operation by operation."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch import Tensor, nn

from ..cut import Cut
from ..join import Join, reference_join


class EagerRunner:
    """Calls a family's forwards as they are."""

    def __init__(self, family: ModuleType, cut: Cut, join: Join = reference_join) -> None:
        self.family, self.cut, self.join = family, cut, join

    def full(self, unet: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The whole U-Net: (output [B, out_channels, H, W], feature)."""
        return self.family.full(unet, self.cut, self.join, **inputs)

    def partial(self, unet: nn.Module, feature: Tensor, inputs: dict[str, Any]) -> Tensor:
        """The shallow part on `feature`: output [B, out_channels, H, W]."""
        return self.family.partial(unet, self.cut, feature, self.join, **inputs)
