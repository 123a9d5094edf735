"""Whether a module's forward is diffusers' own, compared as a function: forks keep the names of classes and methods."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from ..errors import UnsupportedUNet

# Whose functions may make up a forward. Decorators of torch's change no output.
_OWN = ("diffusers", "torch")


def check_stock(
    where: str, module: nn.Module, known: Iterable[type[nn.Module]], refused: Mapping[str, str] | None = None
) -> type[nn.Module]:
    """The class of `known`, diffusers' own, whose forward the module has; UnsupportedUNet if there is none.

    A subclass may inherit forward, but not override it. refused: class -> why it is refused, for the message.
    """
    known = tuple(known)
    forward: Any = type(module).forward
    foreign = foreign_in(forward)
    own = next((cls for cls in known if cls.forward is forward), None)
    if own is not None and not foreign:
        return own
    what = f"{where} is a {type(module).__name__}, whose forward "
    name = getattr(forward, "__qualname__", type(forward).__qualname__).removesuffix(".forward")
    if own is not None:
        raise UnsupportedUNet(
            f"{what}was replaced on the class {own.__module__}.{own.__name__} itself by a function of {foreign}. "
            "stepcache does not call forward and would bypass it. Undo that patch before you call accelerate(), or run "
            "this pipeline without stepcache."
        )
    if name in {cls.__name__ for cls in known}:
        raise UnsupportedUNet(
            f"{what}is {name}.forward of {foreign or forward.__module__}. It has the name of diffusers' own but is "
            "another function, and stepcache follows only diffusers'. If both do the same, delete that forward and let "
            f"the class inherit diffusers' {name}; if not, run this pipeline without stepcache."
        )
    origin = f" of {foreign}" if foreign else ""
    why = f" {refused[name]}" if refused and name in refused else ""
    raise UnsupportedUNet(
        f"{what}({name}.forward{origin}) stepcache does not know.{why} Known there: "
        f"{', '.join(cls.__name__ for cls in known)}. Run this pipeline without stepcache."
    )


def foreign_in(forward: Any) -> str:
    """The name of the module of the outermost function in `forward` that is not diffusers' own; "" if all are.

    A decorator copies __module__ and __qualname__ of what it wraps, so the code of each function is looked at.
    """
    function = forward
    while function is not None:
        module: str = getattr(function, "__globals__", {}).get("__name__") or type(function).__module__
        if module.split(".")[0] not in _OWN:
            return module
        function = getattr(function, "__wrapped__", None)
    return ""
