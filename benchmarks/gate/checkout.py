"""A bare checkout and a folder of wheels, made importable for the processes that the gate starts.

setuptools maps `stepcache.kernels` to a folder outside of src (package-dir in pyproject.toml), so that a PYTHONPATH of
`src` does not find it. Here a folder of links stands in for the installed package: nothing is
built or downloaded, and neither pip nor anything else beyond the standard library is needed.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = {"kernels": "csrc_triton"}
"""Subpackages of stepcache that do not lie in src/stepcache."""


def environment(folder: Path, wheels: Path | None, root: Path = ROOT) -> dict[str, str]:
    """The variables of a process that imports this checkout's stepcache and what is in `wheels`, before anything else.

    `folder` is filled with links and unpacked wheels, and must outlive the process. Raises FileNotFoundError for a
    `wheels` that is no folder or holds none, and ValueError for a wheel that cannot be unpacked.
    """
    paths = [folder / "checkout", *([] if wheels is None else [unpack(wheels, folder / "wheels")])]
    link(folder / "checkout", root)
    before = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*map(str, paths), *([before] if before else [])]),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",  # there is no network; waiting for it would cost minutes
    }


def link(folder: Path, root: Path = ROOT) -> None:
    """Make `folder/stepcache` a package of links into the checkout at `root`."""
    package = folder / "stepcache"
    package.mkdir(parents=True)
    for path in (root / "src" / "stepcache").iterdir():
        if path.name != "__pycache__":
            (package / path.name).symlink_to(path)
    for name, room in ROOMS.items():
        (package / name).symlink_to(root / room)


def unpack(wheels: Path, folder: Path) -> Path:
    """Unpack all of the wheels in `wheels` into `folder`, which then goes on a PYTHONPATH; returns it."""
    found: Sequence[Path] = sorted(wheels.glob("*.whl"))
    if not found:
        raise FileNotFoundError(f"There are no wheels in {wheels}; see the top of benchmarks/gpu_gate.py.")
    for path in found:
        try:
            with zipfile.ZipFile(path) as wheel:
                wheel.extractall(folder)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path} is no wheel: {error}.") from error
    return folder
