"""Methods that somebody put onto a pipe and that run a denoising loop of their own, which `accelerate` cannot see.

T-GATE's loaders do that (`pipe.tgate(...)`). A run is a call of the pipe, so such a loop would stay as slow as it was.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType, MethodType

from ..errors import AlreadyCached


def check_no_loops(pipe: object) -> None:
    """Raise AlreadyCached, with name and module, if a function on the pipe itself calls the U-Net and steps.

    Functions in the place of one of the class's are not looked at, because the pipeline's own loop calls those. Nor are
    those that open a `denoising` block, or train.
    """
    for name, value in vars(pipe).items():
        function = value.__func__ if isinstance(value, MethodType) else value
        if not isinstance(function, FunctionType) or hasattr(type(pipe), name):
            continue
        function = inspect.unwrap(function)
        names = set(_names(function.__code__)) if isinstance(function, FunctionType) else set()
        if {"unet", "step"} <= names and not {"denoising", "backward"} & names:
            raise AlreadyCached(
                f"pipe.{name}, which {function.__module__} put on this {type(pipe).__name__}, runs a denoising loop of "
                f"its own. accelerate() speeds up pipe(...) and would do nothing for pipe.{name}(...). If that is "
                f"another cache (T-GATE), use one of the two: for stepcache call del pipe.{name} first, and load the "
                f"U-Net again if pipe.{name} has run. If it is your own loop, open a stepcache.denoising(pipe) block "
                "in it."
            )


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
