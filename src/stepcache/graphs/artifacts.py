"""torch's compile-cache artifacts in a file, so that the next process need not compile.

The file is one line of JSON (what made it), then torch's own bytes. Those contain pickles: load only files you trust.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import torch

from ..errors import InvalidSetting, NothingCompiled

logger = logging.getLogger("stepcache")

FORMAT = 1


def save(path: str | os.PathLike[str]) -> int:
    """Write everything this process has compiled so far to `path`; returns the size in bytes.

    Raises NothingCompiled if that is nothing, or if torch's caches are off.
    """
    saved = torch.compiler.save_cache_artifacts()
    if saved is None or not saved[0]:
        raise NothingCompiled(
            "There is nothing to save: this process has compiled nothing that torch caches. Run warmup(pipe, ...) or "
            "the pipe first, with compile on and torch's FX graph cache enabled."
        )
    data = saved[0]
    header = {**_maker(), "sha256": hashlib.sha256(data).hexdigest()}
    target = Path(path)
    partial = target.with_name(target.name + ".part")
    # Rename a finished file into place: a reader never finds half of one.
    try:
        partial.write_bytes(json.dumps(header).encode() + b"\n" + data)
        partial.replace(target)
    except OSError as error:
        raise InvalidSetting(f"The artifacts cannot be written to {str(path)!r}: {error.strerror}.") from error
    return target.stat().st_size


def load(path: str | os.PathLike[str]) -> bool:
    """Load the artifacts in `path` into torch's caches; returns whether they were used.

    A file that stepcache did not write, or that another torch, device or Python made, is ignored with a warning, and
    everything compiles as usual. Raises InvalidSetting if the file cannot be read.
    """
    source = Path(path)
    try:
        head, _, data = source.read_bytes().partition(b"\n")
    except OSError as error:
        raise InvalidSetting(
            f"compiled={str(path)!r} cannot be read: {error.strerror}. "
            "Write it with stepcache.save_compiled(pipe, path)."
        ) from error
    reason = _unusable(head, data)
    if reason is None and torch.compiler.load_cache_artifacts(data) is None:
        reason = "torch rejects them"
    if reason is not None:
        logger.warning("The compiled artifacts in %s are not used (%s); everything compiles as usual.", source, reason)
    return reason is None


def _unusable(head: bytes, data: bytes) -> str | None:
    try:
        header = json.loads(head)
        sha256 = header.pop("sha256")
    except (ValueError, KeyError, TypeError, AttributeError):
        return "stepcache did not write this file"
    here = _maker()
    for name, value in here.items():
        if header.get(name) != value:
            return f"made with {name} {header.get(name)}, this is {value}"
    return None if hashlib.sha256(data).hexdigest() == sha256 else "the file is damaged"


def _maker() -> dict[str, Any]:
    """What must be equal in the process that saves and the one that loads."""
    import platform

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {"format": FORMAT, "torch": torch.__version__, "device": device, "python": platform.python_version()}
