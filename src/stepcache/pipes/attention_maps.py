"""Attention processors that keep the attention maps of a U-Net call, for a pipeline that reads them after it.

A partial step does not run the deep layers, and a graph runs no Python: such a pipeline would go on with old maps and
say nothing. Known by name, after reading the pipelines; Attend-and-Excite's keeps maps in calls with gradients only,
which are stock anyway.
"""

from __future__ import annotations

from torch import nn

KEEPERS = frozenset(
    {
        "CrossAttnStoreProcessor",  # self-attention guidance
        "LEDITSCrossAttnProcessor",  # LEdits++ with use_cross_attn_mask or use_intersect_mask
        "P2PCrossAttnProcessor",  # Prompt-to-Prompt, of diffusers' community pipelines
        "Pix2PixZeroAttnProcessor",
    }
)


def keeper_of(unet: nn.Module) -> str | None:
    """The name of a processor on `unet` that keeps attention maps; None where there is none."""
    for module in unet.modules():
        processor = vars(module).get("processor")
        if processor is None:
            processor = module._modules.get("processor")  # LoRA's and IP-Adapter's are modules
            if processor is None:
                continue
        for cls in type(processor).__mro__:
            if cls.__name__ in KEEPERS:
                return cls.__name__
    return None
