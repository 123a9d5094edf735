"""What must be the same where a package is made and where it runs."""

from __future__ import annotations

import functools
import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from .._version import __version__


def maker_of(device: torch.device) -> dict[str, Any]:
    """What makes packages here, for the manifest."""
    return {
        "stepcache": __version__,
        "code": _code(),
        "torch": torch.__version__,
        "diffusers": _version("diffusers"),
        "triton": _version("triton"),
        "python": platform.python_version(),
        "device": _device(device),
    }


def unusable(made: dict[str, Any], device: torch.device) -> str:
    """Why packages of the maker `made` cannot run on `device` in this process; "" if they can."""
    here = maker_of(device)
    # No package contains Python, and those for a CPU no Triton.
    for name in ("stepcache", "torch", "diffusers", *(("triton",) if device.type == "cuda" else ())):
        if made.get(name) != here[name]:
            return f"made with {name} {made.get(name)}, this is {here[name]}"
    if made.get("code") != here["code"]:
        return "made by other code of stepcache, although its version is the same"
    there, ours = made.get("device"), here["device"]
    if not isinstance(there, dict) or there.get("type") != device.type:
        return f"made for {_named(there)}, the model is on {_named(ours)}"
    if device.type == "cpu" and there.get("machine") == ours["machine"]:
        missing = sorted(set(there.get("features", ())) - set(ours["features"]))
        return f"made for a CPU with {', '.join(missing[:5])}, which this one lacks" if missing else ""
    return "" if there == ours else f"made for {_named(there)}, this is {_named(ours)}"


def _device(device: torch.device) -> dict[str, Any]:
    if device.type == "cuda":
        name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
        return {"type": "cuda", "name": name, "capability": list(capability)}
    if device.type != "cpu":
        return {"type": device.type, "name": platform.processor()}
    return {"type": "cpu", "machine": platform.machine(), "features": _features()}


@functools.cache
def _features() -> list[str]:
    """The CPU's instruction sets: Inductor compiles for all that there are (-march=native)."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, words = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return sorted(words.split())
    return [torch.backends.cpu.get_cpu_capability()]


def _named(device: Any) -> str:
    if not isinstance(device, dict):
        return str(device)
    return " ".join(str(device[key]) for key in ("type", "name", "machine", "capability") if key in device)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@functools.cache
def _code() -> str:
    """A hash of the sources that graphs are traced from: a checkout's version does not change with each edit."""
    digest = hashlib.sha256()
    for name in ("stepcache.forwards", "stepcache.reuse", "stepcache.kernels"):
        spec = find_spec(name)
        for folder in () if spec is None else spec.submodule_search_locations or ():
            for path in sorted(Path(folder).rglob("*.py")):
                digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]
