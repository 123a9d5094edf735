"""What a graph depends on in a model, as plain values that another process can compare with those of its own model.

That is the model's config; of each module its class, its attributes and those of its attention processor; and name,
shape, dtype and strides of each weight. The weights' values are inputs, so they do not count.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import inspect
import json
import math
import types
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from ..forwards.stock import foreign_in
from ..pipes.foreign import foreign_code, is_known
from ..pipes.seat import ORIGINAL

# What torch keeps on every module, and what hooks, adapters and stepcache itself leave there without an effect on what
# is computed. (Hooks that have one make a model run eager: graphs/fallback.py.)
_NEUTRAL = {
    *vars(nn.Module()),
    *("forward", "_hf_hook", "_old_forward", "_diffusers_hook"),
    *("peft_config", "_hf_peft_config_loaded", "lora_scale", "_safe_fusing"),
    *("gradient_checkpointing", "_gradient_checkpointing_func"),
    "_internal_dict",  # the config
}

# What size it was trained at; no forward reads it.
_IDLE = {"sample_size"}

_DEPTH = 4  # of objects in objects


class NotPackaged(Exception):
    """Why there is, or can be, no package for a program. For stepcache itself: callers say it or raise it on."""


@dataclass(frozen=True)
class ModelState:
    """about: class, config, modules by name and weights by name, as JSON. weights: their names, in order of inputs."""

    about: dict[str, Any]
    weights: tuple[str, ...]

    @functools.cached_property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()


def state_of(model: nn.Module, without: Iterable[nn.Module] = ()) -> ModelState:
    """The state of `model`, except the modules `without`, which the program does not run.

    Raises NotPackaged if it cannot be told: foreign code, weights of another kind (quantised ones), tensors that are
    neither parameters nor buffers; and in training mode.
    """
    if model.training:
        raise NotPackaged("it is in training mode")
    left_out = {module for root in without for module in root.modules()}
    modules = {path: module for path, module in modules_of(model).items() if module not in left_out}
    _check_code(model, modules.values())
    weights = {
        f"{path}.{name}" if path else name: tensor
        for path, module in modules.items()
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    }
    about = {
        "class": _name(type(model)),
        "config": config_of(model),
        "modules": {path: _module(path, module) for path, module in modules.items()},
        "weights": {name: _weight(name, tensor) for name, tensor in weights.items()},
    }
    if len({id(tensor) for tensor in weights.values()}) < len(weights):
        raise NotPackaged("two of its weights are one tensor")
    # Sorted: a weight that was put on again comes last in its module.
    return ModelState(about, tuple(sorted(weights)))


def _check_code(model: nn.Module, modules: Iterable[nn.Module]) -> None:
    """Raise NotPackaged for code that is not a known package's: on modules, on their classes, or in torch's place."""
    modules = list(modules)
    code = foreign_code(modules)
    if code:
        name = getattr(code[0], "__qualname__", type(code[0]).__qualname__)
        raise NotPackaged(f"{name} on the {type(model).__name__} is not code of diffusers or torch")
    processors = (getattr(module, "processor", None) for module in modules)
    functions = {type(module).forward for module in modules}
    functions |= {type(each).__call__ for each in processors if each is not None and not isinstance(each, nn.Module)}
    for function in (*functions, torch.nn.functional.scaled_dot_product_attention):
        owner = foreign_in(function)
        if owner and owner != "builtin_function_or_method" and not is_known(owner):
            raise NotPackaged(f"{getattr(function, '__qualname__', function)} is code of {owner}")


def weights_of(model: nn.Module, names: Iterable[str]) -> list[Tensor]:
    """The model's weights of these names."""
    modules = modules_of(model)
    found = []
    for name in names:
        path, _, leaf = name.rpartition(".")
        module = modules[path]
        tensor = module._parameters.get(leaf)
        found.append(module._buffers[leaf] if tensor is None else tensor)
    return found


def modules_of(model: nn.Module, path: str = "") -> dict[str, nn.Module]:
    """The modules that run, by name: the layer inside instead of an adapter that only calls it."""
    found = {path: model}
    for name, child in model._modules.items():
        if child is not None:
            found |= modules_of(without_adapter(child), f"{path}.{name}" if path else name)
    return found


