"""The runs that the calling code is in.

A run belongs to a context (a thread, or an asyncio task), or to a generator whose `denoising` block it is. Between two
advances of a generator other code of its thread runs, other generators too, and the next advance may come from another
thread. So the runs of generators are found by their frames on the call stack.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .session import Session


class _Open:
    """A session until it ends, and the generators' sessions that it was entered in.

    A context that never sees the end keeps only this.
    """

    def __init__(self, session: Session, outer: list[Session]) -> None:
        self.session: Session | None = session
        self.outer = outer


_in_context: ContextVar[tuple[_Open, ...]] = ContextVar("stepcache_runs", default=())
_of_generators: dict[int, list[Session]] = {}  # by the id of the generator's frame


def runs() -> Iterator[Session]:
    """The sessions of the calling code, innermost first. Pipelines run inside of each other (in callbacks)."""
    of_generators = _on_the_stack()
    for entry in reversed(_in_context.get()):
        if entry.session is not None:
            yield from (session for session in of_generators if session not in entry.outer)
            of_generators = [session for session in of_generators if session in entry.outer]
            yield entry.session
    yield from of_generators


def _on_the_stack() -> list[Session]:
    """The sessions of the generators that call the calling code, innermost first."""
    found: list[Session] = []
    frame: FrameType | None = sys._getframe(1) if _of_generators else None
    while frame is not None:
        found += reversed(_of_generators.get(id(frame), ()))
        frame = frame.f_back
    return found


@contextmanager
def entered(session: Session, generator: FrameType | None) -> Iterator[None]:
    """The calling context, or a generator by its frame, is in the run of `session`."""
    if generator is not None:
        key = id(generator)
        _of_generators.setdefault(key, []).append(session)
        try:
            yield
        finally:
            _of_generators[key].remove(session)
            if not _of_generators[key]:
                del _of_generators[key]
        return
    entry = _Open(session, _on_the_stack())
    _in_context.set((*_in_context.get(), entry))
    try:
        yield
    finally:
        # No token: an asynchronous caller may leave in another context than it entered in.
        entry.session, entry.outer = None, []
        _in_context.set(tuple(other for other in _in_context.get() if other is not entry))


def generator_of_caller() -> FrameType | None:
    """The frame of the code that enters a context manager of ours, if that code is a generator.

    A generator that is a context manager itself (contextlib.contextmanager) is passed over: the loop is in the code
    that enters it.
    """
    ours = __name__.partition(".")[0]
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module, generator = _module_of(frame), _is_generator(frame)
        manages = generator and frame.f_back is not None and _module_of(frame.f_back) == contextlib.__name__
        if not manages and module != contextlib.__name__ and module.partition(".")[0] != ours:
            return frame if generator else None
        frame = frame.f_back
    return None


def _module_of(frame: FrameType) -> str:
    name: str = frame.f_globals.get("__name__", "")
    return name


def _is_generator(frame: FrameType) -> bool:
    return bool(frame.f_code.co_flags & (inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR))
