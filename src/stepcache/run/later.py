"""Pipelines whose call returns before their loop has run: generators and coroutines."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import AbstractContextManager, aclosing
from inspect import getcoroutinelocals, iscoroutine
from typing import Any

# Makes the run in which the loop is to run. generator: the frame of the generator that it belongs to.
Run = Callable[..., AbstractContextManager[Any]]


def later(result: Any, run: Run) -> Any:
    """A call's result. If a loop is still to run when it is advanced or awaited, that happens in a run of its own."""
    if isinstance(result, Generator):
        return _advanced(result, run)
    if isinstance(result, AsyncGenerator):
        return _advanced_async(result, run)
    return _awaited(result, run) if isinstance(result, Coroutine) else result


def _advanced(generator: Generator[Any, Any, Any], run: Run) -> Generator[Any, Any, Any]:
    with run(generator=sys._getframe()):
        return (yield from generator)


async def _advanced_async(generator: AsyncGenerator[Any, Any], run: Run) -> AsyncGenerator[Any, Any]:
    with run(generator=sys._getframe()):
        async with aclosing(generator):
            advance = generator.asend(None)
            while True:
                try:
                    made = await advance
                except StopAsyncIteration:
                    return
                try:
                    advance = generator.asend((yield made))
                except GeneratorExit:
                    raise  # `aclosing` closes it
                except BaseException as error:
                    advance = generator.athrow(error)


def dismiss(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Close a coroutine that was never awaited, with the pipeline's own one if `later` has wrapped it.

    Closing the wrapper alone does not run its `await`, so Python would warn of the other one.
    """
    inner = getcoroutinelocals(coroutine).get("coroutine") if iscoroutine(coroutine) else None
    if isinstance(inner, Coroutine):
        inner.close()
    coroutine.close()


async def _awaited(coroutine: Coroutine[Any, Any, Any], run: Run) -> Any:
    with run():
        return await coroutine
