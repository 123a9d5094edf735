"""Fingerprints of a model and its sampling, to notice when a plan is used on another one."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

# How many tensors, spread evenly over the model, are sampled, and how many values of each.
TENSORS, VALUES = 24, 16

# Two samples up to this relative difference are of one model. Rounding to bf16 makes 0.002; few fine-tunes stay below.
SAME = 0.01


def config_hash(module: Any) -> str:
    """A hash, 16 hex digits, of a diffusers model's config without the entries on its origin (names with `_`)."""
    config = {name: value for name, value in dict(module.config).items() if not name.startswith("_")}
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:16]


ADDED = ("lora_", "_ip.", "encoder_hid_proj.", ".to_qkv.", ".to_kv.")


def weight_sample(module: nn.Module) -> tuple[float, ...]:
    """A few hundred weights, always from the same places, in float32; () if they cannot be read.

    They exclude what is added to a model: layers of a LoRA (until it is fused) and of an IP-Adapter, and fused
    projections. Quantised weights, and those that offloading hooks keep off any device, cannot be read. The host waits
    for the device.
    """
    # Only matrices and kernels, because the norms' weights of about 1 would drown them.
    weights = {
        name.replace(".base_layer", ""): p
        for name, p in module.named_parameters()
        if p.dim() > 1 and not any(added in name for added in ADDED)
    }
    names = sorted(weights)
    chosen = [weights[names[i * len(names) // TENSORS]] for i in range(TENSORS)] if len(names) > TENSORS else []
    chosen = chosen or [weights[name] for name in names]
    if any(p.is_meta or not p.is_floating_point() for p in chosen):
        return ()
    return tuple(value for p in chosen for value in _spread(p.detach()).float().cpu().tolist())


def _spread(tensor: Tensor) -> Tensor:
    flat = tensor.reshape(-1)
    # In Python, because linspace differs between devices.
    places = [i * flat.numel() // VALUES for i in range(min(VALUES, flat.numel()))]
    return flat[torch.tensor(places, device=flat.device)]


def same_weights(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two samples are of one model, in any dtype. True if one of them could not be read."""
    if not one or not other:
        return True
    if len(one) != len(other):
        return False
    return math.dist(one, other) <= SAME * math.hypot(*one)


def sampling(scheduler: Any) -> dict[str, Any]:
    """A diffusers scheduler's class and the settings that its own constructor takes, as JSON stores them.

    Infinite numbers (the `lambda_min_clipped` of DPM++) are strings, because JSON lacks them.
    """
    takes = inspect.signature(type(scheduler).__init__).parameters
    config = getattr(scheduler, "config", None)
    config = dict(config) if isinstance(config, Mapping) else {}  # not every scheduler is diffusers'
    settings = {name: config[name] for name in takes if name in config}
    stored = json.loads(json.dumps(settings, default=str), parse_constant=str)
    return {"class": type(scheduler).__name__, **stored}


def sampling_differs(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The names of settings that differ between two `sampling` results. One that only one of them has is ignored."""
    if one["class"] != other["class"]:
        return ["class"]
    return [name for name, value in one.items() if name in other and other[name] != value]
