"""Where a U-Net's own forward is, and how stepcache marks the functions it replaces."""

from __future__ import annotations

from torch import nn

ORIGINAL = "_stepcache_original"
"""The attribute of a replacement that holds the original."""


def seat(unet: nn.Module) -> tuple[object, str]:
    """Object and attribute of the U-Net's own forward, below any offloading hooks of diffusers or accelerate."""
    registry = getattr(unet, "_diffusers_hook", None)
    if registry is not None and registry._fn_refs:
        return registry._fn_refs[0], "forward"
    return (unet, "_old_forward") if hasattr(unet, "_old_forward") else (unet, "forward")
