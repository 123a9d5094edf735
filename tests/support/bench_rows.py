"""Made-up rows of `stepcache bench`: what the tables and plots make of them is tested, not what they say."""

from typing import Any

from stepcache.bench.schema import BenchRow
from stepcache.bench.spec import LADDER

CELL = {
    "model": "demo", "weights": "trained", "device": "cpu", "dtype": "float32", "scheduler": "DDIMScheduler",
    "steps": 20, "guidance": 7.5, "height": 64, "width": 64, "batch": 1,
}  # fmt: skip
UNMEASURED = {
    name: None
    for name in BenchRow.__annotations__
    if name.endswith(("_s", "_p20", "_p80")) or name in ("peak_memory_mib", "speedup", "unet_speedup")
} | dict.fromkeys(("speedup_over_deepcache", "flop_bound", "share", "psnr", "ssim"))


def row(key: str, seconds: float | None = None, pair=(None, None), mode: str = "", **other: Any) -> BenchRow:
    """A row of the variant `key` that took so many seconds where eager took 10; without seconds one that failed."""
    measured = {"status": "failed: RuntimeError: no luck"}
    if seconds is not None:
        measured = {
            "status": "ok", "pipeline_s": seconds, "pipeline_s_p20": 0.9 * seconds, "pipeline_s_p80": 1.1 * seconds,
            "unet_s": 0.8 * seconds, "speedup": 10 / seconds, "first_call_s": 2 * seconds,
        }  # fmt: skip
    return BenchRow(
        **{
            **CELL, **UNMEASURED, "interval": pair[0], "branch": pair[1], "variant": LADDER[key], "mode": mode,
            "kinds": "", "repeats": 3, **measured, **other,
        }
    )  # fmt: skip


def ladder(**other: Any) -> list[BenchRow]:
    """A whole cell."""
    lossy = {"psnr": 30.0, "ssim": 0.9, "flop_bound": 3.0, "share": 0.875}
    return [
        row("eager", 10.0, psnr=float("inf"), **other),
        row("compile", 7.0, mode="default", **other),
        row("compile", 6.25, mode="max-autotune", **other),
        row("deepcache", 4.0, (3, 0), **{**lossy, **other}),
        row("compile+deepcache", None, (3, 0), mode="default", **other),
        row("stepcache-eager", 3.75, (3, 0), **{**lossy, **other}),
        row("stepcache-compiled", 2.5, (3, 0), mode="default", **{**lossy, **other}),
        row("stepcache-graphs", None, (3, 0), **{**other, "status": "not available: needs CUDA"}),
        row("deepcache", 3.0, (5, 0), **{**lossy, "flop_bound": 4.0, "psnr": 25.0, **other}),
        row("stepcache-compiled", 2.0, (5, 0), mode="default", **{**lossy, "flop_bound": 4.0, "psnr": 24.5, **other}),
    ]
