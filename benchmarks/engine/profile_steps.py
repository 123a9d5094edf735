"""Where the time of a step goes: work on the device, and gaps in which it waits for the host.

    python -m benchmarks.engine.profile_steps                                     # SD 2.1 at 512 px, on a CUDA GPU
    python -m benchmarks.engine.profile_steps --model demo --latent 16 --steps 2  # anywhere

Full and partial steps of a DDIM loop with guidance (scale_model_input, U-Net, guidance, scheduler.step), on the real
architecture with random weights. Each figure is the mean over `--steps` consecutive steps of one kind.

- `wall` is measured without a profiler, as the median of three runs. On a GPU it is the time between two CUDA events
  around the steps. Two steps of the same kind are queued before them, so the host is ahead, as in a pipeline. The steps
  of a captured variant are replays of its graph. Without a GPU it is the host's clock.
- `busy` is the time during which at least one kernel, copy or fill runs on the device, from torch.profiler. The
  profiler slows the host down but not the kernels; so `gap` is `wall` minus `busy`, and not read off the profile.
- `launches` are the host's calls that put work on the device. Replaying a CUDA graph is one of them. Copying a step's
  inputs into the graph's slots, guidance and the scheduler are not in the graph.

Without a GPU there are no kernels: `unit` is "operators", `busy` and `count` are of torch's outermost operators, and
there are no launches and gaps.
"""

from __future__ import annotations

import os
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

# CUPTI reads these when it is loaded. Torn down after one profile, it breaks the replay of graphs in the next.
os.environ.setdefault("DISABLE_CUPTI_LAZY_REINIT", "1")
os.environ.setdefault("TEARDOWN_CUPTI", "0")

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.console import columns, parser
from benchmarks.engine.loop import GuidedLoop
from stepcache import Schedule, accelerate, denoising, last_run, restore
from stepcache.bench.calls import event
from stepcache.bench.repeats import Spread
from stepcache.bench.rows import write
from stepcache.forwards.macs import example_inputs
from stepcache.images.unet_configs import BUNDLED, read_config

VARIANTS: dict[str, dict[str, Any]] = {
    "eager": {"compile": False, "cuda_graphs": False},
    "captured": {"compile": False},
    "compiled": {"compile": {"mode": "default"}, "cuda_graphs": False},
    "compiled + captured": {"compile": {"mode": "default"}},
}
"""Name -> arguments of `accelerate`."""
WARM_UP = 2  # steps before the measured ones, in every run
RUNS = 3
TOP = 8

LAUNCH = re.compile(r"(cu|cuda|hip)[A-Za-z]*(Launch|Memcpy|Memset)\w*")
"""Calls of CUDA's and HIP's runtimes and drivers that put work on the device."""


@dataclass(frozen=True)
class Row:
    """One kind of step in one variant. Times in milliseconds a step."""

    model: str
    weights: str
    device: str
    dtype: str
    latent: int  # height and width
    batch: int  # images; the U-Net's batch is twice that, for guidance
    branch: int
    variant: str
    kind: str  # "full" or "partial"
    steps: int  # each figure is a mean over so many
    unit: str  # of `busy` and `count`: "kernels", or "operators" without a GPU
    wall_ms: float
    wall_ms_p20: float
    wall_ms_p80: float
    busy_ms: float
    gap_ms: float | None  # None without a GPU
    gap_share: float | None  # of wall
    count: float  # kernels (or operators) a step
    launches: float | None  # host calls a step; None without a GPU
    top: str  # the longest by name: "7.12 ms in 38 of sm90_xmma...; ..."


class Span(NamedTuple):
    """Something that ran from `start` to `end`, in microseconds."""

    name: str
    start: float
    end: float


