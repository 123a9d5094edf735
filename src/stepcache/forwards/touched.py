"""Hooks on a U-Net's blocks that our forwards bypass, because they call a block's layers and not the block itself."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import UnsupportedUNet


def check_untouched(where: str, block: nn.Module) -> None:
    """Raise UnsupportedUNet if a block has hooks or a forward of its own, which our forwards would bypass.

    One exception: a hook of accelerate that only moves the block's inputs to their device, as in a pipeline that was
    loaded with device_map.
    """
    touched = [name for name in ("_forward_hooks", "_forward_pre_hooks", "_compiled_call_impl") if getattr(block, name)]
    values = vars(block)
    if "forward" in values and getattr(block.forward, "__func__", None) is not type(block).forward:
        if "group_offloading" in getattr(values.get("_diffusers_hook"), "hooks", ()):
            raise UnsupportedUNet(
                f"{where} is offloaded as a whole, by diffusers' group offloading at block level. stepcache calls a "
                "block's layers and not the block, so its weights would be missing. Reload the pipeline with "
                'offload_type="leaf_level", which loads the weights of the layers that run.'
            )
        stock = getattr(values.get("_old_forward"), "__func__", None) is type(block).forward
        if not stock or not all(map(_only_aligns, _accelerate_hooks(block))):
            touched.append("forward")
    if touched:
        raise UnsupportedUNet(
            f"{where} has {', '.join(touched)} of its own. stepcache calls a block's layers and not the block, so that "
            "would have no effect. Remove it, or run this pipeline without stepcache."
        )


def check_one_device(unet: nn.Module) -> None:
    """Raise UnsupportedUNet if accelerate's hooks run parts of the U-Net on different devices."""
    hooks = [hook for module in unet.modules() for hook in _accelerate_hooks(module) if _aligns(hook)]
    devices = {str(hook.execution_device) for hook in hooks if hook.execution_device is not None}
    if len(devices) > 1:
        raise UnsupportedUNet(
            f"A device_map splits the U-Net over the devices {', '.join(sorted(devices))}. stepcache joins hidden "
            "states of different blocks, and needs them on one device. A pipeline's device_map keeps each model whole: "
            "load the U-Net that way, or run this pipeline without stepcache."
        )


def _accelerate_hooks(module: nn.Module) -> tuple[Any, ...]:
    hook = vars(module).get("_hf_hook")
    return () if hook is None else tuple(getattr(hook, "hooks", (hook,)))


def _aligns(hook: object) -> bool:
    return type(hook).__name__ == "AlignDevicesHook"


def _only_aligns(hook: Any) -> bool:
    return _aligns(hook) and not hook.offload
