"""The features of a U-Net, read in runs of the original pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from ..forwards import family_of


@contextmanager
def features_read(unet: Any, branches: Sequence[int], note: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Within the block, each call of `unet`, which is not accelerated, calls note(branch, feature) for each branch.

    The ResNet at a branch's join takes feature and skip as one concat. The feature [B, C, H, W] is a view of its first
    channels, so copy it to keep it. With FreeU on it is read after FreeU's scaling. UnsupportedUNet and
    BranchOutOfRange as in `accelerate`.
    """
    layout = family_of(unet).layout(unet)
    with ExitStack() as hooks:
        for branch in branches:
            cut = layout.cut(branch)
            resnet = unet.get_submodule(f"up_blocks.{cut.block}.resnets.{cut.layer}")
            channels = resnet.in_channels - unet.get_submodule(layout.skips[branch]).out_channels

            def read(module: Any, args: tuple[Any, ...], branch: int = branch, channels: int = channels) -> None:
                note(branch, args[0][:, :channels].detach())

            hooks.callback(resnet.register_forward_pre_hook(read).remove)
        yield
