"""A folder of packages as text, or for a JSON document: for `stepcache compile` and `stepcache inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import StepCacheError
from ..packages.folder import damage, read_manifest
from ..packages.manifest import Entry, Manifest, Unreadable


def described(folder: Path) -> str:
    """What is in the folder: what made it, and a line for each package. StepCacheError if it has no manifest."""
    manifest = _read(folder)
    total = sum(entry.nbytes for entry in manifest.packages)
    lines = [
        f"{folder}: {len(manifest.packages)} packages, {total / 1e6:.1f} MB",
        _made(manifest),
        "",
        f"{'graph':34}{'for':44}{'Triton joins':>13}{'MB':>8}{'compiled in':>13}  state",
    ]
    for entry in manifest.packages:
        wrong = damage(folder, entry)
        state = "sound" if not wrong else f"DAMAGED ({wrong})"
        lines.append(
            f"{entry.what:34}{', '.join(_settings(entry, manifest)):44}{_joins(entry)!s:>13}{entry.nbytes / 1e6:8.1f}"
            f"{entry.seconds:11.0f} s  {state}"
        )
    return "\n".join(lines)


def document(folder: Path) -> dict[str, Any]:
    """The same, as values. joins: how many run on the Triton ops, or how they are chosen."""
    manifest = _read(folder)
    packages = []
    for entry in manifest.packages:
        wrong = damage(folder, entry)
        packages.append(
            {
                "graph": entry.what,
                "settings": _settings(entry, manifest),
                "joins": _joins(entry),
                "bytes": entry.nbytes,
                "compile_seconds": entry.seconds,
                "sound": not wrong,
                "damage": wrong or None,
            }
        )
    total = sum(entry.nbytes for entry in manifest.packages)
    return {"folder": str(folder), "bytes": total, "made_with": manifest.maker, "packages": packages}


def _read(folder: Path) -> Manifest:
    try:
        return read_manifest(folder)
    except Unreadable as error:
        raise StepCacheError(f"No packages: {error}.") from None


def _made(manifest: Manifest) -> str:
    maker = manifest.maker
    names = ("stepcache", "torch", "diffusers", "triton", "python")
    versions = ", ".join(f"{name} {maker[name]}" for name in names if maker.get(name))
    device = maker.get("device")
    on = [str(device[key]) for key in ("type", "name", "machine") if key in device] if isinstance(device, dict) else []
    return f"Made with {versions} for {' '.join(on)}."


def _settings(entry: Entry, manifest: Manifest) -> list[str]:
    """The class of the model, its dtypes, and the settings."""
    about = manifest.models[entry.model]
    words = [str(about.get("class", "")).rpartition(".")[2]]
    weights = about.get("weights")
    words += sorted({weight[0] for weight in weights.values()}) if isinstance(weights, dict) else []
    if "branch" in entry.graph:
        words.append(f"branch {entry.graph['branch']}")
    if entry.graph.get("guidance") == "reuse":
        words.append("guidance reused")
    kept = entry.kept[0] if entry.kept else None
    if isinstance(kept, dict) and "blend" in kept:
        *buffers, weights = kept["blend"]
        apart = isinstance(weights, dict) and len(weights.get("shape", ())) == 2
        words.append(f"blend of {len(buffers)}" + (", halves apart" if apart else ""))
    return words


def _joins(entry: Entry) -> Any:
    joins = entry.graph.get("joins")
    return len(joins) if isinstance(joins, list) else joins
