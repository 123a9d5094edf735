"""Keeps the messages of libraries off the terminal while a command runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module


@contextmanager
def quiet(*libraries: str) -> Iterator[None]:
    """Let the loggers of `libraries` ("diffusers", "transformers") report errors only, and hide their progress bars.

    Both are reset afterwards. Import from those libraries inside the block, since they warn on import.
    """
    before = []
    try:
        for library in libraries:
            logging = import_module(f"{library}.utils.logging")
            before.append((logging, logging.get_verbosity(), logging.is_progress_bar_enabled()))
            logging.set_verbosity_error()
            logging.disable_progress_bar()
        yield
    finally:
        for logging, verbosity, bars in before:
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()
