"""The command line behind a figure, as one would type it again."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from .commit import CHECKOUT

_given: ContextVar[Sequence[str] | None] = ContextVar("arguments of `stepcache`", default=None)


@contextmanager
def running(arguments: Sequence[str]) -> Iterator[None]:
    """`stepcache` runs with these arguments, which a Python caller may have given it, whatever sys.argv says."""
    token = _given.set(arguments)
    try:
        yield
    finally:
        _given.reset(token)


def command_line() -> str:
    """Of the `stepcache` that runs; outside of one, that of this process."""
    given = _given.get()
    if given is not None:
        return shlex.join(["stepcache", *given])
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None:  # python -m
        return shlex.join(["python", "-m", spec.name.removesuffix(".__main__"), *sys.argv[1:]])
    script = Path(sys.argv[0]).resolve()
    if script.parent.name in ("bin", "Scripts"):  # an installed command, wherever its environment is
        return shlex.join([script.stem, *sys.argv[1:]])
    name = str(script.relative_to(CHECKOUT)) if script.is_relative_to(CHECKOUT) else script.name
    return shlex.join(["python", name, *sys.argv[1:]])
