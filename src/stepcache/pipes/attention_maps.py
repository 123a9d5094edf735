"""Attention processors that keep a U-Net call's attention maps, for pipelines that read them afterwards.

A partial step skips the deep layers, and a graph runs no Python, so such a pipeline would silently use old maps. The
list comes from reading the pipelines. Attend-and-Excite's processor is not on it: it keeps maps only in calls with
gradients, which run stock anyway.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

KEEPERS = frozenset(
    {
        "CrossAttnStoreProcessor",  # self-attention guidance
        "LEDITSCrossAttnProcessor",  # LEdits++ with use_cross_attn_mask or use_intersect_mask
        "P2PCrossAttnProcessor",  # Prompt-to-Prompt, of diffusers' community pipelines
        "Pix2PixZeroAttnProcessor",
    }
)


def keeper_of(modules: Iterable[nn.Module]) -> str | None:
    """The name of a processor on a U-Net's modules that keeps attention maps; None if there is none."""
    for module in modules:
        processor = vars(module).get("processor")
        if processor is None:
            processor = module._modules.get("processor")  # LoRA's and IP-Adapter's are modules
            if processor is None:
                continue
        for cls in type(processor).__mro__:
            if cls.__name__ in KEEPERS:
                return cls.__name__
    return None
