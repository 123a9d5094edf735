"""Why a model runs eager, or uncaptured, although its graphs could run."""

from __future__ import annotations

import logging

import torch
from torch import nn

logger = logging.getLogger("stepcache")


def hooks_on(model: nn.Module) -> str:
    """Which hooks a graph of the model would leave out: "" none, "outside" offloading hooks of accelerate or diffusers
    on the model itself, "inside" such hooks on its layers (or ones that align devices or cast), "forward" torch's own
    hooks on layers.
    """
    where = ""
    for module in model.modules():
        values = vars(module)  # asked of a module itself, a missing attribute costs a microsecond
        if "_hf_hook" in values or getattr(values.get("_diffusers_hook"), "hooks", None):
            if module is not model:
                return "inside"
            where = "outside"
        if module is not model and (values.get("_forward_hooks") or values.get("_forward_pre_hooks")):
            return "forward"
    return where


class Fallback:
    """What one model falls back to in a call; each reason is logged once.

    name: of the model in messages ("the U-Net"). path: where the user finds what holds it ("pipe.unet"). advice: for
    one whose weights change all the time.
    """

    def __init__(self, name: str, path: str, advice: str = "") -> None:
        self._name, self._path, self._advice = name, path, advice
        self._said: set[str] = set()
        self.hooks = ""

    def look(self, model: nn.Module) -> None:
        """Look for hooks on the model, which may come and go between runs."""
        self.hooks = hooks_on(model)

    def is_eager(self, module: nn.Module) -> bool:
        """Whether this call must run eager, through the modules."""
        if module.training:
            self.say_once(f"In training mode {self._name} runs eager. Call {self._path}.eval().")
        elif torch.is_grad_enabled():
            self.say_once(f"Gradients are enabled: {self._name} runs eager. Use torch.no_grad() around the call.")
        elif self.hooks == "inside":
            self.say_once(f"Hooks on the layers of {self._name} offload, cast or align devices: it runs eager.")
        elif self.hooks == "forward":
            self.say_once(f"Forward hooks are on the layers of {self._name}: it runs eager, and they run in each call.")
        else:
            return False
        return True

    def is_uncaptured(self) -> bool:
        """Whether this call must not be captured or replayed."""
        if self.hooks:
            self.say_once(f"Offloading hooks move {self._name} between runs: it is not captured.")
        return bool(self.hooks)

    def give_up_capture(self) -> None:
        """Say that graphs were stale too often."""
        self.say_once(
            f"Weights or settings of {self._name} change again and again: it is not captured any more.{self._advice}"
        )

    def say_once(self, reason: str) -> None:
        """Warn that something does not run as asked."""
        if reason not in self._said:
            self._said.add(reason)
            logger.warning(reason)
