"""The package's warnings while a command runs: lines on stderr that begin as those of its errors do."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        if sys.stderr is not None:  # tqdm would take stdout for it
            tqdm.write(f"stepcache: {record.getMessage()}", file=sys.stderr)  # above a progress bar, not on its line


@contextmanager
def notes() -> Iterator[None]:
    """Show the package's warnings. Without a handler logging would write them into the line of a progress bar."""
    logger, handler = logging.getLogger("stepcache"), _Notes(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
