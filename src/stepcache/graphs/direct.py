"""One bucket's graphs without capture: a runner, eager or compiled, and what is kept beside it."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from ..forwards.blend import Blend
from ..forwards.guidance import Values
from .buffers import Kept


class Runner(Protocol):
    """Runs the two forwards; eager or compiled."""

    def full(self, unet: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Values]: ...

    def partial(self, unet: nn.Module, kept: tuple[Tensor | Blend, ...], inputs: dict[str, Any]) -> Tensor: ...


class DirectGraphs:
    """Calls the runner."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner

    def full(self, unet: nn.Module, inputs: dict[str, Any], kept: Kept, slot: int) -> Tensor:
        """The whole U-Net; `kept` is written. Returns the output [B, out_channels, H, W]."""
        output, values = self.runner.full(unet, inputs)
        kept.write(values)
        return output

    def partial(self, unet: nn.Module, inputs: dict[str, Any], kept: Kept, slot: int) -> Tensor:
        """The shallow part on `kept`. Returns the output [B, out_channels, H, W]."""
        return self.runner.partial(unet, kept.current, inputs)
