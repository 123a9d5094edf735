"""Who else may write a file, for files whose contents are run."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def others_may_write(path: Path) -> str:
    """Why a file or folder is not this user's (or root's) alone to write, and the way out; "" if it is.

    Where files have no owners (Windows), they count as this user's. OSError if `path` is not there.
    """
    if not hasattr(os, "geteuid"):
        return ""
    status = path.stat()
    if status.st_uid not in (0, os.geteuid()):
        return f"{path} is owned by another user ({_name(status.st_uid)}): chown it, or copy it to a place of your own"
    group, everybody = status.st_mode & stat.S_IWGRP, status.st_mode & stat.S_IWOTH
    if group or everybody:
        who = "everybody" if everybody else "its group"
        return f"{path} may be written by {who}: run `chmod {'go' if everybody else 'g'}-w {path}`"
    return ""


def _name(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
