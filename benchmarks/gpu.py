"""What several benchmarks ask of a CUDA GPU."""

from __future__ import annotations

import functools
import subprocess

import torch


def event() -> torch.cuda.Event:
    """A timing event, recorded on the current stream."""
    recorded = torch.cuda.Event(enable_timing=True)
    recorded.record()
    return recorded


@functools.cache
def driver_version() -> str:
    """The version of NVIDIA's driver, "" where nvidia-smi does not say."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split("\n")[0].strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
