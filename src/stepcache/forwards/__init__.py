"""Full and partial forwards, one file for each family of U-Nets, and the choice among them.

A family is a module with:
- `check(unet)`: raises UnsupportedUNet, naming the block, if a forward is not the one this file follows;
- `layout(unet)`: its `cut.Layout`; `deep_modules(unet, cut)`: the modules that a partial step skips;
- `bind(*args, **kwargs)`: the arguments of one U-Net call, as a `Call`;
- `full(unet, cut, join, **inputs) -> (output, feature)` and `partial(unet, cut, feature, join, **inputs) -> output`:
  functions of tensors, without side effects, at the granularity of ResNets and attentions. `join` is a `JoinFunction`;
  in `partial` the feature is a tensor or a `Blend`;
- `wrap(output, return_dict)`: the output as the stock forward returns it.

If it differs from text-to-image U-Nets, it also has (macs.py):
- `example_inputs(unet, height, width, batch)`: inputs of full and partial, zeros or the like;
- `image_channels(unet, cut)`: how many channels the feature has besides those of the hidden state.

The two 2D families share blocks.py, the three for video share video.py, and all share calls.py and stock.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from ..errors import UnsupportedUNet
from .touched import check_one_device

# U-Net class -> the file here that holds its forwards.
FAMILIES = {
    "UNet2DConditionModel": "unet_2d_condition",
    "UNet2DModel": "unet_2d",
    "UNet3DConditionModel": "unet_3d_condition",
    "UNetMotionModel": "unet_motion",
    "UNetSpatioTemporalConditionModel": "unet_spatio_temporal_condition",
}


def family_of(unet: Any) -> ModuleType:
    """The family of `unet`, found by class name. Raises UnsupportedUNet if there is none."""
    from importlib import import_module

    for cls in type(unet).__mro__:
        if cls.__name__ in FAMILIES:
            family = import_module(f"{__name__}.{FAMILIES[cls.__name__]}")
            check_one_device(unet)
            family.check(unet)
            return family
    inner = {cls.__name__ for cls in type(getattr(unet, "module", None)).__mro__}
    way_out = "Run this pipeline without stepcache."
    if inner & set(FAMILIES):
        way_out = "Give stepcache the U-Net inside (pipe.unet = pipe.unet.module), and each device its own pipe."
    known = ", ".join(sorted(FAMILIES))
    raise UnsupportedUNet(f"{type(unet).__name__} is not a U-Net that stepcache knows. Supported: {known}. {way_out}")


@contextmanager
def lora_scaled(unet: Any, scale: float) -> Iterator[None]:
    """Scale the LoRA layers of `unet` for one call, as the stock forward's decorator does, then scale them back."""
    from diffusers.utils import USE_PEFT_BACKEND, logging, scale_lora_layers, unscale_lora_layers

    if not USE_PEFT_BACKEND:
        logging.get_logger(__name__).warning(f"A LoRA scale of {scale} has no effect without peft installed.")
        yield
        return
    scale_lora_layers(unet, scale)
    try:
        yield
    finally:
        unscale_lora_layers(unet, scale)
