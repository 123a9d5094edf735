"""One bucket's graphs without capture: a runner, eager or compiled, and the feature beside it."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from ..buffers import Feature


class Runner(Protocol):
    """Runs the two forwards; eager or compiled."""

    def full(self, unet: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]: ...  # noqa: D102

    def partial(self, unet: nn.Module, feature: Tensor, inputs: dict[str, Any]) -> Tensor: ...  # noqa: D102


class DirectGraphs:
    """Calls the runner."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner

    def full(self, unet: nn.Module, inputs: dict[str, Any], feature: Feature, slot: int, stamp: object) -> Tensor:
        """The whole U-Net; `feature` is written with `stamp`. Returns the output [B, out_channels, H, W]."""
        output, value = self.runner.full(unet, inputs)
        feature.write(value, stamp)
        return output

    def partial(self, unet: nn.Module, inputs: dict[str, Any], feature: Feature, slot: int) -> Tensor:
        """The shallow part on `feature`. Returns the output [B, out_channels, H, W]."""
        assert feature.tensor is not None
        return self.runner.partial(unet, feature.tensor, inputs)