class Loop(GuidedLoop):
    """The loop with a model's U-Net and random weights and inputs, one step at a time."""

    def __init__(self, model: str, latent: int, batch: int, device: str, dtype: torch.dtype) -> None:
        config = read_config(model)
        torch.manual_seed(0)
        with torch.device(device):
            unet = UNet2DConditionModel.from_config(config)
        super().__init__(unet.to(dtype).eval().requires_grad_(False))
        inputs = _random(example_inputs(self.unet, latent, latent, 2 * batch), dtype)
        self.latents: Tensor = inputs.pop("sample")[:batch]  # [batch, 4, latent, latent]
        del inputs["timestep"]
        self.conditions = inputs

    def __call__(self, steps: int) -> Iterator[None]:
        """Each `next` runs one of `steps` denoising steps. The iterator must be exhausted."""
        with denoising(self):
            for _ in self.denoised(self.latents, steps, **self.conditions):
                yield


def _random(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, dict):
        return {name: _random(item, dtype) for name, item in value.items()}
    return torch.randn_like(value, dtype=dtype) if value.is_floating_point() else value


@torch.no_grad()
def measure(loop: Loop, model: str, variant: str, branch: int, steps: int) -> list[Row]:
    """A row for full and one for partial steps of a variant. Afterwards the loop is as it was."""
    run = WARM_UP + steps
    accelerate(loop, branch=branch, schedule=Schedule.explicit("F" * run + "P" * run), **VARIANTS[variant])
    try:
        for _ in loop(2 * run):  # compiles and captures
            pass
        walls = [_walls(loop, steps) for _ in range(RUNS)]
        profiles = _profiles(loop, steps)
        kinds = last_run(loop).kinds
    finally:
        restore(loop)
    assert kinds == "F" * run + "P" * run, kinds
    device, cuda = loop.latents.device.type, loop.latents.is_cuda
    rows = []
    for i, kind in enumerate(("full", "partial")):
        spans, launches = profiles[i]
        wall = Spread.of([1e3 * times[i] / steps for times in walls])
        busy = union(spans) / 1e3 / steps
        rows.append(
            Row(
                model=model,
                weights="random",
                device=device,
                dtype=str(loop.latents.dtype).removeprefix("torch."),
                latent=loop.latents.shape[-1],
                batch=len(loop.latents),
                branch=branch,
                variant=variant,
                kind=kind,
                steps=steps,
                unit="kernels" if cuda else "operators",
                wall_ms=round(wall.median, 4),
                wall_ms_p20=round(wall.p20, 4),
                wall_ms_p80=round(wall.p80, 4),
                busy_ms=round(busy, 4),
                gap_ms=round(wall.median - busy, 4) if cuda else None,
                gap_share=round(1 - busy / wall.median, 4) if cuda else None,
                count=len(spans) / steps,
                launches=launches / steps if cuda else None,
                top=longest(spans, steps),
            )
        )
    return rows


def _walls(loop: Loop, steps: int) -> list[float]:
    """Seconds of `steps` full and of `steps` partial steps."""
    run, spans = loop(2 * (WARM_UP + steps)), []
    now: Callable[[], Any] = event if loop.latents.is_cuda else time.perf_counter
    for _ in range(2):
        for _ in islice(run, WARM_UP):  # without waiting, so that the host stays ahead
            pass
        start = now()
        for _ in islice(run, steps):
            pass
        spans.append((start, now()))
        _wait(loop)
    for _ in run:
        pass
    if loop.latents.is_cuda:
        return [start.elapsed_time(end) / 1e3 for start, end in spans]
    return [end - start for start, end in spans]


def _profiles(loop: Loop, steps: int) -> list[tuple[list[Span], int]]:
    """For `steps` full and for `steps` partial steps: what ran on the device, and the number of launches."""
    run, found = loop(2 * (WARM_UP + steps)), []
    for _ in range(2):
        _take(run, WARM_UP, loop)
        with profiler(loop.latents.is_cuda) as prof:
            _take(run, steps, loop)
        found.append(spans_of(prof.events(), loop.latents.is_cuda))
    _take(run, None, loop)
    return found


def profiler(cuda: bool) -> AbstractContextManager[Any]:
    """torch.profiler for the host and, if `cuda`, the GPU."""
    return profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda)


