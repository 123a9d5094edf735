"""How the command ends on Ctrl-C (SIGINT), SIGTERM and SIGHUP: with one line, and with what is done kept.

While a subcommand is imported, and once it is ending, a signal ends the process at once. While it works, the first
signal raises KeyboardInterrupt, for which subcommands keep what they have done.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import NoReturn

WORDS = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "hung up"}  # Windows lacks SIGHUP
STATUS = 128
"""Exit status of signal 0: that of others is as much higher, as shells have it."""
PATIENCE = 1.0
"""Seconds that a signal waits for a running import before the process is ended anyway."""


class Ending:
    """Whether a signal came that ends the command, and what is said of it.

    came: the first such signal. working: whether it is to raise KeyboardInterrupt, instead of ending the process.
    """

    def __init__(self) -> None:
        self.came: signal.Signals | None = None
        self.working = False
        self._process = os.getpid()
        self._since = 0.0
        self._again = self._saying = self._said = False

    def watch(self) -> None:
        """Take over the signals, for the rest of the process, from Python's and the system's own handlers.

        A signal that is ignored (under nohup, or behind a shell's `&`) or has another handler stays as it is. Does
        nothing outside the main thread, where Python handles no signals.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        for name in WORDS:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                signal.signal(number, self._on)

    def _on(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker that a library forked: it ends as other processes do
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if self._saying:  # it ends anyway
            return
        first, again = self.came is None, self._again
        self._again = False
        if first:
            self.came, self._since = signal.Signals(number), time.monotonic()
        if not self.working or not (first or again):
            self._end()
        if not _importing(frame):
            raise KeyboardInterrupt
        # In the middle of an import, libraries turn exceptions into others, and C++ aborts the process.
        if time.monotonic() - self._since > PATIENCE:
            self._end()
        timer = threading.Timer(PATIENCE / 20, self._send_again, [number])
        timer.daemon = True
        timer.start()

    def _send_again(self, number: int) -> None:
        self._again = True
        if hasattr(signal, "pthread_kill"):  # wakes the main thread from what it waits for
            signal.pthread_kill(threading.main_thread().ident or 0, number)
        else:
            signal.raise_signal(number)

    def _end(self) -> NoReturn:
        """End the process without anything else: there may be no way back from where it is."""
        if not self._said and sys.__stderr__ is not None:
            with suppress(OSError, ValueError):  # it was closed
                # Not by sys.stderr, in whose write the signal may have come.
                descriptor = sys.__stderr__.fileno()
                begun = b"\n" if os.isatty(descriptor) else b""  # a line with ^C, or with a progress bar
                os.write(descriptor, begun + self._line().encode())
        os._exit(self.status)

    def say(self, detail: str = "") -> int:
        """Write the line, with `detail` if there is more to say; returns the exit status."""
        self._saying = True
        if sys.stderr is not None:
            with suppress(OSError):
                sys.stderr.write(self._line(detail))
        self._said = True
        self._saying = False
        return self.status

    def _line(self, detail: str = "") -> str:
        return f"stepcache: {WORDS[self._signal.name]}{'; ' if detail else ''}{detail}\n"

    @property
    def _signal(self) -> signal.Signals:
        return self.came or signal.SIGINT  # a KeyboardInterrupt that was raised by other means

    @property
    def status(self) -> int:
        """The exit status: 130, 143 or 129."""
        return STATUS + self._signal


def _importing(frame: FrameType | None) -> bool:
    """Whether an import is under way in `frame` or its callers."""
    while frame is not None:
        if frame.f_code.co_name == "_find_and_load" and frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
