"""Pseudo-terminals."""

import os


def read_terminal(main):
    """All that was written to the other side, which is closed; closes this one."""
    parts = []
    try:
        while part := os.read(main, 10_000):
            parts.append(part)
    except OSError:  # Linux's end of file
        pass
    os.close(main)
    return b"".join(parts).decode().replace("\r\n", "\n")
