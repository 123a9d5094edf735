"""Whether torch.autocast is on."""

from __future__ import annotations

import torch


def autocasts(device: str) -> bool:
    """Whether autocast is on for a type of device, such as "cuda". False where torch has none for it, as for "meta"."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
