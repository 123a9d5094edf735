"""The share of a pipeline call that is not U-Net: text encoder, scheduler, VAE, and all between them.

    python -m benchmarks.engine.rest_of_loop                               # the bundled demo
    python -m benchmarks.engine.rest_of_loop --compile                     # on a CPU: compile U-Net and decoder too
    python -m benchmarks.engine.rest_of_loop --pipeline stable-diffusion-v1-5/stable-diffusion-v1-5 --size 512

Before and after: the original; stepcache; stepcache with the VAE's decoder compiled and captured (`vae=True`); and on a
GPU stepcache with scheduler steps that wait for the device, as the original's do (`timesteps.py` switched off), which
tells what that alone is worth.

A part's seconds are those between its first call's start and end, and so on for all its calls in the run. On a GPU they
are the device's: events on the stream before and after, idle gaps between kernels included, so a step that waits for
the device, and lets it run dry, shows up in the scheduler's part; nothing is synchronised in between. `VAE` is its
decoder with the convolution before it. `rest` is what is left of the whole: the pipeline's own host code, guidance,
latents, the tokenizer, the conversion to images. Variants share all weights and run interleaved; a share is taken
within a repeat.
"""

from __future__ import annotations

import argparse
import copy
import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import torch
from diffusers import DiffusionPipeline

from stepcache import accelerate, restore
from stepcache.bench.rows import RESULTS, Spread, interleave, write
from stepcache.run import timesteps

DEMO = str(files("stepcache") / "assets" / "demo")
MODULES = {
    "text encoder": ("text_encoder", "text_encoder_2"),
    "U-Net": ("unet",),
    "VAE": ("vae.post_quant_conv", "vae.decoder"),
}
PARTS = ("text encoder", "U-Net", "scheduler", "VAE", "rest", "whole")
WAITING = "stepcache, steps that wait"


@dataclass(frozen=True)
class Row:
    """One part of one variant's run. Seconds are of all of the part's calls in one run."""

    pipeline: str
    device: str  # cpu, cuda
    dtype: str
    scheduler: str
    steps: int
    batch: int
    size: int  # pixels, of both sides
    interval: int
    branch: int
    variant: str
    part: str
    calls: int  # in one run
    repeats: int
    seconds: float
    seconds_p20: float
    seconds_p80: float
    share: float  # of the whole


class Clock:
    """Seconds of each part of one run. `device` is what is timed: the host's clock on a CPU, events on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._spans: dict[str, list[tuple[Any, Any]]] = defaultdict(list)

    def now(self) -> Any:
        """This moment: a number, or an event that the device will reach."""
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def add(self, part: str, start: Any, end: Any) -> None:
        """A call of `part`."""
        self._spans[part].append((start, end))

    def read(self) -> dict[str, tuple[float, int]]:
        """Seconds and calls of each part since the last reading; waits for the device."""
        if self._cuda:
            torch.cuda.synchronize()
        spans, self._spans = self._spans, defaultdict(list)
        return {part: (sum(self._seconds(*span) for span in found), len(found)) for part, found in spans.items()}

    def _seconds(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) / 1e3 if self._cuda else end - start


@contextmanager
def timed(pipe: Any, clock: Clock) -> Iterator[None]:
    """The pipe's parts tell `clock` their calls: by hooks, which are outside of all that stepcache replaces."""
    handles, starts = [], {}

    def before(module: Any, *_: Any) -> None:
        starts[module] = clock.now()

    def after(part: str, module: Any, *_: Any) -> None:
        clock.add(part, starts.pop(module), clock.now())

    for part, paths in MODULES.items():
        for path in paths:
            try:
                module = functools.reduce(getattr, path.split("."), pipe)
            except AttributeError:
                continue
            if module is not None:
                handles.append(module.register_forward_pre_hook(before))
                handles.append(module.register_forward_hook(functools.partial(after, part)))
    cls = type(pipe.scheduler)
    stock = cls.step

    @functools.wraps(stock)
    def step(*args: Any, **kwargs: Any) -> Any:
        start = clock.now()
        result = stock(*args, **kwargs)
        clock.add("scheduler", start, clock.now())
        return result

    # On the class, in this process only: stepcache leaves a step that somebody has put on the scheduler itself alone.
    with mock.patch.object(cls, "step", step):
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def load(path: str, device: str, dtype: torch.dtype, scheduler: str) -> Any:
    """The pipeline, with that scheduler."""
    pipe = DiffusionPipeline.from_pretrained(path, torch_dtype=dtype).to(device)
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def variants(interval: int, branch: int, device: str, compile: bool) -> dict[str, dict[str, Any] | None]:
    """Arguments of `accelerate` by the variant's name; None for the original."""
    basic: dict[str, Any] = {"interval": interval, "branch": branch}
    found: dict[str, dict[str, Any] | None] = {"original": None, "stepcache": basic}
    if device == "cuda":
        found = {**found, WAITING: basic, "stepcache, vae=True": {**basic, "vae": True}}
    elif compile:
        basic = {**basic, "compile": True}
        found = {**found, "stepcache, compiled": basic, "stepcache, compiled, vae=True": {**basic, "vae": True}}
    return found


