"""Full and partial forward, operation by operation."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch import Tensor, nn

from ..forwards import guidance
from ..forwards.blend import Blend
from ..forwards.guidance import Values
from ..forwards.join import JoinFunction, reference_join
from ..reuse.cut import Cut


class EagerRunner:
    """Calls a family's forwards as they are. reuse_guidance: see guidance.py."""

    def __init__(
        self, family: ModuleType, cut: Cut, join: JoinFunction = reference_join, reuse_guidance: bool = False
    ) -> None:
        self.family, self.cut, self.join, self.reuse_guidance = family, cut, join, reuse_guidance

    def full(self, unet: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Values]:
        """The whole U-Net: (output [B, out_channels, H, W], what is kept)."""
        return guidance.full(self.family, unet, self.cut, self.join, self.reuse_guidance, inputs)

    def partial(self, unet: nn.Module, kept: tuple[Tensor | Blend, ...], inputs: dict[str, Any]) -> Tensor:
        """The shallow part on what was kept: output [B, out_channels, H, W]."""
        return guidance.partial(self.family, unet, self.cut, self.join, kept, inputs)
