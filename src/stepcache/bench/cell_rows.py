"""Makes a cell's rows from its measurements: medians, speed-ups, fidelity, whether images agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..forwards.macs import BranchMacs
from ..images import fidelity
from ..reuse.predict import as_option
from .agreement import agreements
from .entries import Entry
from .repeats import Spread
from .schema import BenchRow


def rows_of(entries: Sequence[Entry], counts: Mapping[int, BranchMacs], where: Mapping[str, Any]) -> list[BenchRow]:
    """One row for each variant: its figures, or why it did not run or has wrong images.

    counts: MACs by branch; variants of a branch without them have no FLOP bound. where: the columns that all rows
    share.
    """
    agreed = agreements(entries, where["dtype"])
    references = {entry.variant.key: entry for entry in reversed(entries) if entry.measured}
    eager, deepcache = references.get("eager"), references.get("deepcache")
    calls = eager.repeats[-1].unet_calls if eager else None

    def row(entry: Entry) -> BenchRow:
        variant = entry.variant
        values: dict[str, Any] = {**dict.fromkeys(_MEASURED), "status": entry.status, "kinds": "", "repeats": 0}
        values |= {"interval": variant.interval, "branch": variant.branch, "mode": variant.mode}
        values |= {"predict": as_option(variant.predict), "fewer": entry.steps}
        if entry.measured:
            agreement = agreed[id(entry)]
            values |= {"repeats": len(entry.repeats), "kinds": entry.kinds}
            values |= {"reference": agreement.reference, "difference": agreement.difference}
            if agreement.wrong:
                values["status"] = agreement.wrong
            else:
                values |= _measured(entry, eager, deepcache if variant.interval else None, entry.bound(counts, calls))
        return BenchRow(variant=variant.name, **where, **values)

    return [row(entry) for entry in entries if entry.status or entry.measured]


_MEASURED = (
    "first_call_s", "compile_s", "pipeline_s", "pipeline_s_p20", "pipeline_s_p80", "unet_s", "unet_s_p20", "unet_s_p80",
    "peak_memory_mib", "speedup", "unet_speedup", "speedup_over_deepcache", "flop_bound", "share", "psnr", "ssim",
    "graphs", "graphs_cached",
)  # fmt: skip


def _measured(entry: Entry, eager: Entry | None, deepcache: Entry | None, bound: float | None) -> dict[str, Any]:
    seconds, unet_seconds = Spread.of(entry.seconds), Spread.of(entry.unet_seconds)
    unet_speedup = _speedup(eager.unet_seconds, entry.unet_seconds) if eager else None
    values: dict[str, Any] = {
        "first_call_s": entry.first_call_s,
        "pipeline_s": seconds.median,
        "pipeline_s_p20": seconds.p20,
        "pipeline_s_p80": seconds.p80,
        "unet_s": unet_seconds.median,
        "unet_s_p20": unet_seconds.p20,
        "unet_s_p80": unet_seconds.p80,
        "peak_memory_mib": entry.peak_memory_mib,
        "speedup": _speedup(eager.seconds, entry.seconds) if eager else None,
        "eager_s": Spread.of(eager.seconds).median if eager else None,
        "unet_speedup": unet_speedup,
        "speedup_over_deepcache": _speedup(deepcache.seconds, entry.seconds) if deepcache else None,
        "flop_bound": bound,
        "share": None if unet_speedup is None or bound is None else unet_speedup / bound,
    }
    if entry.variant.compiles and not entry.shares:
        values |= {
            "compile_s": max(0.0, entry.first_call_s - seconds.median),
            "graphs": entry.graphs,
            "graphs_cached": entry.graphs_cached,
        }
    if not np.isfinite(entry.images).all():
        return {**values, "status": "ok, but its images are not finite"}
    if eager and np.isfinite(eager.images).all():
        values["psnr"] = fidelity.mean_psnr(entry.images, eager.images)
        values["ssim"] = float(fidelity.ssim(entry.images, eager.images).mean())
    return {**values, "status": "ok"}


def _speedup(theirs: Sequence[float], ours: Sequence[float]) -> float:
    return Spread.of_ratios(theirs, ours).median
