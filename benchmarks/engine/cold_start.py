"""How long until the first image, and how fast are the later ones, by how the graphs are compiled.

    python -m benchmarks.engine.cold_start

The bundled demo pipeline, interval 3, branch 0, each variant in a process of its own with an empty compile cache:
eager; compile="regional"; compile=True; and compile=True in a second process that is given the first one's artifacts
(`save_compiled`, `accelerate(compiled=...)`). The first image is timed from before `accelerate` to the image: importing
torch and diffusers and loading the pipeline are left out, importing Dynamo and Inductor is in.

On a CPU, Inductor's kernels are C++: artifacts spare it the generation of code, but not the C++ compiler, whose output
is not among torch's artifacts. On a GPU they hold Triton's binaries too.
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

from stepcache.bench.rows import RESULTS, Spread, write

VARIANTS = ("eager", "regional", "compiled", "compiled, saved artifacts")


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


def child(variant: str, steps: int, repeats: int, artifacts: Path) -> dict:
    """Run one variant in this process."""
    import torch
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import logging

    import stepcache

    torch.set_flush_denormal(True)
    logging.set_verbosity_error()
    assets = Path(stepcache.__file__).parent / "assets" / "demo"
    pipe = StableDiffusionPipeline.from_pretrained(assets, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)

    def image() -> float:
        start = time.perf_counter()
        pipe("tiger face", num_inference_steps=steps, guidance_scale=3.0, generator=torch.Generator().manual_seed(0))
        return time.perf_counter() - start

    start = time.perf_counter()
    saved = variant == VARIANTS[3]
    compile = {VARIANTS[0]: False, VARIANTS[1]: "regional"}.get(variant, True)
    stepcache.accelerate(pipe, compile=compile, compiled=artifacts if saved else None)
    image()
    first = time.perf_counter() - start
    record = stepcache.last_run(pipe)
    misses = 0
    if compile:
        from torch._dynamo.utils import counters

        misses = counters["aot_autograd"]["autograd_cache_miss"]
    if variant == VARIANTS[2]:
        stepcache.save_compiled(pipe, artifacts)
    size = artifacts.stat().st_size / 1e6 if artifacts.exists() and variant in VARIANTS[2:] else 0.0
    steady = [image() for _ in range(repeats)]
    return {"first": first, "compile": record.compile_seconds, "misses": misses, "mb": size, "steady": steady}


def measure(steps: int, repeats: int, variants: tuple[str, ...] = VARIANTS) -> list[Row]:
    """All variants, one after the other, each with an empty compile cache."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for i, variant in enumerate(variants):
            print(f"{variant} ...", flush=True)
            environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": f"{folder}/cache{i}"}
            command = [sys.executable, __file__, "--child", variant, "--artifacts", f"{folder}/artifacts"]
            command += ["--steps", str(steps), "--repeats", str(repeats)]
            process = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
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
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, default=RESULTS / "cold_start.csv")
    parser.add_argument("--child", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--artifacts", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args.child, args.steps, args.repeats, args.artifacts)))
        return
    rows = measure(args.steps, args.repeats)
    for row in rows:
        print(
            f"{row.variant:28} first image {row.first_image_s:7.2f} s (compiling {row.compile_s:7.2f} s), then "
            f"{row.steady_s:.3f} s, {row.steady_speedup_over_eager:.2f}x"
        )
    write(args.out, rows)


if __name__ == "__main__":
    main()
