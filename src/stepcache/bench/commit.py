"""The commit that something was measured at. Standard library only: the gate asks before torch can be imported."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def commit_of(root: Path, told: str | None = None) -> str:
    """Of the checkout at `root`, 12 digits, with "-dirty" where a file other than a result differs from it.

    Where the repository did not come along (a bare copy of its files), what whoever started the run says it is: `told`,
    by default the environment's STEPCACHE_COMMIT. "" where nobody said.
    """

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    if told is None:
        told = os.environ.get("STEPCACHE_COMMIT", "")
    if not (root / ".git").exists():  # nor is a repository around an installed package ours
        return told
    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        changes = git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return told
    return f"{commit}-dirty" if changes else commit
