"""Makes a checkout and a folder of wheels importable for the gate's processes, without installing anything.

setuptools maps `stepcache.kernels` to a folder outside of src (package-dir in pyproject.toml), so PYTHONPATH=src does
not find it. A folder of links replaces the installed package. Only the standard library is needed.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import ROOT

ROOMS = {"kernels": "csrc_triton"}
"""Subpackages of stepcache that are not in src/stepcache."""


def environment(folder: Path, wheels: Path | None, root: Path = ROOT) -> dict[str, str]:
    """Environment variables with which a process imports this checkout's stepcache and the packages in `wheels` first.

    `folder` is filled with links and unpacked wheels, and must outlive the process. Raises FileNotFoundError if
    `wheels` holds no wheels, and ValueError for a wheel that cannot be unpacked.
    """
    paths = [folder / "checkout", *([] if wheels is None else [unpack(wheels, folder / "wheels")])]
    link(folder / "checkout", root)
    before = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*map(str, paths), *([before] if before else [])]),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",  # nothing is downloaded; without a network, trying would cost minutes
    }


def link(folder: Path, root: Path = ROOT) -> None:
    """Make `folder/stepcache` a package of links to the checkout at `root`."""
    package = folder / "stepcache"
    package.mkdir(parents=True)
    for path in (root / "src" / "stepcache").iterdir():
        if path.name != "__pycache__":
            (package / path.name).symlink_to(path)
    for name, room in ROOMS.items():
        (package / name).symlink_to(root / room)


def unpack(wheels: Path, folder: Path) -> Path:
    """Unpack all wheels in `wheels` into `folder`, and return it as an entry for PYTHONPATH."""
    found: Sequence[Path] = sorted(wheels.glob("*.whl"))
    if not found:
        raise FileNotFoundError(f"There are no wheels in {wheels}; see the top of benchmarks/gpu_gate.py.")
    for path in found:
        try:
            with zipfile.ZipFile(path) as wheel:
                wheel.extractall(folder)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path} is not a wheel: {error}.") from error
    return folder
