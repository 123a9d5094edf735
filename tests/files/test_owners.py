"""Who else may write a file."""

import os
from pathlib import Path

import pytest

from stepcache.files.owners import others_may_write


@pytest.mark.parametrize(
    ("mode", "reason"),
    [(0o755, ""), (0o600, ""), (0o775, "its group: run `chmod g-w"), (0o757, "everybody: run `chmod go-w")],
)
def test_modes(tmp_path, mode, reason):
    path = tmp_path / "a"
    path.touch()
    path.chmod(mode)
    found = others_may_write(path)
    assert found == (found and f"{path} may be written by {reason} {path}`") and bool(found) == bool(reason)


def test_another_users_file(tmp_path, monkeypatch):
    """Root's may be read by anyone, anyone's by none other, not even by root."""
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    path = tmp_path / "a"
    path.touch(mode=0o600)
    if os.getuid() != 0:
        assert "is owned by another user" in others_may_write(path)
    assert others_may_write(Path("/proc/version")) == ""


def test_a_user_without_a_name(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.touch()
    status = os.stat_result((0o100600, 1, 1, 1, 4_000_000, 1, 0, 0, 0, 0))
    monkeypatch.setattr(type(path), "stat", lambda self: status)
    assert others_may_write(path) == (
        f"{path} is owned by another user (uid 4000000): chown it, or copy it to a place of your own"
    )


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        others_may_write(tmp_path / "no")
