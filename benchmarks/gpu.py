"""What several benchmarks ask of a CUDA GPU."""

from __future__ import annotations

import functools
import subprocess


@functools.cache
def driver_version() -> str:
    """The version of NVIDIA's driver, "" where nvidia-smi does not say."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split("\n")[0].strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
