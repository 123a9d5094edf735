"""Hides the progress bars of a pipe for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..pipes.modular import blocks_of, is_modular

_CONFIG = "_progress_bar_config"


@contextmanager
def hidden_bars(pipe: Any) -> Iterator[None]:
    """Without the bars of the pipe's loop inside; a modular pipe has them on its blocks."""
    owners = blocks_of(pipe) if is_modular(pipe) else [pipe]
    before = [(owner, vars(owner).get(_CONFIG)) for owner in owners if hasattr(owner, "set_progress_bar_config")]
    for owner, _ in before:
        owner.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        for owner, config in before:
            if config is None:
                vars(owner).pop(_CONFIG, None)
            else:
                setattr(owner, _CONFIG, config)
