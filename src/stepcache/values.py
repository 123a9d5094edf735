"""Checks of single values, and how messages show them. They take any object at all."""

from __future__ import annotations

import operator
import reprlib
from collections.abc import Iterable

from .errors import InvalidSetting


def as_int(value: object) -> int | None:
    """`value` as an int, or None if it is not one. True and 2.5 are not ints, nor are tensors of them."""
    if isinstance(value, bool) or getattr(value, "shape", ()) != ():
        return None
    if str(getattr(value, "dtype", "")).endswith("bool"):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]  # a TypeError is an answer
    except Exception:  # of an object of someone else's
        return None


def positive_int(name: str, value: object, at_least: int = 1, hint: str = "") -> int:
    """`value` as an int of at least `at_least`. Raises InvalidSetting otherwise; True and 2.5 are not ints."""
    number = as_int(value)
    if number is not None and number >= at_least:
        return number
    raise InvalidSetting(
        f"{name} must be an integer of at least {at_least}, got {shown(value)}.{' ' + hint if hint else ''}"
    )


def is_one_of(value: object, words: Iterable[str]) -> bool:
    """Whether `value` is one of some strings. Unlike `in`, it does not ask arrays and tensors if they are equal."""
    return isinstance(value, str) and value in words


def shown(value: object) -> str:
    """`value` in a message: short, soon done, and without running code of an unknown class."""
    return _SHOWN.repr(value)


class _Shown(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring, self.maxlevel, self.maxdict, self.maxlist, self.maxtuple = 80, 2, 4, 6, 6

    def repr1(self, x: object, level: int) -> str:
        if type(x) in (str, int, list, tuple, dict, set, frozenset):
            return super().repr1(x, level)
        if x is None or type(x) in (bool, float, complex):
            return repr(x)
        if type(x) in (bytes, bytearray):
            return f"{x[:40]!r}{'...' if len(x) > 40 else ''}"  # type: ignore[index,arg-type]
        shape = getattr(x, "shape", None)
        if type(x).__module__ == "numpy" and shape == ():
            return repr(x)
        return f"a {type(x).__name__}" + (f" of shape {tuple(shape)}" if isinstance(shape, tuple) and shape else "")

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() <= 128 else f"an integer of {x.bit_length()} bits"


_SHOWN = _Shown()
