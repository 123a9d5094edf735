"""Checks of single values, and how messages show them. They take any object at all."""

from __future__ import annotations

import math
import operator
import reprlib
from collections.abc import Iterable
from itertools import islice
from numbers import Real
from typing import Any

from .errors import InvalidSetting

LARGEST = 2**63 - 1
"""The largest integer that is taken: no count of anything is larger, and Python refuses to print far larger ones."""


def is_a(value: object, *kinds: type) -> bool:
    """Whether `value` is an instance of one of these classes. Unlike `isinstance`, it does not ask the object."""
    return issubclass(type(value), kinds)


def as_int(value: object) -> int | None:
    """`value` as an int, or None if it is not one. True and 2.5 are not ints, nor are tensors of them."""
    if type(value) is bool:
        return None
    try:  # of an object of someone else's, anything may raise anything
        if getattr(value, "shape", ()) != () or str(getattr(value, "dtype", "")).endswith("bool"):
            return None
        return operator.index(value)  # type: ignore[arg-type]  # a TypeError is an answer
    except Exception:
        return None


def as_number(value: object) -> float | None:
    """`value` as a float that is not NaN, or None if it is not one. Words and True are no numbers, nor are tensors."""
    if as_int(value) is None and (type(value) is bool or not is_a(value, Real)):
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except Exception:  # an integer of hundreds of digits, or an object of someone else's
        return None
    return None if math.isnan(number) else number


def as_word(value: object) -> str | None:
    """`value` as a plain str, or None if it is not one. Unlike the value, it has no methods of somebody else's."""
    return str.__str__(value) if is_a(value, str) else None


def as_items(value: object) -> list[tuple[Any, Any]] | None:
    """The items of a dict, or None if `value` is not one. A subclass of somebody else's is not asked."""
    return list(dict.items(value)) if is_a(value, dict) else None  # type: ignore[arg-type]


def as_entries(value: object) -> tuple[Any, ...] | None:
    """The entries of a list or tuple, or None if `value` is neither. A subclass of somebody else's is not asked."""
    if is_a(value, list):
        return tuple(list.__iter__(value))  # type: ignore[arg-type]
    return tuple(tuple.__iter__(value)) if is_a(value, tuple) else None  # type: ignore[arg-type]


def positive_int(name: str, value: object, at_least: int = 1, hint: str = "", at_most: int = LARGEST) -> int:
    """`value` as an int from `at_least` to `at_most`. Raises InvalidSetting otherwise; True and 2.5 are not ints."""
    number = as_int(value)
    if number is not None and at_least <= number <= at_most:
        return number
    bounds = f"of at least {at_least}" if number is None or number < at_least else f"from {at_least} to {at_most}"
    raise InvalidSetting(f"{name} must be an integer {bounds}, got {shown(value)}.{' ' + hint if hint else ''}")


def true_or_false(name: str, value: object, hint: str = "") -> bool:
    """`value` if it is True or False. Raises InvalidSetting otherwise."""
    if type(value) is bool:
        return value
    raise InvalidSetting(f"{name} must be True or False, got {shown(value)}.{' ' + hint if hint else ''}")


def auto_or_bool(name: str, value: object) -> bool | str:
    """`value` if it is True, False or "auto". Raises InvalidSetting otherwise."""
    if type(value) is bool:
        return value
    if as_word(value) == "auto":
        return "auto"
    raise InvalidSetting(f'{name} must be "auto", True or False, got {shown(value)}.')


def is_one_of(value: object, words: Iterable[str]) -> bool:
    """Whether `value` is one of some strings. Unlike `in`, it does not ask arrays and tensors if they are equal."""
    word = as_word(value)
    return word is not None and word in words


def shown(value: object) -> str:
    """`value` in a message: short, soon done, and without running code of an unknown class."""
    return _SHOWN.repr(value)


def amount(number: int, noun: str) -> str:
    """ "1 step", "2 steps"; for nouns whose plural has an s."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def bytes_in_words(number: int) -> str:
    """ "64 bytes", "2.5 KiB", "5.0 MiB": in the largest unit of which there is at least one."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return amount(number, "byte")


def reason_of(error: BaseException) -> str:
    """The message of an error that is not stepcache's, cut where it has no end."""
    try:
        text = str(error)
    except Exception:  # it shows objects of someone else's
        text = ""
    return (text if len(text) <= 1000 else f"{text[:1000]}...") or type(error).__name__


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
        name = f"a {type(x).__name__}"
        if type(x).__module__ not in ("numpy", "torch"):
            return name
        shape = getattr(x, "shape", ())
        if type(x).__module__ == "numpy" and shape == () and type(x).__name__ != "ndarray":  # which may hold an object
            return f"{x!r:.{self.maxstring}}"
        return f"{name} of shape {tuple(shape)}" if shape else name

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() <= 128 else f"an integer of {x.bit_length()} bits"

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        if not x or level <= 0:
            return "{...}" if x else "{}"
        # In their order: to sort keys is to compare them.
        items = [f"{self.repr1(k, level - 1)}: {self.repr1(v, level - 1)}" for k, v in islice(x.items(), self.maxdict)]
        return "{" + ", ".join([*items, "..."] if len(x) > self.maxdict else items) + "}"


_SHOWN = _Shown()
