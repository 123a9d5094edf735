"""Prompt files: text with a prompt a line, or JSONL with more to say of each; and the two sets that are bundled."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..errors import InvalidSetting
from ..reuse.schedule import as_int


@dataclass(frozen=True)
class Prompt:
    """One image to make. None: as the command line says, or as the pipeline does by default. Sizes in pixels."""

    text: str
    negative: str | None = None
    seed: int | None = None
    height: int | None = None
    width: int | None = None


# The keys of a JSONL line, and the Prompt's field for each.
KEYS = {"prompt": "text", "negative_prompt": "negative", "seed": "seed", "height": "height", "width": "width"}


def bundled_prompts(name: str) -> list[Prompt]:
    """A set that comes with the package: "general" (24 prompts) or "demo" (12 names that the demo pipeline knows)."""
    text = (files("stepcache") / "assets" / "prompts" / f"{name}.txt").read_text(encoding="utf-8")
    return parse_prompts(text, f"{name}.txt")


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file: JSONL where its name ends in .jsonl, text otherwise.

    Text: a prompt a line; blank lines and lines that start with # are skipped. JSONL: an object a line, "prompt" and
    any of the other KEYS. InvalidSetting, with the number of the line and what is wrong with it, for a line that is
    none, and for a file without prompts or in another encoding than UTF-8; OSError where it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidSetting(f"{path} is not UTF-8 (byte {error.start}). Save it as UTF-8.") from error
    return parse_prompts(text, str(path), lines_of_json=path.suffix.lower() == ".jsonl")


def parse_prompts(text: str, name: str, lines_of_json: bool = False) -> list[Prompt]:
    """The prompts in `text`; `name` stands in errors. See `read_prompts`."""
    prompts = []
    # Not splitlines(): it splits at characters that JSON allows inside a string, and the numbers would be off.
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip()
        if lines_of_json and line:
            prompts.append(_parse_json(line, f"{name}, line {number}"))
        elif line and not line.startswith("#"):
            prompts.append(Prompt(line))
    if not prompts:
        form = 'lines such as {"prompt": "a red apple"}' if lines_of_json else "a prompt a line"
        raise InvalidSetting(f"{name} has no prompts. It needs {form}.")
    return prompts


def _parse_json(line: str, where: str) -> Prompt:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise InvalidSetting(f"{where}: no JSON ({error}).") from error
    if not isinstance(entry, dict):
        raise InvalidSetting(f'{where}: an object such as {{"prompt": "a red apple"}} is needed, got {line:.60}.')
    if unknown := [key for key in entry if key not in KEYS]:
        raise InvalidSetting(f"{where}: unknown key {unknown[0]!r}. Known: {', '.join(KEYS)}.")
    if "prompt" not in entry:
        raise InvalidSetting(f'{where}: it has no "prompt".')
    return Prompt(**{KEYS[key]: _checked(key, value, where) for key, value in entry.items()})


def _checked(key: str, value: Any, where: str) -> Any:
    if key in ("prompt", "negative_prompt"):
        # A negative prompt may be empty: that is a choice too.
        if not isinstance(value, str) or not (value.strip() or key == "negative_prompt"):
            raise InvalidSetting(f'{where}: "{key}" must be a text that is not empty, got {value!r}.')
        return value.strip()
    number = as_int(value)
    if number is None or number < 0:
        raise InvalidSetting(f'{where}: "{key}" must be an integer of at least 0, got {value!r}.')
    if key == "seed":
        if number >= 2**63:
            raise InvalidSetting(f'{where}: "seed" must be below 2**63, got {number}.')
        return number
    return check_pixels(number, f'{where}: "{key}"')


def check_pixels(pixels: int, what: str) -> int:
    """A side of an image that Stable Diffusion's pipelines take; `what` names it in the InvalidSetting otherwise."""
    if pixels < 16 or pixels % 8:
        raise InvalidSetting(f"{what} must be a multiple of 8 pixels and at least 16, got {pixels}.")
    return pixels


def size_of(text: str | None) -> tuple[int, int] | None:
    """(height, width) in pixels of "512" or "512x768"; InvalidSetting for what is none."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if not (len(parts) in (1, 2) and all(part.isdecimal() for part in parts)):
        raise InvalidSetting(f"--size must be pixels such as 512 or 512x768 (height x width), got {text!r}.")
    return check_pixels(int(parts[0]), "--size"), check_pixels(int(parts[-1]), "--size")