def without_adapter(module: nn.Module) -> nn.Module:
    """The layer inside, if `module` is an adapter of peft with its LoRA fused, disabled or gone; else `module`."""
    layer = module._modules.get("base_layer")
    if layer is None or not type(module).__module__.startswith("peft."):
        return module
    adapters = [getattr(module, name, None) for name in getattr(module, "adapter_layer_names", ())]
    merged, disabled = getattr(module, "merged_adapters", []), getattr(module, "_disable_adapters", False)
    # Fused and disabled: it unfuses itself at its next call.
    idle = not any(adapters) or bool(merged) != bool(disabled)
    return layer if idle else module


def config_of(model: nn.Module) -> dict[str, Any]:
    """The arguments in a diffusers model's config; {} for other modules."""
    config = getattr(model, "config", None)
    # Fine-tunes keep more in it (decay, optimization_step).
    known = inspect.signature(type(model).__init__).parameters.keys() - _IDLE
    return {} if config is None else {key: _plain(value) for key, value in config.items() if key in known}


def difference(saved: dict[str, Any], here: dict[str, Any], path: str = "") -> str:
    """In words, the first difference between two states' `about`; "" if there is none."""
    for key in (*saved, *(key for key in here if key not in saved)):
        place = f"{path}.{key}" if path else key
        if key not in here:
            return f"{_short(place)} is missing here"
        if key not in saved:
            return f"{_short(place)} is new here"
        before, now = saved[key], here[key]
        if before == now:
            continue
        if isinstance(before, dict) and isinstance(now, dict):
            return difference(before, now, place)
        return f"{_short(place)} was {_words(before)}, here it is {_words(now)}"
    return ""


def _short(place: str) -> str:
    for prefix in ("modules.", "weights.", "config."):
        place = place.removeprefix(prefix)
    return place.strip(".")


def _words(value: Any) -> str:
    return str(value) if len(str(value)) <= 80 else f"{str(value)[:77]}..."


def _module(path: str, module: nn.Module) -> dict[str, Any]:
    about: dict[str, Any] = {"class": _name(type(module)), **({"training": True} if module.training else {})}
    for name, value in vars(module).items():
        # None is the same as missing: FreeU leaves it behind.
        if value is None or name in _NEUTRAL or name in _IDLE or hasattr(value, ORIGINAL):
            continue
        try:
            about[name] = _plain(value)
        except NotPackaged as error:
            raise NotPackaged(f"{path or 'the model'}.{name} {error}") from None
    return about


def _weight(name: str, tensor: Tensor) -> list[Any]:
    if type(tensor) not in (nn.Parameter, Tensor, nn.Buffer):
        raise NotPackaged(f"the weight {name} is a {type(tensor).__name__}")
    # One-pixel kernels are in several layouts at once: the stride of one element means nothing.
    strides = [1 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
    return [str(tensor.dtype).removeprefix("torch."), list(tensor.shape), strides]


def _plain(value: Any, depth: int = 0) -> Any:
    """The value as JSON."""
    if isinstance(value, enum.Enum):
        return str(value)
    if isinstance(value, numpy.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        return int(value) if value.is_integer() else value  # 1.0 is 1 to every forward
    if isinstance(value, (torch.dtype, torch.device, torch.memory_format)):
        return str(value)
    if isinstance(value, Tensor):
        raise NotPackaged("is a tensor that is neither a parameter nor a buffer")
    if depth > _DEPTH:
        raise NotPackaged("holds objects in objects in objects")
    if isinstance(value, dict):
        return {str(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, functools.partial):
        return [_name(value.func), _plain(value.args, depth + 1), _plain(value.keywords, depth + 1)]
    if isinstance(value, types.MethodType) or "<lambda>" in getattr(value, "__qualname__", ""):
        raise NotPackaged(f"is a {type(value).__name__} that cannot be told from others")
    if hasattr(value, "__qualname__"):  # a class or function
        return _name(value)
    if isinstance(value, nn.Module):
        return _name(type(value))
    if not is_known(type(value).__module__):
        raise NotPackaged(f"is a {type(value).__qualname__}, which is not of diffusers or torch")
    if not hasattr(value, "__dict__"):
        raise NotPackaged(f"is a {type(value).__qualname__}")
    return {"class": _name(type(value)), **_plain(vars(value), depth + 1)}


def _name(item: Any) -> str:
    return f"{getattr(item, '__module__', '')}.{getattr(item, '__qualname__', type(item).__qualname__)}"
