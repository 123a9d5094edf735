"""Prompt files (text with a prompt a line, or JSONL), and the bundled sets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..errors import InvalidSetting
from ..files.reading import NotJson, is_text, parsed, read_text
from ..values import as_int, shown


@dataclass(frozen=True)
class Prompt:
    """One image to make. None: the command line's value, or the pipeline's default. Sizes in pixels."""

    text: str
    negative: str | None = None
    seed: int | None = None
    height: int | None = None
    width: int | None = None


# Key of a JSONL line -> field of Prompt.
KEYS = {"prompt": "text", "negative_prompt": "negative", "seed": "seed", "height": "height", "width": "width"}


def bundled_prompts(name: str) -> list[Prompt]:
    """A bundled set: "general" (24 prompts), "demo_names" (all that the demo pipeline knows) or "demo" (12 of them)."""
    text = (files("stepcache") / "assets" / "prompts" / f"{name}.txt").read_text(encoding="utf-8")
    return parse_prompts(text, f"{name}.txt")


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file: JSONL if its name ends in .jsonl, text otherwise.

    Text: a prompt a line; blank lines and lines that start with # are skipped. JSONL: an object a line, with "prompt"
    and any of the other KEYS. InvalidSetting, with line number and reason, for an invalid line, and for a file without
    prompts, or that cannot be read.
    """
    text = read_text(path).removeprefix("\ufeff")  # the byte order mark of some editors
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return parse_prompts(lines, str(path), lines_of_json=path.suffix.lower() == ".jsonl")


def parse_prompts(text: str, name: str, lines_of_json: bool = False) -> list[Prompt]:
    """The prompts in `text`, as in `read_prompts`. name: of the text, for errors."""
    prompts = []
    # Not splitlines(): it splits at characters that JSON allows inside a string, which would shift line numbers.
    for number, line in enumerate(text.split("\n"), start=1):
        line, where = line.strip(), f"{name}, line {number}"
        if lines_of_json and line:
            prompts.append(_parse_json(line, where))
        elif line and not line.startswith("#"):
            prompts.append(Prompt(_parse_text(line, where)))
    if not prompts:
        form = 'lines such as {"prompt": "a red apple"}' if lines_of_json else "a prompt a line"
        raise InvalidSetting(f"{name} has no prompts. It needs {form}.")
    return prompts


def _parse_text(line: str, where: str) -> str:
    if line.startswith("{"):
        try:
            value = parsed(line)
        except NotJson:
            value = None
        if isinstance(value, dict) and "prompt" in value:
            raise InvalidSetting(
                f"{where}: {line:.60} is JSON, and would be taken as a prompt letter by letter. Give the file a name "
                "that ends in .jsonl."
            )
    return check_text(line, where)


def _parse_json(line: str, where: str) -> Prompt:
    try:
        entry = parsed(line)
    except NotJson as error:
        raise InvalidSetting(f"{where}: not JSON ({error}).") from error
    if not isinstance(entry, dict):
        raise InvalidSetting(f'{where}: must be an object such as {{"prompt": "a red apple"}}, got {line:.60}.')
    if unknown := [key for key in entry if key not in KEYS]:
        raise InvalidSetting(f"{where}: unknown key {unknown[0]!r:.60}. Known: {', '.join(KEYS)}.")
    if "prompt" not in entry:
        raise InvalidSetting(f'{where}: has no "prompt".')
    return Prompt(**{KEYS[key]: _checked(key, value, where) for key, value in entry.items()})


def _checked(key: str, value: Any, where: str) -> Any:
    if key in ("prompt", "negative_prompt"):
        # A negative prompt may be empty, which is a choice too.
        may_be_empty = key == "negative_prompt"
        if not isinstance(value, str) or not (value.strip() or may_be_empty):
            kind = "string" if may_be_empty else "non-empty string"
            raise InvalidSetting(f'{where}: "{key}" must be a {kind}, got {shown(value)}.')
        return value.strip()
    number = as_int(value)
    if number is None or number < 0:
        raise InvalidSetting(f'{where}: "{key}" must be an integer of at least 0, got {shown(value)}.')
    if key == "seed":
        if number >= 2**63:
            raise InvalidSetting(f'{where}: "seed" must be below 2**63, got {shown(number)}.')
        return number
    return check_pixels(number, f'{where}: "{key}"')


def check_text(prompt: str, what: str) -> str:
    """`prompt`. InvalidSetting, naming `what`, for one that no tokenizer takes and no page can hold.

    Only halves of surrogate pairs are: Python makes them of bytes on the command line that are not UTF-8. Control
    characters are not refused; tokenizers skip those that they do not know.
    """
    if not is_text(prompt):
        raise InvalidSetting(f"{what}: {shown(prompt)} is no text: it has bytes that are not UTF-8.")
    return prompt


LARGEST = 16376  # pixels: the page's pictures are WebP, whose sides have at most 16383


def check_pixels(pixels: int, what: str) -> int:
    """`pixels`, the side of an image. InvalidSetting, naming `what`, if Stable Diffusion's pipelines cannot make it."""
    if pixels < 16 or pixels % 8:
        raise InvalidSetting(f"{what} must be a multiple of 8 pixels and at least 16, got {shown(pixels)}.")
    if pixels > LARGEST:
        raise InvalidSetting(f"{what} must be at most {LARGEST} pixels, got {shown(pixels)}.")
    return pixels


def cut_off(pipe: Any, texts: Iterable[str]) -> list[tuple[str, int]]:
    """The texts that the pipe's tokenizer cuts off, each with its number of tokens. None without a tokenizer."""
    tokenizer = getattr(pipe, "tokenizer", None)
    if tokenizer is None:
        return []
    counted = [(text, len(tokenizer(text, truncation=False, padding=False).input_ids)) for text in texts]
    return [(text, tokens) for text, tokens in counted if tokens > tokenizer.model_max_length]
