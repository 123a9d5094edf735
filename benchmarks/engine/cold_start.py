"""Seconds to the first image, and speed of the later ones, by how the graphs are compiled.

    python -m benchmarks.engine.cold_start

The bundled demo pipeline, interval 3, branch 0. Each variant runs in its own process with an empty compile cache:
eager; compile="regional"; compile=True; and compile=True in a second process that loads the first one's artifacts
(`save_compiled`, `accelerate(compiled=...)`). The first image is timed from before `accelerate`. Importing torch and
diffusers and loading the pipeline are not counted; importing Dynamo and Inductor is.

On a CPU, Inductor's kernels are C++: artifacts save code generation, but not the C++ compiler, whose output torch does
not put into them. On a GPU they hold Triton's binaries too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import ROOT
from benchmarks.console import columns, parser
from stepcache.bench.repeats import Spread
from stepcache.bench.rows import write

EAGER, REGIONAL, COMPILED, SAVED = VARIANTS = ("eager", "regional", "compiled", "compiled, saved artifacts")


@dataclass(frozen=True)
class Row:
    """One variant. Seconds are of whole pipeline calls; `steady` of the later ones."""

    variant: str
    interval: int
    branch: int
    steps: int
    repeats: int
    first_image_s: float
    compile_s: float
    graph_cache_misses: int
    artifacts_mb: float
    steady_s: float
    steady_p20: float
    steady_p80: float
    steady_speedup_over_eager: float


def measure_here(variant: str, steps: int, repeats: int, artifacts: Path) -> dict:
    """Run one variant in this process."""
    import torch
    from diffusers.utils import logging

    from stepcache import accelerate, last_run, save_compiled
    from stepcache.images.pipelines import load_demo

    torch.set_flush_denormal(True)
    logging.set_verbosity_error()
    pipe = load_demo("cpu")

    def image() -> float:
        start = time.perf_counter()
        pipe("tiger face", num_inference_steps=steps, guidance_scale=3.0, generator=torch.Generator().manual_seed(0))
        return time.perf_counter() - start

    start = time.perf_counter()
    compile = {EAGER: False, REGIONAL: "regional"}.get(variant, True)
    accelerate(pipe, compile=compile, compiled=artifacts if variant == SAVED else None)
    image()
    first = time.perf_counter() - start
    record = last_run(pipe)
    misses = 0
    if compile:
        from torch._dynamo.utils import counters

        misses = counters["aot_autograd"]["autograd_cache_miss"]
    if variant == COMPILED:
        save_compiled(pipe, artifacts)
    size = artifacts.stat().st_size / 1e6 if artifacts.exists() and variant in (COMPILED, SAVED) else 0.0
    steady = [image() for _ in range(repeats)]
    return {"first": first, "compile": record.compile_seconds, "misses": misses, "mb": size, "steady": steady}


def measure(steps: int, repeats: int, variants: tuple[str, ...] = VARIANTS) -> list[Row]:
    """All variants one after the other, each in a new process with an empty compile cache."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for i, variant in enumerate(variants):
            print(f"{variant} ...", flush=True)
            environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": f"{folder}/cache{i}"}
            command = [sys.executable, "-m", "benchmarks.engine.cold_start", "--child", variant]
            command += ["--artifacts", f"{folder}/artifacts", "--steps", str(steps), "--repeats", str(repeats)]
            process = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
            result = json.loads(process.stdout.splitlines()[-1])
            steady = Spread.of(result["steady"])
            eager = rows[0].steady_s if rows else steady.median
            rows.append(
                Row(
                    variant, 3, 0, steps, repeats, round(result["first"], 2), round(result["compile"], 2),
                    result["misses"], round(result["mb"], 2), *(round(s, 4) for s in steady),
                    round(eager / steady.median, 3),
                )
            )  # fmt: skip
    return rows


def main() -> None:
    """Measure, write and print."""
    arguments = parser(__doc__, "cold_start.csv")
    arguments.add_argument("--steps", type=int, default=20)
    arguments.add_argument("--repeats", type=int, default=9)
    arguments.add_argument("--child", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments.add_argument("--artifacts", type=Path, help=argparse.SUPPRESS)
    args = arguments.parse_args()
    if args.child:
        print(json.dumps(measure_here(args.child, args.steps, args.repeats, args.artifacts)))
        return
    rows = measure(args.steps, args.repeats)
    write(args.out, rows)
    lines = [
        (
            r.variant, f"{r.first_image_s:.2f}", f"{r.compile_s:.2f}", f"{r.steady_s:.3f}",
            f"{r.steady_speedup_over_eager:.2f}x",
        )
        for r in rows
    ]  # fmt: skip
    print(columns(("seconds", "first image", "compiling", "later images", "over eager"), lines))


if __name__ == "__main__":
    main()
