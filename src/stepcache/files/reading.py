"""Reading text and JSON of which nothing is taken for granted."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from ..errors import InvalidSetting

LARGEST = 64 * 2**20
"""Bytes of the largest file that is read: far beyond any of stepcache's, and /dev/zero has no end."""


LONGEST = 4096
"""Characters of the longest path: no system takes a longer one, and messages show it."""


def path_of(value: object, what: str) -> Path:
    """`value`, an argument of the name `what`, as a path. Raises InvalidSetting for anything that cannot be one."""
    found: object = value
    if issubclass(type(value), os.PathLike):
        try:
            found = os.fspath(value)  # type: ignore[call-overload]
        except Exception:  # of an object of someone else's
            found = None
    if issubclass(type(found), str):
        text = str.__str__(found)  # without the methods of a subclass
        if 0 < len(text) <= LONGEST and "\0" not in text and _is_name(text):
            return Path(text)
    got = f"{value!r:.80}" if type(value) in (str, bytes) else f"a {type(value).__name__}"
    raise InvalidSetting(f"{what} must be a path (a str or Path, not empty, without NUL), got {got}.")


def _is_name(text: str) -> bool:
    """Whether the system can have a file of that name: half of a surrogate pair has no bytes."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def read_text(path: Path) -> str:
    """The text of a UTF-8 file. Raises InvalidSetting, with file and reason, if it cannot be read."""
    try:
        with open(path, "rb", opener=_open) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InvalidSetting(f"{path} cannot be read: it is no regular file.")
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise InvalidSetting(f"{path} cannot be read: {error.strerror or error}.") from None
    if len(data) > LARGEST:
        raise InvalidSetting(f"{path} cannot be read: it has more than {LARGEST >> 20} MiB.")
    return decoded(data, path)


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe that nobody writes to would be waited for


def decoded(data: bytes, path: Path) -> str:
    """The text in `data`, which was read from `path`. Raises InvalidSetting, with the line, if it is not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InvalidSetting(
            f"{path}, line {line}: not UTF-8 (byte {data[error.start]:#04x}). Save the file as UTF-8."
        ) from None


DEEPEST = 100
"""Levels of nesting that JSON may have: far more than any file of stepcache or diffusers."""

_DEEP = "it is nested too deep"


class NotJson(ValueError):
    """Why a text is not JSON."""


def parsed(text: str, constant: Callable[[str], Any] | None = None) -> Any:
    """The value of a JSON text. Raises NotJson, with the reason, for all else.

    NaN and infinite numbers are no JSON, nor is what Python cannot hold: values nested by the hundred, integers of
    thousands of digits, numbers that overflow to infinity, and halves of surrogate pairs, which no file can hold.
    constant: makes the value of "NaN", "Infinity" or "-Infinity", for files that have them; `infinity` does so.
    """
    try:
        value = json.loads(text, parse_constant=constant or _refused, parse_float=_finite, object_pairs_hook=_once)
    except RecursionError:
        raise NotJson(_DEEP) from None
    except NotJson:
        raise
    except ValueError as error:
        raise NotJson(str(error)) from None
    _check(value)
    return value


def _check(value: Any) -> None:
    """Raise NotJson for what is nested too deep for Python, and for strings that are no text."""
    level, depth = [value], 0
    while level:
        if depth > DEEPEST:
            raise NotJson(_DEEP)
        for text in level:
            if isinstance(text, str) and not is_text(text):
                raise NotJson(f"{text!r:.60} has half of a surrogate pair")
        inside: list[Any] = []
        for item in level:
            if isinstance(item, list):
                inside += item
            elif isinstance(item, dict):
                inside += [*item, *item.values()]
        level = inside
        depth += 1


def _refused(constant: str) -> NoReturn:
    raise NotJson(f"{constant} is not a number in JSON")


def infinity(constant: str) -> float:
    """An infinite number. Raises NotJson for NaN."""
    return _refused(constant) if constant == "NaN" else float(constant)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise NotJson(f"{text:.40} is too large")
    return number


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise NotJson(f"the key {next(key for key in keys if keys.count(key) > 1)!r:.60} is there twice")
    return found


def is_text(text: str) -> bool:
    """Whether a string can be written to a file: it has no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
