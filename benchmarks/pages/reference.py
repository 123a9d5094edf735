"""docs/reference.md: the public names of stepcache, from their signatures and docstrings."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import stepcache
from benchmarks.pages.markdown_table import table
from stepcache import errors

CALLS = ("accelerate", "restore", "last_run", "warmup", "save_compiled", "denoising")
CLASSES = ("Schedule", "RunRecord", "DeepCacheSDHelper")
FEW = 4  # arguments in one line
# The methods that users call; those of a record are fields and properties.
METHODS = {
    "Schedule": ("uniform", "explicit", "nonuniform", "mask", "kinds"),
    "RunRecord": ("kinds",),
    "DeepCacheSDHelper": ("set_params", "enable", "disable"),
}


def calls() -> str:
    """A section for each function."""
    return "\n\n".join(f"### `{name}`\n{_call(name, getattr(stepcache, name))}" for name in CALLS)


def classes() -> str:
    """A section for each class: its docstring, then its methods."""
    return "\n\n".join(_class(name, getattr(stepcache, name)) for name in CLASSES)


def exceptions() -> str:
    """A line for each error: what else it is, and when it is raised."""
    found = [each for each in vars(errors).values() if inspect.isclass(each)]
    lines = [(f"`{each.__name__}`", _listed([base.__name__ for base in each.__bases__]), _body(each)) for each in found]
    return table(("error", "is a", "for"), lines)


def _class(name: str, cls: type) -> str:
    fields = [field.name for field in dataclasses.fields(cls)] if cls is stepcache.RunRecord else []
    methods = [_method(method, getattr(cls, method)) for method in METHODS[name]]
    return "\n\n".join([f"### `{name}`\n{_body(cls, fields)}", *methods])


def _method(name: str, method: Any) -> str:
    """A property has no arguments."""
    return f"**`{name}`**: {_body(method)}" if isinstance(method, property) else _call(name, method)


def _call(name: str, function: Callable[..., Any]) -> str:
    """The signature, with a line for each argument if they are many; and the docstring."""
    signature = inspect.signature(function)
    parameters = [each for each in signature.parameters.values() if each.name != "self"]
    arguments = [_argument(each) for each in parameters]
    named = next((i for i, each in enumerate(parameters) if each.kind is each.KEYWORD_ONLY), len(arguments))
    if named < len(arguments):
        arguments.insert(named, "*")
    inside = ", ".join(arguments) if len(arguments) <= FEW else "".join(f"\n    {each}," for each in arguments) + "\n"
    body = _body(function, [each.name for each in parameters])
    return f"```text\n{name}({inside}) -> {signature.return_annotation}\n```\n\n{body}"


def _argument(parameter: inspect.Parameter) -> str:
    stars = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
    value = parameter.default
    shown = f'"{value}"' if isinstance(value, str) else repr(value)
    return f"{stars}{parameter.name}: {parameter.annotation}" + (f" = {shown}" if value is not parameter.empty else "")


def _body(documented: Any, names: Sequence[str] = ()) -> str:
    """A docstring as markdown: code as code, arguments and fields as lists, the rest as paragraphs.

    names: of a function's arguments, which are listed below a line that says so, or of a record's fields.
    """
    doc = inspect.getdoc(documented) or ""
    return "\n\n".join(part for text in doc.split("\n\n") for part in _paragraph(text, names))


def _paragraph(text: str, names: Sequence[str]) -> Iterator[str]:
    if text.startswith("    "):
        yield f"```text\n{textwrap.dedent(text)}\n```"
        return
    head, is_list, below = text.partition("arguments:\n")
    if is_list:
        yield head + "arguments:"
    listed = below if is_list else text
    known = "|".join(map(re.escape, names))
    starts = list(re.finditer(rf"(?:^|(?<=[.)]) )((?:{known})(?:, (?:{known}))*): ", _text(listed))) if known else []
    if not starts or not (is_list or (starts[0].start() == 0 and len(starts) > 1)):
        yield _text(text)
        return
    ends = [*(start.start() for start in starts[1:]), None]
    yield "\n".join(
        f"- {_listed(start[1].split(', '))}: {_text(listed)[start.end() : end].strip()}"
        for start, end in zip(starts, ends, strict=True)
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _text(text: str) -> str:
    return " ".join(text.split())


def _of(make: Callable[[], str]) -> Callable[[Path], str]:
    """`make`, whatever the results."""
    return lambda results: make()


TABLES = {
    "reference_calls": _of(calls),
    "reference_classes": _of(classes),
    "reference_errors": _of(exceptions),
}
