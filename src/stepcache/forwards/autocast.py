"""Whether torch.autocast is on."""

from __future__ import annotations

import torch


def autocasts(device: str) -> bool:
    """Whether autocast is on for a type of device, such as "cuda". False for "meta", for which torch has none."""
    # torch.amp.is_autocast_available would say that too, but torch 2.11's Dynamo cannot trace it.
    return device != "meta" and torch.is_autocast_enabled(device)
