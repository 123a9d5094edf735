"""The commit that something was measured at. Standard library only: the GPU gate runs this file without torch."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[3]
"""The checkout that this file is in. For an installed package it is some folder without a .git."""


def commit_of(root: Path = CHECKOUT, told: str | None = None) -> str:
    """The commit of the checkout at `root`, 12 digits, and "-dirty" if files other than results differ from it.

    Without a .git, or without git, it is `told`, by default the environment variable STEPCACHE_COMMIT, or "".
    """

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    if told is None:
        told = os.environ.get("STEPCACHE_COMMIT", "")
    if not (root / ".git").exists():  # a repository further up is not stepcache's
        return told
    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        changes = git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return told
    return f"{commit}-dirty" if changes else commit
