"""torch's own switches for the whole process that a graph has baked in."""

from __future__ import annotations

import torch

# What attention may run as, by the name in torch.backends.cuda.
_ATTENTION = ("flash", "mem_efficient", "math", "cudnn")


def switches() -> dict[str, bool]:
    """The switches as they are now."""
    attention = {name: bool(getattr(torch.backends.cuda, f"{name}_sdp_enabled", bool)()) for name in _ATTENTION}
    return {"deterministic": torch.are_deterministic_algorithms_enabled(), **attention}


def set_switches(wanted: dict[str, bool]) -> None:
    """Set them in this process, which only compiles."""
    torch.use_deterministic_algorithms(wanted["deterministic"], warn_only=True)
    for name in _ATTENTION:
        enable = getattr(torch.backends.cuda, f"enable_{name}_sdp", None)
        if enable is not None:
            enable(wanted[name])
