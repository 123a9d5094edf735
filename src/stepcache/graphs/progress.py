"""Costs and progress of making graphs: compiling and capturing take seconds to minutes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass

logger = logging.getLogger("stepcache")

# Called with each stage as it begins; `warmup` sets it for its progress bar.
listener: ContextVar[Callable[[str], None] | None] = ContextVar("stepcache_stage_listener", default=None)


@dataclass
class Costs:
    """Totals over all graphs of a pipe, including dropped ones.

    Seconds compiling and capturing, graphs captured, and joins measured both ways.
    """

    compile_seconds: float = 0.0
    capture_seconds: float = 0.0
    captures: int = 0
    joins_measured: int = 0


def stage(text: str) -> None:
    """Log the start of a stage ("full graph 2x4x64x64: compiling"), and tell the listener."""
    logger.info(text)
    tell = listener.get()
    if tell is not None:
        tell(text)