def _take(run: Iterator[None], steps: int | None, loop: Loop) -> None:
    """Run so many steps (None: the rest) and wait for the device."""
    for _ in islice(run, steps):
        pass
    _wait(loop)


def _wait(loop: Loop) -> None:
    if loop.latents.is_cuda:
        torch.cuda.synchronize()


def spans_of(events: Iterable[Any], cuda: bool) -> tuple[list[Span], int]:
    """From torch.profiler's events: what ran on the device (on a CPU the outermost operators), and the launches."""
    spans, launches = [], 0
    for one in events:
        if getattr(one, "is_user_annotation", False):
            continue  # "Torch-Compiled Region" and the like, which span other events
        on_device = one.device_type == DeviceType.CUDA
        if on_device if cuda else one.cpu_parent is None and one.name.startswith("aten::"):
            spans.append(Span(one.name, one.time_range.start, one.time_range.end))
        launches += not on_device and LAUNCH.fullmatch(one.name) is not None
    return spans, launches


def union(spans: Iterable[Span]) -> float:
    """Microseconds during which at least one of the spans runs."""
    total, done = 0.0, float("-inf")
    for span in sorted(spans, key=lambda span: span.start):
        total += max(0.0, span.end - max(span.start, done))
        done = max(done, span.end)
    return total


def longest(spans: Iterable[Span], steps: int, limit: int = TOP) -> str:
    """The `limit` names that take the most time, with milliseconds and number per step."""
    times: dict[str, list[float]] = defaultdict(list)
    for span in spans:
        times[span.name].append(span.end - span.start)
    ranked = sorted(times.items(), key=lambda item: -sum(item[1]))[:limit]
    return "; ".join(
        f"{sum(values) / 1e3 / steps:.3f} ms in {len(values) / steps:g} of {name[:80]}" for name, values in ranked
    )


def table(rows: Sequence[Row]) -> str:
    """The rows as text, without their top kernels."""
    lines = [
        (
            r.variant, r.kind, f"{r.wall_ms:.3f}", f"{r.busy_ms:.3f}",
            "-" if r.gap_share is None else f"{r.gap_share:.1%}", f"{r.count:g}",
            "-" if r.launches is None else f"{r.launches:g}",
        )
        for r in rows
    ]  # fmt: skip
    return columns(("variant", "step", "wall ms", "busy ms", "gap", rows[0].unit, "launches"), lines, left=2)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the variants one after the other; write and print their rows as they come."""
    arguments = parser(__doc__, "profile_steps.csv", append=True)
    arguments.add_argument(
        "--model", default="sd21", help=f"demo, {', '.join(BUNDLED)}, or a U-Net's config.json (default sd21)"
    )
    arguments.add_argument("--latent", type=int, default=64, help="latents' height and width (default 64: 512 px)")
    arguments.add_argument("--batch", type=int, default=1, help="images (default 1)")
    arguments.add_argument("--branch", type=int, default=0)
    arguments.add_argument("--steps", type=int, default=10, help="a figure is the mean of so many (default 10)")
    arguments.add_argument("--variants", nargs="+", choices=VARIANTS, default=["eager", "captured"])
    args = arguments.parse_args(argv)
    cuda = torch.cuda.is_available()
    loop = Loop(
        args.model, args.latent, args.batch, "cuda" if cuda else "cpu", torch.float16 if cuda else torch.float32
    )
    rows: list[Row] = []
    for variant in args.variants:
        if not cuda and "captured" in variant:
            print(f"{variant}: not run, since CUDA graphs need a CUDA GPU")
            continue
        new = measure(loop, args.model, variant, args.branch, args.steps)
        write(args.out, new, append=args.append or bool(rows))
        rows += new
        for row in new:
            print(f"{variant}, {row.kind} step:\n  " + row.top.replace("; ", "\n  "), flush=True)
    if rows:
        print("\n" + table(rows))
    if not cuda:
        print("No CUDA GPU here: times are of torch's operators on the CPU, not of kernels.")


if __name__ == "__main__":
    main()
