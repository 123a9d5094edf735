"""The values of a plan, of which nothing is taken for granted, whether they come from a file or from Python.

Each check takes a value and the key that leads to it (`table[3].weights[0]`), and returns the value as a plain one of
its type. It raises InvalidSetting, with both, for anything else.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ..errors import InvalidSetting
from ..files.reading import DEEPEST, is_text
from ..values import as_entries, as_int, as_items, as_number, as_word, is_a, shown

INFINITE = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}
"""How files hold the numbers that JSON lacks."""

MOST_VALUES = 100_000
"""In one `plain` value: a scheduler has at most a thousand betas, and a list may hold itself twice over."""


def number(value: object, key: str, lowest: float = -math.inf, highest: float = math.inf) -> float:
    """A finite number from `lowest` to `highest`."""
    found = as_number(value)
    if found is not None and math.isfinite(found) and lowest <= found <= highest:
        return found
    limits = "" if math.isinf(lowest) and math.isinf(highest) else f" from {lowest:g} to {highest:g}"
    raise InvalidSetting(f"{key} must be a finite number{limits}, got {shown(value)}.")


def infinite(value: object) -> object:
    """The infinite number or NaN that a file's text stands for; all else as it is."""
    word = as_word(value)
    return value if word is None else INFINITE.get(word, value)


def integer(value: object, key: str, lowest: int = 0, highest: int | None = None) -> int:
    """An integer of at least `lowest`, and at most `highest`."""
    found = as_int(value)
    if found is not None and lowest <= found and (highest is None or found <= highest):
        return found
    limits = f"of at least {lowest}" if highest is None else f"from {lowest} to {highest}"
    raise InvalidSetting(f"{key} must be an integer {limits}, got {shown(value)}.")


def word(value: object, key: str) -> str:
    """A string that a file can hold."""
    found = as_word(value)
    if found is not None and is_text(found):
        return found
    raise InvalidSetting(f"{key} must be a string, got {shown(value)}.")


def sequence(value: object, key: str) -> tuple[Any, ...]:
    """The entries of a list or tuple."""
    found = as_entries(value)
    if found is None:
        raise InvalidSetting(f"{key} must be a list, got {shown(value)}.")
    return found


def entries(value: object, key: str, names: Collection[str]) -> dict[str, Any]:
    """A dict of exactly these names."""
    found = dict(_items(value, key))
    at = f"{key}." if key else ""
    if missing := [name for name in names if name not in found]:
        raise InvalidSetting(f"it lacks {', '.join(f'{at}{name}' for name in missing)}.")
    if unknown := [name for name in found if name not in names]:
        raise InvalidSetting(f"{at}{unknown[0]:.60} is no key of a plan; there are {', '.join(names)}.")
    return found


def plain(value: object, key: str) -> Any:
    """What JSON can hold, with tuples as lists and infinite numbers as files have them (`INFINITE`)."""
    return _plain(value, key, 0, iter(range(MOST_VALUES)))


def _plain(value: object, key: str, depth: int, left: Iterator[int]) -> Any:
    if depth > DEEPEST or next(left, None) is None:
        raise InvalidSetting(f"{key:.60} is nested too deep, or one of more than {MOST_VALUES} values.")
    if value is None or type(value) is bool:
        return value
    if is_a(value, str):
        return word(value, key)
    if is_a(value, dict):
        return {name: _plain(entry, f"{key}.{name}", depth + 1, left) for name, entry in _items(value, key)}
    if is_a(value, list, tuple):
        return [_plain(entry, f"{key}[{i}]", depth + 1, left) for i, entry in enumerate(sequence(value, key))]
    if (whole := as_int(value)) is not None:
        return integer(whole, key, -(2**128), 2**128)
    if is_a(value, float) and as_number(value) is None:
        return "NaN"
    if (found := as_number(value)) is None:
        raise InvalidSetting(f"{key} must be a value that JSON can hold, got {shown(value)}.")
    return found if math.isfinite(found) else "Infinity" if found > 0 else "-Infinity"


def _items(value: object, key: str) -> list[tuple[str, Any]]:
    """The items of a dict whose keys are strings."""
    items = as_items(value)
    if items is None:
        raise InvalidSetting(f"{key or 'a plan'} must be a dict, got {shown(value)}.")
    return [(word(name, f"each key of {key or 'a plan'}"), entry) for name, entry in items]


def pairs(value: object, key: str) -> list[tuple[Any, Any]]:
    """The items of a mapping of any kind."""
    if (items := as_items(value)) is not None:
        return items
    try:
        if is_a(value, Mapping):
            return list(value.items())  # type: ignore[attr-defined]
    except Exception as error:  # of an object of someone else's
        raise InvalidSetting(f"{key} cannot be read: {type(error).__name__}.") from error
    raise InvalidSetting(f"{key} must be a mapping, got {shown(value)}.")