def run_of(pipe: Any, name: str, clock: Clock, call: dict[str, Any]) -> Callable[[], dict[str, tuple[float, int]]]:
    """A function that makes the images and tells the seconds and calls of each part."""

    generator = torch.Generator(pipe.device)

    def run() -> dict[str, tuple[float, int]]:
        without = mock.patch.dict(timesteps.ON_HOST, clear=True) if name == WAITING else nullcontext()
        with without, timed(pipe, clock):
            clock.read()
            start = time.perf_counter()
            pipe(**call, generator=generator.manual_seed(0))
            parts = clock.read()
            whole = time.perf_counter() - start
        rest = whole - sum(seconds for seconds, _ in parts.values())
        return {**parts, "rest": (rest, 1), "whole": (whole, 1)}

    return run


def measure(
    path: str = DEMO,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    scheduler: str = "DDIMScheduler",
    steps: int = 20,
    repeats: int = 9,
    batch: int = 1,
    size: int | None = None,
    interval: int = 3,
    branch: int = 0,
    compile: bool = False,
) -> list[Row]:
    """All variants' parts."""
    pipe = load(path, device, dtype, scheduler)
    size = size or pipe.unet.config.sample_size * pipe.vae_scale_factor
    call = {"prompt": ["tiger face"] * batch, "height": size, "width": size, "num_inference_steps": steps}
    clock, runs, pipes = Clock(torch.device(device)), {}, []
    for name, arguments in variants(interval, branch, device, compile).items():
        pipes.append(copy.copy(pipe))  # of its own: settings, graphs and scheduler; weights are shared
        pipes[-1].scheduler = copy.deepcopy(pipe.scheduler)
        if arguments is not None:
            # Weights that one of them re-lays would be the original's as well.
            accelerate(pipes[-1], channels_last=False, **arguments)
        runs[name] = run_of(pipes[-1], name, clock, call)

    found: dict[str, list[dict[str, tuple[float, int]]]] = {name: [] for name in runs}

    def job(name: str) -> float:
        found[name].append(runs[name]())
        return found[name][-1]["whole"][0]

    interleave({name: functools.partial(job, name) for name in runs}, repeats, "rest of the loop")
    for each in pipes:
        restore(each)
    rows = []
    for name, results in found.items():
        for part in PARTS:
            values = [result.get(part, (0.0, 0)) for result in results[1:]]  # the first one was the warm-up
            seconds = Spread.of([value for value, _ in values])
            shares = [value / result["whole"][0] for (value, _), result in zip(values, results[1:], strict=True)]
            rows.append(
                Row(
                    "demo" if path == DEMO else Path(path).name, device, str(dtype).removeprefix("torch."), scheduler,
                    steps, batch, size, interval, branch, name, part, values[0][1], repeats,
                    *(round(value, 6) for value in seconds), round(Spread.of(shares).median, 4),
                )
            )  # fmt: skip
    return rows


def table(rows: list[Row]) -> str:
    """Milliseconds and share of each part, a line a variant."""
    lines = [f"{'':32}" + "".join(f"{part:>22}" for part in PARTS)]
    for name in dict.fromkeys(row.variant for row in rows):
        own = {row.part: row for row in rows if row.variant == name}
        lines.append(f"{name:32}" + "".join(f"{own[p].seconds * 1e3:12.1f} ms {own[p].share:6.1%}" for p in PARTS))
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", default=DEMO, help="a pipeline's folder or name; default: the bundled demo")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="float16 on CUDA, else float32")
    parser.add_argument("--scheduler", nargs="+", default=["DDIMScheduler"], help="classes of diffusers")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--batch", type=int, default=1, help="images of a call")
    parser.add_argument("--size", type=int, help="pixels; default: the U-Net's own")
    parser.add_argument("--interval", type=int, default=3)
    parser.add_argument("--branch", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="on a CPU too; on CUDA it is always so")
    parser.add_argument("--threads", type=int, help="torch's; default: as it is")
    parser.add_argument("--out", type=Path, default=RESULTS / "rest_of_loop.csv")
    args = parser.parse_args(argv)
    torch.set_flush_denormal(True)
    if args.threads:
        torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype or ("float16" if args.device == "cuda" else "float32"))
    rows = []
    for scheduler in args.scheduler:
        rows += measure(
            args.pipeline, args.device, dtype, scheduler, args.steps, args.repeats, args.batch, args.size,
            args.interval, args.branch, args.compile,
        )  # fmt: skip
        print(scheduler, table(rows[-len(PARTS) * len(variants(1, 0, args.device, args.compile)) :]), sep="\n")
    write(args.out, rows)


if __name__ == "__main__":
    main()
