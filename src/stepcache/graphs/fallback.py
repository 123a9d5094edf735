"""Reasons for a model to run eager, or uncaptured, instead of from its graphs."""

from __future__ import annotations

import logging
import weakref

import torch
from torch import nn

logger = logging.getLogger("stepcache")

# Where diffusers' hooks are that skip or perturb layers, most of them for one guidance branch of a step.
SKIPPING = ("diffusers.hooks.layer_skip", "diffusers.hooks.smoothed_energy_guidance_utils")


def hooks_on(model: nn.Module) -> str:
    """The hooks that a graph of the model would skip.

    "": none. "outside": offloading hooks of accelerate or diffusers on the model itself. "inside": such hooks on its
    layers, or hooks that align devices or cast. "skipping": hooks of guiders on its layers. "forward": torch's own
    hooks on layers.
    """
    where = ""
    for module in model.modules():
        values = vars(module)  # getattr takes a microsecond to find that a module lacks an attribute
        hooks = getattr(values.get("_diffusers_hook"), "hooks", None)
        if "_hf_hook" in values or hooks:
            if hooks and any(type(hook).__module__ in SKIPPING for hook in hooks.values()):
                return "skipping"
            if module is not model:
                return "inside"
            where = "outside"
        if module is not model and (values.get("_forward_hooks") or values.get("_forward_pre_hooks")):
            return "forward"
    return where


class Fallback:
    """Decides whether a call of one model must run eager or uncaptured. Logs each reason once.

    name: the model in messages ("the U-Net"). path: how the user reaches it, or the model around it ("pipe.unet").
    advice: added to the message when weights keep changing.
    """

    def __init__(self, name: str, path: str, advice: str = "") -> None:
        self._name, self._path, self._advice = name, path, advice
        self._said: set[str] = set()
        self._model: weakref.ref[nn.Module] | None = None
        self.hooks = ""

    def look(self, model: nn.Module) -> None:
        """Check the model for hooks, which may change between runs."""
        self._model = weakref.ref(model)
        self.hooks = hooks_on(model)

    def look_again(self) -> None:
        """Check the same model once more, because something on it has changed during the run."""
        model = None if self._model is None else self._model()
        if model is not None:
            self.look(model)

    def is_eager(self, module: nn.Module) -> bool:
        """Whether this call must run eager."""
        if module.training:
            self.say_once(f"In training mode {self._name} runs eager. Call {self._path}.eval().")
        elif torch.is_grad_enabled():
            self.say_once(f"Gradients are enabled: {self._name} runs eager. Use torch.no_grad() around the call.")
        elif self.hooks == "inside":
            self.say_once(f"Hooks on the layers of {self._name} offload, cast or align devices: it runs eager.")
        elif self.hooks == "skipping":
            self.say_once(
                f"A guider puts hooks onto layers of {self._name}, to skip or perturb them, which a graph would miss: "
                "calls with such hooks run eager, the others as usual."
            )
        elif self.hooks == "forward":
            self.say_once(f"The layers of {self._name} have forward hooks: it runs eager, so that the hooks run.")
        else:
            return False
        return True

    def is_uncaptured(self) -> bool:
        """Whether this call must not be captured or replayed."""
        if self.hooks:
            self.say_once(f"Offloading hooks move {self._name} between runs: it is not captured.")
        return bool(self.hooks)

    def give_up_capture(self) -> None:
        """Warn that graphs were stale too often."""
        self.say_once(f"Weights or settings of {self._name} keep changing: it is no longer captured.{self._advice}")

    def say_once(self, reason: str) -> None:
        """Warn with `reason`, once."""
        if reason not in self._said:
            self._said.add(reason)
            logger.warning(reason)
