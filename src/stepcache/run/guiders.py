"""Follows the guider of a modular pipe: which branch a U-Net call is of, and whether its layers have got hooks.

The loop of a modular pipeline asks its guider for the inputs of each branch, and tells it before each U-Net call
(`prepare_models`). Some guiders then put hooks onto layers, which skip or perturb them, and take them off afterwards.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from .current import runs
from .session import Session
from .watch import Interception


def watch_guider(pipe: Any, session: Session, places: ExitStack) -> None:
    """Watch the pipe's guider, if it has one, until `places` is closed."""
    guider = getattr(pipe, "guider", None)
    if not callable(getattr(guider, "prepare_models", None)):
        return
    session.guider = guider
    for method in ("prepare_inputs", "prepare_inputs_from_block_state"):
        if hasattr(guider, method):
            places.enter_context(Interception.on(guider, method, functools.partial(_inputs_in_session, guider)))
    places.enter_context(Interception.on(guider, "prepare_models", functools.partial(_models_in_session, guider)))


@contextmanager
def kept_guider(pipe: Any) -> Iterator[None]:
    """Leave the pipe's guider afterwards as it was: the next run's text encoder asks it what it ended with."""
    guider = getattr(pipe, "guider", None)
    before = dict(vars(guider)) if hasattr(guider, "__dict__") else None
    try:
        yield
    finally:
        if before is not None:
            vars(guider).clear()
            vars(guider).update(before)


def _guided_by(guider: Any) -> Session | None:
    return next((session for session in runs() if session.guider is guider), None)


def _inputs_in_session(guider: Any, stock: Callable[..., Any]) -> Callable[..., Any]:
    name = getattr(guider, "_identifier_key", "")

    def prepare(*args: Any, **kwargs: Any) -> Any:
        batches = stock(*args, **kwargs)
        session = _guided_by(guider)
        if session is not None:
            session.slots.prepare([getattr(batch, name, None) for batch in batches])
        return batches

    return prepare


def _models_in_session(guider: Any, stock: Callable[..., Any]) -> Callable[..., Any]:
    # Looking for hooks takes the host a millisecond, so not for the guiders that put none.
    puts_hooks = getattr(type(guider).prepare_models, "__qualname__", "") != "BaseGuidance.prepare_models"

    def prepare(*args: Any, **kwargs: Any) -> Any:
        result = stock(*args, **kwargs)
        session = _guided_by(guider)
        if session is not None:
            session.slots.enter()
            if puts_hooks:
                session.engine.unet_graphs.look_again()
        return result

    return prepare
