"""What the graphs are busy with, for a progress bar: compiling and capturing take seconds to minutes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import ContextVar

logger = logging.getLogger("stepcache")

# Told each stage as it begins; set by `warmup` for its progress bar.
listener: ContextVar[Callable[[str], None] | None] = ContextVar("stepcache_stage_listener", default=None)


def stage(text: str) -> None:
    """Say that `text` begins ("full graph 2x4x64x64: compiling")."""
    logger.info(text)
    tell = listener.get()
    if tell is not None:
        tell(text)
