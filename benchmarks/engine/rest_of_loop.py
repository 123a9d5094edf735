"""The share of a pipeline call that is not U-Net: text encoder, scheduler, VAE and everything in between.

    python -m benchmarks.engine.rest_of_loop                               # the bundled demo
    python -m benchmarks.engine.rest_of_loop --compile                     # on a CPU: compile U-Net and decoder too
    python -m benchmarks.engine.rest_of_loop --pipeline stable-diffusion-v1-5/stable-diffusion-v1-5 --size 512

The variants are the original; stepcache; stepcache with the VAE's decoder compiled and captured (`vae=True`); and, on a
GPU, stepcache with scheduler steps that wait for the device as the original's do (`run/timesteps.py` switched off),
which shows what avoiding that is worth.

A part's seconds are the sum over its calls in one run. On a GPU they are the device's, from events on the stream before
and after each call, including gaps between kernels. So a scheduler step that waits for the device and lets it go idle
shows up in the scheduler's part. Nothing synchronises in between. `VAE` is its decoder and the convolution before it.
`rest` is everything else in the call: the pipeline's own host code, guidance, latents, the tokenizer, the conversion to
images. The variants share all weights and run in turn; a share is taken within a repeat.
"""

from __future__ import annotations

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

from benchmarks.console import columns, parser
from stepcache import accelerate, restore
from stepcache.bench.calls import event
from stepcache.bench.repeats import Spread, interleave
from stepcache.bench.rows import write
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
    """One part of a variant's run. Seconds are the sum over the part's calls in one run."""

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
    """Seconds of each part of one run: by the host's clock on a CPU, by events on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._spans: dict[str, list[tuple[Any, Any]]] = defaultdict(list)

    def now(self) -> Any:
        """This moment: a number, or an event that the device will reach."""
        return event() if self._cuda else time.perf_counter()

    def add(self, part: str, start: Any, end: Any) -> None:
        self._spans[part].append((start, end))

    def read(self) -> dict[str, tuple[float, int]]:
        """(seconds, calls) of each part since the last reading. Waits for the device."""
        if self._cuda:
            torch.cuda.synchronize()
        spans, self._spans = self._spans, defaultdict(list)
        return {part: (sum(self._seconds(*span) for span in found), len(found)) for part, found in spans.items()}

    def _seconds(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) / 1e3 if self._cuda else end - start


@contextmanager
def timed(pipe: Any, clock: Clock) -> Iterator[None]:
    """Inside, `clock` sees each call of the pipe's parts. Its hooks are outside of what stepcache replaces."""
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

    # On the class: stepcache does not touch a `step` that was set on the scheduler object itself.
    with mock.patch.object(cls, "step", step):
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def load(path: str, device: str, dtype: torch.dtype, scheduler: str) -> Any:
    """The pipeline with this scheduler."""
    pipe = DiffusionPipeline.from_pretrained(path, torch_dtype=dtype).to(device)
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def variants(interval: int, branch: int, device: str, compile: bool) -> dict[str, dict[str, Any] | None]:
    """Arguments of `accelerate` for each variant; None for the original."""
    basic: dict[str, Any] = {"interval": interval, "branch": branch}
    found: dict[str, dict[str, Any] | None] = {"original": None, "stepcache": basic}
    if device == "cuda":
        found = {**found, WAITING: basic, "stepcache, vae=True": {**basic, "vae": True}}
    elif compile:
        basic = {**basic, "compile": True}
        found = {**found, "stepcache, compiled": basic, "stepcache, compiled, vae=True": {**basic, "vae": True}}
    return found


def run_of(pipe: Any, name: str, clock: Clock, call: dict[str, Any]) -> Callable[[], dict[str, tuple[float, int]]]:
    """A function that makes the images and returns (seconds, calls) of each part."""
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
    """A row for each part of each variant."""
    pipe = load(path, device, dtype, scheduler)
    size = size or pipe.unet.config.sample_size * pipe.vae_scale_factor
    call = {"prompt": ["tiger face"] * batch, "height": size, "width": size, "num_inference_steps": steps}
    clock, runs, pipes = Clock(torch.device(device)), {}, []
    for name, arguments in variants(interval, branch, device, compile).items():
        pipes.append(copy.copy(pipe))  # own settings, graphs and scheduler; shared weights
        pipes[-1].scheduler = copy.deepcopy(pipe.scheduler)
        if arguments is not None:
            # channels_last would change the original's weights too.
            accelerate(pipes[-1], channels_last=False, **arguments)
        runs[name] = run_of(pipes[-1], name, clock, call)

    found = interleave(runs, repeats, "rest of the loop")
    for each in pipes:
        restore(each)
    rows = []
    for name, results in found.items():
        for part in PARTS:
            values = [result.get(part, (0.0, 0)) for result in results]
            seconds = Spread.of([value for value, _ in values])
            shares = Spread.of_ratios([value for value, _ in values], [result["whole"][0] for result in results])
            rows.append(
                Row(
                    "demo" if path == DEMO else Path(path).name, device, str(dtype).removeprefix("torch."), scheduler,
                    steps, batch, size, interval, branch, name, part, values[0][1], repeats,
                    *(round(value, 6) for value in seconds), round(shares.median, 4),
                )
            )  # fmt: skip
    return rows


def table(rows: list[Row]) -> str:
    """Milliseconds and share of each part, a line for each variant."""
    lines = []
    for name in dict.fromkeys(row.variant for row in rows):
        own = {row.part: row for row in rows if row.variant == name}
        lines.append((name, *(f"{own[part].seconds * 1e3:.1f} ms {own[part].share:6.1%}" for part in PARTS)))
    return columns(("", *PARTS), lines)


def main(argv: list[str] | None = None) -> None:
    """Measure, print and write."""
    arguments = parser(__doc__, "rest_of_loop.csv")
    arguments.add_argument("--pipeline", default=DEMO, help="a pipeline's folder or name (default: the bundled demo)")
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    arguments.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="float16 on CUDA, else float32")
    arguments.add_argument("--scheduler", nargs="+", default=["DDIMScheduler"], help="scheduler classes of diffusers")
    arguments.add_argument("--steps", type=int, default=20)
    arguments.add_argument("--repeats", type=int, default=9)
    arguments.add_argument("--batch", type=int, default=1, help="images per call")
    arguments.add_argument("--size", type=int, help="pixels (default: the U-Net's own)")
    arguments.add_argument("--interval", type=int, default=3)
    arguments.add_argument("--branch", type=int, default=0)
    arguments.add_argument("--compile", action="store_true", help="compile on a CPU too; on CUDA stepcache always does")
    arguments.add_argument("--threads", type=int, help="of torch (default: unchanged)")
    args = arguments.parse_args(argv)
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
