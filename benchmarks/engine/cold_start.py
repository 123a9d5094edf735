"""Seconds to the first image of a process, and what a later call takes, by how the graphs are compiled.

    python -m benchmarks.engine.cold_start [--models demo,sd15]

The demo at its own 64 px, and Stable Diffusion 1.5's architecture with random weights at 256 px; interval 3, branch 0,
float32. Each variant runs in its own process with an empty compile cache: eager; compile="regional"; compile=True; and
from packages (`accelerate(compiled=...)`) that a process before it made (`save_compiled`, several graphs side by side).
The first image is timed from before `accelerate`. Importing torch and diffusers and loading the pipeline are not
counted; importing Dynamo and Inductor is.

`full_ms` and `partial_ms` are medians of single U-Net calls in the last image's buckets, warm. Their host cost is what
such a call takes when the native code returns at once: guards or their like, and passing hundreds of weights.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.console import columns, parser
from stepcache.bench.repeats import Spread
from stepcache.bench.rows import write

EAGER, REGIONAL, COMPILED, PACKAGES = VARIANTS = ("eager", "regional", "compiled", "packages")
SAVE = "save"  # the process that makes the packages

# Model -> pixels, steps of an image, images after the first.
MODELS = {"demo": (64, 20, 9), "sd15": (256, 6, 3)}


@dataclass(frozen=True)
class Row:
    """One model and variant. `first_image_s` and `steady` are of whole pipeline calls, `steady` of the later ones.

    compile_s: seconds compiling; for packages those in the process that made them, of which none are in the first
    image. megabytes: of the packages. host: microseconds of a call outside of native code; None where nothing is
    compiled, or only a part.
    """

    model: str
    pixels: int
    variant: str
    interval: int
    branch: int
    steps: int
    repeats: int
    first_image_s: float
    compile_s: float
    megabytes: float
    steady_s: float
    steady_p20: float
    steady_p80: float
    steady_speedup_over_eager: float
    full_ms: float
    partial_ms: float
    full_host_us: float | None
    partial_host_us: float | None


def measure_here(model: str, variant: str, folder: Path) -> dict[str, Any]:
    """Run one variant in this process."""
    import torch
    from diffusers.utils import logging

    from stepcache import accelerate, last_run, save_compiled
    from stepcache.images.models import load

    torch.set_flush_denormal(True)
    logging.set_verbosity_error()
    pixels, steps, repeats = MODELS[model]
    pipe = load(model, "cpu", torch.float32).pipe
    pipe.set_progress_bar_config(disable=True)

    def image() -> float:
        start = time.perf_counter()
        generator = torch.Generator().manual_seed(0)
        size = {"height": pixels, "width": pixels}
        pipe("a red apple", num_inference_steps=steps, guidance_scale=3.0, generator=generator, **size)
        return time.perf_counter() - start

    start = time.perf_counter()
    compile = {REGIONAL: "regional", COMPILED: True}.get(variant, False)
    packages = {"compiled": folder, "compiled_only": True} if variant == PACKAGES else {}
    accelerate(pipe, compile=compile, **packages)
    image()
    first = time.perf_counter() - start
    if variant == SAVE:
        start = time.perf_counter()
        nbytes = save_compiled(pipe, folder, progress=False)
        return {"compile": time.perf_counter() - start, "mb": nbytes / 1e6}
    seconds = last_run(pipe).compile_seconds
    steady = [image() for _ in range(repeats)]
    calls = {name: call_ms(call) for name, call in calls_of(pipe, image).items()}
    host = host_us(pipe, image) if variant in (COMPILED, PACKAGES) else {}
    return {"first": first, "compile": seconds, "steady": steady, "calls": calls, "host": host}


def calls_of(pipe: Any, image: Callable[[], float]) -> dict[str, Callable[[], Any]]:
    """A full and a partial U-Net call of an image, with the inputs and buffers that they had there."""
    import torch

    from stepcache.graphs.unet import UNetGraphs

    found: dict[str, tuple[Any, ...]] = {}
    run = UNetGraphs.run

    def noted(self: UNetGraphs, name: str, *arguments: Any) -> Any:
        found[name] = (self, name, *arguments)
        return run(self, name, *arguments)

    UNetGraphs.run = noted
    try:
        image()
    finally:
        UNetGraphs.run = run

    def call(arguments: tuple[Any, ...]) -> Any:
        with torch.no_grad():
            return run(*arguments)

    return {name: lambda arguments=arguments: call(arguments) for name, arguments in found.items()}


def call_ms(call: Callable[[], Any], seconds: float = 3.0) -> float:
    """The median milliseconds of a call."""
    times: list[float] = []
    while len(times) < 5 or sum(times) < seconds:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def host_us(pipe: Any, image: Callable[[], float]) -> dict[str, float]:
    """Microseconds of a full and a partial call whose native code returns what it has returned before."""
    found = {}
    for name, call in calls_of(pipe, image).items():
        with native_code_at_once():
            call()
            found[name] = call_ms(call, seconds=1.0) * 1e3
    return found


@contextmanager
def native_code_at_once() -> Iterator[None]:
    """Inside, each package and each graph of Inductor's runs once; its later calls return the same tensors."""
    from torch._inductor.output_code import CompiledFxGraph

    from stepcache.packages.loaded import Package

    first: dict[int, Any] = {}

    def once(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(self: Any, tensors: Any) -> Any:
            if id(self) not in first:
                first[id(self)] = function(self, tensors)
            return list(first[id(self)])

        return called

    before = CompiledFxGraph.__call__, Package.run
    CompiledFxGraph.__call__, Package.run = map(once, before)
    try:
        yield
    finally:
        CompiledFxGraph.__call__, Package.run = before


def child(model: str, variant: str, folder: Path) -> dict[str, Any]:
    """`measure_here` in a new process with an empty compile cache."""
    print(f"{model}: {variant} ...", flush=True)
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-m", "benchmarks.engine.cold_start", "--child", model, variant, str(folder)]
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
        process = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        return json.loads(process.stdout.splitlines()[-1])


def measure(model: str) -> list[Row]:
    """All variants of a model, one after the other."""
    pixels, steps, repeats = MODELS[model]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        packages = Path(folder, "packages")
        for variant in VARIANTS:
            saved = child(model, SAVE, packages) if variant == PACKAGES else {}
            result = {**child(model, variant, packages), **saved}
            steady = Spread.of(result["steady"])
            eager = rows[0].steady_s if rows else steady.median
            host = result["host"]
            rows.append(
                Row(
                    model, pixels, variant, 3, 0, steps, repeats, round(result["first"], 2),
                    round(result["compile"], 1), round(result.get("mb", 0.0), 2), *(round(s, 4) for s in steady),
                    round(eager / steady.median, 3), *(round(result["calls"][name], 2) for name in ("full", "partial")),
                    *(round(host[name], 0) if host else None for name in ("full", "partial")),
                )
            )  # fmt: skip
    return rows


def main() -> None:
    """Measure, write and print."""
    arguments = parser(__doc__, "cold_start.csv")
    arguments.add_argument("--models", default=",".join(MODELS), help="some of %(default)s")
    arguments.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = arguments.parse_args()
    if args.child:
        model, variant, folder = args.child
        print(json.dumps(measure_here(model, variant, Path(folder))))
        return
    rows: list[Row] = []
    for model in args.models.split(","):
        rows += (found := measure(model))
        write(args.out, found, append=len(rows) > len(found))
    header = ("seconds", "first image", "compiling", "later images", "over eager", "full ms", "partial ms", "host us")
    lines = [
        (
            f"{r.model}, {r.variant}", f"{r.first_image_s:.2f}", f"{r.compile_s:.1f}", f"{r.steady_s:.3f}",
            f"{r.steady_speedup_over_eager:.2f}x", f"{r.full_ms:.1f}", f"{r.partial_ms:.1f}",
            "-" if r.full_host_us is None else f"{r.full_host_us:.0f}, {r.partial_host_us:.0f}",
        )
        for r in rows
    ]  # fmt: skip
    print(columns(header, lines))


if __name__ == "__main__":
    main()
