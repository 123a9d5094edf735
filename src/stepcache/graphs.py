"""The two graphs of a bucket: how `full` and `partial` of a family are run."""

from __future__ import annotations

from collections.abc import Hashable
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from .buffers import Feature
from .cut import Cut


class EagerGraphs:
    """Full and partial forward, operation by operation."""

    def __init__(self, family: ModuleType, cut: Cut) -> None:
        self.family, self.cut = family, cut

    def key(self, inputs: dict[str, Any]) -> Hashable:
        """What a bucket's shapes hang on: the feature's shape, dtype and device follow from the sample's."""
        sample: Tensor = inputs["sample"]
        return sample.shape, sample.dtype, sample.device, sample.stride()

    def full(self, unet: nn.Module, inputs: dict[str, Any], feature: Feature, run: object) -> Tensor:
        """The whole U-Net; `feature` is written for `run`. Returns the output [B, out_channels, H, W]."""
        output, value = self.family.full(unet, self.cut, **inputs)
        feature.write(value, run)
        return output

    def partial(self, unet: nn.Module, inputs: dict[str, Any], feature: Feature) -> Tensor:
        """The shallow part on `feature`, which must have been written. Returns the output [B, out_channels, H, W]."""
        return self.family.partial(unet, self.cut, feature.tensor, **inputs)
